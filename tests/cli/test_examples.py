"""Every example in README and in `--help` runs as it is printed."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main

from cli.conftest import Command
from mezzotint.cli.main import app

ROOT = Path(__file__).parent.parent.parent
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]  # click's group is not typed


SCORED = ("pictures", "--clip", "evaluator", "--workers", "1", "--chunk", "3")
MEASURED = {  # folders that examples name, and what evaluates them
    "measured": SCORED, "measured-again": SCORED,
    "shards/1": (*SCORED, "--shard", "1/2"), "shards/2": (*SCORED, "--shard", "2/2"),
}  # fmt: skip
NOT_RUN = {  # beginnings of examples, and why
    "data build icons": "fetches packages with npm from the network",
    "serve -m": "serves until it is ended",
}


def in_help() -> list[str]:
    found: list[str] = []
    groups = [(name, getattr(command, "commands", {name: command})) for name, command in COMMANDS.items()]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType, reportUnknownArgumentType]
    for name, command in [item for _, commands in groups for item in commands.items()]:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        examples = re.findall(r"Example: (mezzotint .*)", str(command.help))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        assert examples, f"--help of {name} shows no example"
        found += examples
    return found


def in_readme() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line.partition("   #")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(mezzotint [^`]*)`", text[: text.index("## Tree")])
    return [line for line in lines if line.startswith("mezzotint ") and "$(" not in line]


def test_there_are_examples_of_every_verb() -> None:
    verbs = {line.split()[1] for line in in_help()}
    assert verbs == set(COMMANDS)  # pyright: ignore[reportUnknownArgumentType]
    assert {"generate", "edit", "vary", "convert", "replay"} <= {line.split()[1] for line in in_readme()}


@pytest.mark.parametrize("line", sorted({*in_help(), *in_readme()}))
def test_example_runs(line: str, mezzotint: Command, world: Path) -> None:
    arguments = shlex.split(line)[1:]
    if any(line.startswith(f"mezzotint {beginning} ") for beginning in NOT_RUN):
        arguments.append("--help")  # still refuses options that do not exist
    if "picture.png" in arguments:
        made = mezzotint("generate", "a red fox", "-m", "model", "--steps", "2", "-o", "made")
        Path(made.out.strip()).rename(world / "picture.png")
    for folder in MEASURED.keys() & {word for before, word in pairwise(arguments) if before != "--out"}:
        mezzotint("evaluate", *MEASURED[folder], "--out", folder)
    ran = mezzotint(*arguments)
    assert ran.code == 0, ran.err
    assert ran.out.strip(), "an example that prints nothing shows nothing"
