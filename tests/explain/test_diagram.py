"""Architectures are drawn from their configs: the family's facts, counts that equal the model's, differences marked."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from mezzotint.errors import RequestError
from mezzotint.explain.architecture import Architecture, architecture
from mezzotint.explain.diagram import drawn_svg, drawn_text
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import UNet
from mezzotint.training.plan import unet_flops

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def sdxl() -> Architecture:
    return architecture("sdxl")


@pytest.fixture(scope="module")
def tiny_model() -> Architecture:
    return architecture("tiny")


def test_sdxl_has_three_levels_two_downsamplings_and_no_attention_in_the_first(sdxl: Architecture) -> None:
    down = [row for row in sdxl.rows if row.way == "down"]
    assert [row.layers for row in down] == [(0, 0), (2, 2), (10, 10)]
    assert [row.h for row in down] == [128, 64, 32]
    assert sum(row.resample == "down" for row in sdxl.rows) == sum(row.resample == "up" for row in sdxl.rows) == 2
    middle = next(row for row in sdxl.rows if row.way == "middle")
    assert middle.layers == (10,)
    assert [row.layers for row in sdxl.rows if row.way == "up"] == [(10,) * 3, (2,) * 3, (0,) * 3]
    drawn = drawn_text([sdxl])
    assert "2 ResBlocks, no attention" in drawn
    assert "10 layers, 20 heads" in drawn


def test_counts_equal_the_models(sdxl: Architecture) -> None:
    assert sdxl.parameters == 2_567_463_684
    assert sum(piece.parameters for piece in sdxl.pieces) == sdxl.parameters
    assert sum(piece.flops for piece in sdxl.pieces) == sdxl.flops == unet_flops(PRESETS["sdxl"].unet, 128)


def test_counts_of_blocks_equal_their_modules(tiny_model: Architecture) -> None:
    with torch.device("meta"):
        unet = UNet(PRESETS["tiny"].unet)
    for piece in tiny_model.pieces:
        if "." in piece.name:
            assert piece.parameters == sum(p.numel() for p in unet.get_submodule(piece.name).parameters())


def test_a_row_is_the_sum_of_its_blocks(tiny_model: Architecture) -> None:
    rows, pieces = tiny_model.rows, tiny_model.pieces
    outside = {"keys and values of the words", "level and vector", "conv_in", "conv_out"}
    for of in ("parameters", "flops"):
        inside = sum(getattr(piece, of) for piece in pieces if piece.name not in outside)
        assert sum(getattr(row, of) for row in rows) == inside


def test_a_checkpoint_is_drawn_from_its_own_config(tiny_folder: Path) -> None:
    found = architecture(str(tiny_folder))
    assert found.name == "model"
    assert found.rows == architecture("tiny").rows
    assert found.facts["objective"] == "epsilon"


def test_what_differs_is_marked(tiny_model: Architecture) -> None:
    other = architecture("tiny-xl")
    lines = drawn_text([tiny_model, other]).splitlines()
    marked = {line[2:].split("  ")[0] for line in lines if line.startswith("≠")}
    assert {"context width", "vector", "text towers"} <= marked
    assert not {"levels", "channels", "heads", "objective"} & marked
    assert "≠" not in drawn_text([tiny_model])


def test_the_drawing_is_svg_with_every_block_and_nothing_from_outside(
    sdxl: Architecture, tiny_model: Architecture
) -> None:
    drawing = drawn_svg([tiny_model, sdxl])
    root = ElementTree.fromstring(drawing)
    boxes = [box for box in root.iter(f"{SVG}rect") if box.get("class") != "ground"]
    assert len(boxes) == len(sdxl.rows) + len(tiny_model.rows)
    assert sum("attn" in (box.get("class") or "") for box in boxes) == 5 + 5  # SDXL: two levels of three
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "10 layers, 20 heads" in texts
    assert "≠ 2816" in texts
    assert "http" not in drawing.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
def test_the_drawing_in_the_readme_is_what_the_command_draws() -> None:
    models = [architecture(name) for name in ("sd15", "sd2-v", "sd2-unclip-h", "sdxl", "sdxl-refiner")]
    drawing = Path(__file__).parents[2] / "docs" / "images" / "unets.svg"
    assert drawing.read_text("utf-8") == drawn_svg(models)


def test_an_unknown_name_is_refused_with_the_presets() -> None:
    with pytest.raises(RequestError, match=r"'sdx1': no such file or folder, and no preset; presets: sd15, "):
        architecture("sdx1")
