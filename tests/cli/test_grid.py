"""`mezzotint grid` on a small model: every cell is the solo picture, the sheet tells how each was made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Command
from mezzotint.images import read_metadata

STEPS, SAMPLERS = ("1", "2"), ("euler", "dpmpp_2m")
MADE = ["a red heart", "-m", "model", "--seed", "5", "--guidance", "2"]


def test_every_cell_is_the_picture_that_its_request_gives_alone(mezzotint: Command) -> None:
    ran = mezzotint("grid", *MADE, "--x", "steps=1,2", "--y", "sampler=euler,dpmpp_2m", "--cells", "--json")
    assert ran.code == 0, ran.err
    made: dict[str, Any] = json.loads(ran.out)  # Any: JSON
    with Image.open(made["path"]) as opened:
        paper = opened.convert("RGB")
    record = read_metadata(Path(made["path"])).record
    assert record is not None
    assert [(cell["row"], cell["column"]) for cell in made["cells"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for i, cell in enumerate(made["cells"]):
        left, top, width, height = cell["box"]
        inside = np.asarray(paper.crop((left, top, left + width, top + height)))
        steps, sampler = STEPS[int(cell["column"])], SAMPLERS[int(cell["row"])]
        alone = mezzotint("generate", *MADE, "--steps", steps, "--sampler", sampler).out.strip()
        with Image.open(alone) as image, Image.open(cell["path"]) as saved:
            assert (np.asarray(image) == inside).all()
            assert (np.asarray(saved) == inside).all()
        told = record["cells"][i]["request"]
        assert (told["steps"], told["sampler"], told["seed"]) == (int(steps), sampler, 5)


def test_the_sheet_carries_the_axes_in_both_texts(mezzotint: Command) -> None:
    ran = mezzotint("grid", *MADE, "--x", "prompt=red,blue", "--steps", "1")
    assert ran.code == 0, ran.err
    metadata = read_metadata(Path(ran.out.strip()))
    assert metadata.record is not None
    assert metadata.infotext is not None
    assert metadata.record["grid"] == {"x": {"field": "prompt", "values": ["red", "blue"]}, "y": None}
    assert metadata.infotext.items["Script"] == "X/Y/Z plot"
    assert metadata.infotext.items["X Values"] == "red, blue"
    again = mezzotint("replay", ran.out.strip(), "-m", "model")
    assert again.code == 2
    assert "the picture is a grid of several" in again.err


def test_models_can_be_compared(mezzotint: Command, world: Path) -> None:
    assert mezzotint("convert", "model", "copy.safetensors").code == 0
    ran = mezzotint("grid", *MADE, "--x", "model=model,copy.safetensors", "--y", "steps=1,2", "--json")
    assert ran.code == 0, ran.err
    made: dict[str, Any] = json.loads(ran.out)  # Any: JSON
    with Image.open(made["path"]) as paper:
        first, second, *_ = (
            np.asarray(paper.crop((left, top, left + width, top + height)))
            for left, top, width, height in (cell["box"] for cell in made["cells"])
        )
    assert (first == second).all(), "the same weights from another file"
    record = read_metadata(Path(made["path"])).record
    assert record is not None
    sources = [cell.get("model", record["model"])["unet"]["source"] for cell in record["cells"]]
    assert sources == ["model", "copy.safetensors"] * 2


def test_what_is_approximated_is_told_once_and_stands_in_the_sheet(mezzotint: Command) -> None:
    ran = mezzotint("grid", *MADE, "--x", "level=full,fast", "--y", "seed=1,2")
    assert ran.code == 0, ran.err
    assert ran.err.count("approximated: level fast") == 1
    record = read_metadata(Path(ran.out.strip())).record
    assert record is not None
    assert [cell["approximated"] and cell["approximated"]["level"] for cell in record["cells"]] == [None, "fast"] * 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--x", "stepz=1"], "did you mean 'steps'?"),
        ([], "a grid needs an axis"),
        (["--x", "steps=1,0"], "cell (steps 0)"),
    ],
)
def test_wrong_grids_are_refused_before_the_model_is_read(
    arguments: list[str], words: str, mezzotint: Command, world: Path
) -> None:
    ran = mezzotint("grid", "a red heart", "-m", "nowhere", *arguments)
    assert (ran.code, words in ran.err) == (2, True), ran.err
    assert not (world / "outputs").exists()
