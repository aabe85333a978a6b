"""Every kind of model can be told: two text towers and sizes, v-prediction, a given picture, a mask."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import mezzotint
from cli.conftest import drawn, save_folder
from mezzotint.checkpoints.checkpoint import default_scheduler
from mezzotint.checkpoints.component import Checkpoint
from mezzotint.explain.story import tell
from mezzotint.explain.words import numbers_section, tokens_section
from mezzotint.models.presets import PRESETS
from mezzotint.pipeline.condition import told
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System, load


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> System:
    """SDXL's form in small, v-prediction."""
    preset = PRESETS["tiny-xl"]
    checkpoint = Checkpoint(
        preset="sdxl",
        objective="v_prediction",
        unet=drawn("unet", preset.unet),
        vae=drawn("vae", preset.vae),
        text=(drawn("text_encoder", preset.text[0]), drawn("text_encoder_2", preset.text[1])),
        scheduler=default_scheduler("sdxl", "v_prediction"),
        tokenizers=(None, None),
        info={"hints": {"unet": {"sample_size": 8}}},
    )
    folder = tmp_path_factory.mktemp("xl") / "model"
    save_folder(checkpoint, folder)
    return load(folder, dtype="float32")


def test_two_towers_and_the_vector_of_sizes_are_told(tiny_xl: System) -> None:
    request = Request(prompt="a red fox", steps=2, seed=1, width=64, height=64)
    told = tell(tiny_xl, request)
    assert np.array_equal(np.asarray(told.result.images[0]), np.asarray(generate(tiny_xl, request).images[0]))
    sections = {section.id: section for section in told.story.sections}
    assert "vector [1 1568]" in sections["numbers"].shapes  # 32 pooled, six sizes of 256
    assert any("2 text towers" in block.get("text", "") for block in sections["tokens"].blocks)
    assert any(code.text.startswith("def sized_vector") for code in sections["numbers"].code)
    widths = " and ".join(f"{tower.config.layers} layers of width {tower.config.width}" for tower in tiny_xl.text)
    assert f"2 text towers ({widths}), side by side, let each token" in sections["numbers"].lead
    assert (told.story.flow or {})["tower"] == "text towers"


@pytest.mark.parametrize(("guidance", "negative", "readings"), [(5.0, "blue", 2), (5.0, None, 1), (1.0, "blue", 1)])
def test_the_time_of_the_text_towers_is_of_all_of_them_and_of_all_that_is_read(
    guidance: float, negative: str | None, readings: int, tiny_xl: System
) -> None:
    """An XL model's negative is zeros where none is given, and not read where guidance is off."""
    request = Request(prompt="fox", negative=negative, guidance=guidance, steps=1, width=64, height=64)
    _, found = tokens_section(tiny_xl, request)
    sides = told(tiny_xl, request)
    calls: list[nn.Module] = []

    def called(tower: nn.Module, *_: object) -> None:
        calls.append(tower)

    handles = [tower.register_forward_hook(called) for tower in tiny_xl.text]
    try:
        numbers_section(tiny_xl, request, found, sides.conditional)
    finally:
        for handle in handles:
            handle.remove()
    assert [sum(one is tower for one in calls) for tower in tiny_xl.text] == [readings, readings]


@pytest.mark.parametrize("has_mask", [False, True])
def test_a_given_picture_is_told(has_mask: bool, tiny: System) -> None:
    photo = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 8, 40, 40))
    fields: dict[str, Any] = {"image": photo, "mask": mask if has_mask else None, "strength": 0.7}  # Any: any field
    request = Request(prompt="a fox", steps=4, seed=1, sampler="euler", **fields)
    told = tell(tiny, request)
    assert np.array_equal(np.asarray(told.result.images[0]), np.asarray(generate(tiny, request).images[0]))
    noise = next(section for section in told.story.sections if section.id == "noise")
    assert "given picture's latent" in noise.lead


def test_guidance_that_is_off_is_said(tiny: System, tmp_path: Path) -> None:
    story = mezzotint.explain(tiny, prompt="a fox", steps=2, guidance=1.0, full_maps=tmp_path / "maps.npz")
    assert next(section for section in story.sections if section.id == "guidance").title == "Guidance is off"
    assert (tmp_path / "maps.npz").stat().st_size > 0
