"""Grids: axes are read exactly, cells are ordinary requests, and the sheet holds their very pixels."""

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import RequestError
from mezzotint.pipeline.grid import MAX_CELLS, Axis, axis, plan, sheet


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("steps=1, 5-10 (+2)", (1, 5, 7, 9)),
        ("steps=3-1", (3, 2, 1)),
        ("steps=1-10 [4]", (1, 4, 7, 10)),
        ("seed=7", (7,)),
        ("guidance=0-1 [5]", (0, 0.25, 0.5, 0.75, 1)),
        ("guidance=1-2 (+0.5),7.5", (1, 1.5, 2, 7.5)),
        ("guidance=9-7 (-1)", (9, 8, 7)),
        ("sampler=euler, DPM++ 2M Karras", ("euler", "DPM++ 2M Karras")),
        ('prompt="red, round",blue', ("red, round", "blue")),
        ("size=64x96,96x64", ((64, 96), (96, 64))),
        ("crop=0x0,8x16", ((0, 0), (8, 16))),
        ("guidance_interval=0.5x10", ((0.5, 10.0),)),
        ("paste=true,false", (True, False)),
        ("eta=0,0.5,1", (0, 0.5, 1)),
        ("solver_type=midpoint,heun", ("midpoint", "heun")),
        ("model=a/b-1,c.safetensors", ("a/b-1", "c.safetensors")),
    ],
)
def test_values_are_lists_and_ranges(text: str, values: tuple[object, ...]) -> None:
    assert axis(text).values == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps", "must be FIELD=VALUES"),
        ("steps=", "must be FIELD=VALUES"),
        ("steps=, ,", "names no value"),
        ("guidance=0-1 [99999999]", "is 99999999 values"),
        ("stepz=1,2", "did you mean 'steps'?"),
        ("image=a.png", "unknown field 'image'"),
        ("count=1,2", "unknown field 'count'"),
        ("steps=1-10 (-1)", "never reaches its end"),
        ("steps=1-10 (+0)", "never reaches its end"),
        (f"seed=0-{MAX_CELLS}", f"is {MAX_CELLS + 1} values"),
        ("size=64", "must be two numbers"),
    ],
)
def test_wrong_axes_are_told(text: str, words: str) -> None:
    with pytest.raises(RequestError) as error:
        axis(text)
    assert words in str(error.value)


def test_cells_are_every_combination_row_by_row_with_one_seed() -> None:
    grid = plan({"prompt": "a fox"}, axis("steps=1,2,3"), axis("sampler=euler,ddim"))
    found = [(c.row, c.column, c.request.steps, c.request.sampler) for c in grid.cells]
    assert found[:4] == [(0, 0, 1, "euler"), (0, 1, 2, "euler"), (0, 2, 3, "euler"), (1, 0, 1, "ddim")]
    seeds = {c.request.seed for c in grid.cells}
    assert len(seeds) == 1
    assert None not in seeds


def test_a_sampler_is_chosen_before_its_options_whichever_axis_it_is_on() -> None:
    for x, y in (("sampler=ddim,euler_ancestral", "eta=0,1"), ("eta=0,1", "sampler=ddim,euler_ancestral")):
        grid = plan({"prompt": "a fox", "seed": 1}, axis(x), axis(y))
        assert {(c.request.sampler, c.request.options["eta"]) for c in grid.cells} == {
            ("ddim", 0), ("ddim", 1), ("euler_ancestral", 0), ("euler_ancestral", 1),
        }  # fmt: skip


def test_prompt_searches_and_replaces_in_both_prompts_on_both_axes() -> None:
    grid = plan(
        {"prompt": "a red fox", "negative": "red grass", "seed": 1}, axis("prompt=red,blue"), axis("prompt=fox,bird")
    )
    assert [(c.request.prompt, c.request.negative) for c in grid.cells] == [
        ("a red fox", "red grass"), ("a blue fox", "blue grass"),
        ("a red bird", "red grass"), ("a blue bird", "blue grass"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "x", "y", "words"),
    [
        ({}, None, None, "a grid needs an axis"),
        ({}, "steps=1,2", "steps=3,4", "both axes vary steps"),
        ({}, "size=64x64,96x96", "width=64,128", "size is width and height"),
        ({}, "height=64,128", "size=64x64,96x96", "size is width and height"),
        ({"count": 2}, "steps=1,2", None, "a grid has one picture in a cell"),
        ({"prompt": "a fox"}, "prompt=red,blue", None, "'red' stands neither in the prompt nor in the negative"),
        ({}, "steps=1,0", None, "cell (steps 0): steps 0: at least 1 step is needed"),
        ({}, "steps=1,2", "sampler=euler,eular", "cell (steps 1, sampler eular): unknown sampler"),
        ({}, "eta=0,1", "sampler=euler,ddim", "cell (eta 0, sampler euler): options: unknown option of euler 'eta'"),
        ({}, "seed=0-99", "steps=1-99", f"at most {MAX_CELLS}"),
    ],
)
def test_wrong_grids_are_told_before_any_work(
    fields: dict[str, object], x: str | None, y: str | None, words: str
) -> None:
    with pytest.raises(RequestError) as error:
        plan(fields, axis(x) if x else None, axis(y) if y else None)
    assert words in str(error.value)


def test_the_sheet_holds_the_pixels_of_every_picture(seeded: np.random.Generator) -> None:
    grid = plan({"prompt": "a fox"}, axis("size=24x16,40x32"), axis("seed=1,2,3"))
    images = [
        Image.fromarray(
            seeded.integers(0, 256, (cell.request.height or 0, cell.request.width or 0, 3)).astype(np.uint8)
        )
        for cell in grid.cells
    ]
    paper, boxes = sheet(grid, images, "a title that is longer than the sheet is wide, so it takes several lines")
    for image, box in zip(images, boxes, strict=True):
        inside = paper.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        assert (np.asarray(inside) == np.asarray(image)).all()
    covered = np.zeros((paper.height, paper.width), int)
    for box in boxes:
        covered[box.top : box.top + box.height, box.left : box.left + box.width] += 1
    assert covered.max() == 1, "no picture lies on another"


def test_labels_are_drawn_and_stay_off_the_pictures() -> None:
    grid = plan({"prompt": "a fox"}, axis("steps=1,2"), axis("sampler=euler,ddim"))
    images = [Image.new("RGB", (64, 64), (250, 248, 244))] * 4
    paper, boxes = sheet(grid, images)
    ink = np.asarray(paper.convert("L")) < 128
    first = boxes[0]
    assert ink[: first.top, first.left :].any(), "labels above columns"
    assert ink[first.top :, : first.left].any(), "labels beside rows"
    for box in boxes:
        assert not ink[box.top : box.top + box.height, box.left : box.left + box.width].any()


def test_a_long_label_is_wrapped_and_widens_nothing() -> None:
    short = sheet(
        plan({"prompt": "a b"}, Axis("prompt", ("a", "b"), ("a", "b")), None), [Image.new("RGB", (64, 64))] * 2
    )
    long = "a" * 60
    grid = plan({"prompt": f"{long} b"}, Axis("prompt", (long, "b"), (long, "b")), None)
    paper, _ = sheet(grid, [Image.new("RGB", (64, 64))] * 2)
    assert paper.width == short[0].width
    assert paper.height > short[0].height


@pytest.fixture
def seeded() -> np.random.Generator:
    """Seeded numbers."""
    return np.random.default_rng(0)
