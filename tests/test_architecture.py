"""The house rules, read from the source: who may import whom, and what must not import torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mezzotint"

# Each layer may import from those below it and from itself; rooms on one line do not import each other.
LAYERS: list[set[str]] = [
    {"cli"},
    {"serve"},
    {"explain"},
    {"training", "evaluation"},
    {"pipeline", "data"},
    {"kernels", "adapters"},
    {"checkpoints", "prompts"},
    {"models", "diffusion"},
    {"images"},
    {"names"},
    {"storage"},
    {"errors"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
REFERENCES = {"diffusers", "transformers", "torchvision", "accelerate"}
TORCH_FREE = [
    "mezzotint",
    "mezzotint.names",
    "mezzotint.errors",
    "mezzotint.storage",
    "mezzotint.images",
    "mezzotint.pipeline.request",
    "mezzotint.pipeline.source",
    "mezzotint.evaluation.spec",
    "mezzotint.evaluation.prompt_sets",
]


def imports(path: Path) -> list[str]:
    """Every absolute module that the file imports, at any depth of its code."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def forbidden(room: str, module: str) -> bool:
    """Whether a file in `room` may not import `module`."""
    if module.split(".")[0] in REFERENCES:
        return True
    if not module.startswith("mezzotint."):
        return False
    other = module.split(".")[1]
    if room == "__init__" or other == room or other not in RANK:
        return False
    return RANK[other] <= RANK[room]


def files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if "recipes" not in path.parts and "assets" not in path.parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_from_lower_layers(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert room == "__init__" or room in RANK, f"{room} has no place in the layout"
    wrong = [module for module in imports(path) if forbidden(room, module)]
    assert not wrong, f"{path.relative_to(SOURCE)} may not import {wrong}"


def test_the_rule_catches_an_upward_a_sideways_and_a_reference_import() -> None:
    assert forbidden("models", "mezzotint.pipeline.system")
    assert forbidden("models", "mezzotint.diffusion.schedule")
    assert forbidden("pipeline", "diffusers.UNet2DConditionModel")
    assert not forbidden("pipeline", "mezzotint.models.unet")


def imported_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint('\\n'.join(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.split(".")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_these_modules_leave_torch_out(module: str) -> None:
    assert "torch" not in imported_after(f"import {module}")


def test_a_request_is_validated_without_torch() -> None:
    code = "from mezzotint.pipeline.request import Request\nRequest(prompt='a red fox', sampler='euler', width=520)"
    assert "torch" not in imported_after(code)


def test_every_help_leaves_torch_out() -> None:
    code = """
import contextlib, io
from mezzotint.cli.main import app
import typer.main
command = typer.main.get_command(app)
for verb in [None, *command.commands]:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        command(["--help"] if verb is None else [verb, "--help"], standalone_mode=False)
    assert "Usage" in shown.getvalue()
"""
    assert "torch" not in imported_after(code)


def test_every_module_is_short_enough_to_read() -> None:
    long = {str(path.relative_to(SOURCE)): n for path in files() if (n := len(path.read_text().splitlines())) > 450}
    assert not long
