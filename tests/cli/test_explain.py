"""`mezzotint explain` and `inspect --diagram`: what is written, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from cli.conftest import Command, refuses


def test_page_data_and_maps_come_from_one_run(mezzotint: Command, world: Path) -> None:
    ran = mezzotint(
        "explain", "a fox", "-m", "model", "--steps", "2", "-o", "page.html", "--full-maps", "maps.npz", "--json"
    )
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["title"] == "a fox"
    assert (world / "page.html").read_text().startswith("<!doctype html>")
    with np.load(world / "maps.npz") as maps:
        assert {name.split("/")[0] for name in maps.files} == {"step-000", "step-001"}


def test_json_alone_writes_no_page(mezzotint: Command, world: Path) -> None:
    assert mezzotint("explain", "a fox", "-m", "model", "--steps", "1", "--json").code == 0
    assert not (world / "story.html").exists()


def test_models_are_compared(mezzotint: Command, world: Path) -> None:
    both = ("--compare", "model=model", "model=copy")
    assert mezzotint("convert", "model", "copy").code == 0
    ran = mezzotint("explain", "a fox", "--steps", "2", *both, "-o", "two.json")
    assert ran.code == 0, ran.err
    story = json.loads((world / "two.json").read_text())
    assert story["title"] == "model=model | model=copy"
    assert {point[1] for point in story["sections"][-1]["blocks"][0]["lines"][0]["points"]} == {0.0}


def test_a_drawing_is_text_data_and_svg(mezzotint: Command, world: Path) -> None:
    ran = mezzotint("inspect", "model", "tiny-xl", "--diagram", "--svg", "two.svg", "--json")
    assert [model["name"] for model in json.loads(ran.out)] == ["model", "tiny-xl"]
    assert (world / "two.svg").read_text().startswith("<svg")
    assert "≠ context width" in mezzotint("inspect", "model", "tiny-xl", "--diagram").out


REFUSED = [
    (["explain", "-m", "model"], 2, "PROMPT is needed"),
    (["explain", "x", "-m", "model", "--compare", "guidence=1", "guidance=2"], 2, "did you mean 'guidance'"),
    (["explain", "-m", "model", "--compare", "guidance=1", "guidance=2"], 2, "PROMPT is needed, the same for both"),
    (["explain", "x", "-m", "model", "--compare", "seed=1", "seed=2"], 2, "needs one seed for both"),
    (["explain", "x", "-m", "model", "--compare", "a", "b", "--full-maps", "m.npz"], 2, "leave out --compare"),
    (["explain", "x", "--train", "sd-v1-5"], 2, "leave out PROMPT"),
    (["explain", "--train", "sd-v1-6"], 2, "did you mean"),
    (["explain", "--train", "sd-v1-5"], 2, "--data PICTURES is needed"),
    (["inspect", "model", "unclip"], 2, "one is told at a time"),
    (["inspect", "model", "--svg", "x.svg"], 2, "give both"),
    (["inspect", "sdxxl", "--diagram"], 2, "no such file or folder, and no preset"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_wish_is_told_in_a_line_and_leaves_nothing(
    arguments: list[str], code: int, words: str, mezzotint: Command, world: Path
) -> None:
    refuses(mezzotint, world, arguments, code, words)
