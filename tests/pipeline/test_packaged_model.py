"""The model in this package: what it is, that diffusers makes its pictures, and that it draws what it is asked for."""

import math
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.checkpoints.files import read_header, read_json
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.source import packaged_model
from mezzotint.pipeline.system import load

PROMPTS = ("a red heart, twemoji", "a snowman, noto emoji")
MOST_BYTES = 90e6
MOST_PARAMETERS = {"unet": 20e6, "vae": 3e6, "text_encoder": 8e6}


@pytest.fixture(scope="module")
def folder() -> Path:
    found = packaged_model()
    assert found is not None
    return found


def picture(prompt: str, steps: int = 10) -> Image.Image:
    return generate(load(dtype="float32"), prompt=prompt, steps=steps, guidance=3.0, seed=1).images[0]


def test_it_is_small_and_says_where_it_comes_from(folder: Path) -> None:
    weights = {file.parent.name: file for file in folder.rglob("*.safetensors")}
    assert set(weights) == set(MOST_PARAMETERS)
    assert sum(file.stat().st_size for file in (folder.parent).rglob("*.safetensors")) <= MOST_BYTES
    for name, file in weights.items():
        count = sum(math.prod(info.shape) for info in read_header(file).tensors.values())
        assert count <= MOST_PARAMETERS[name]
        card: dict[str, Any] = read_json(file.parent / "card.json")
        assert card["sources"]
        assert all(source["licence"] != "not said" for source in card["sources"].values())
    told = (folder / "README.md").read_text("utf-8")
    assert "pairs that training held back" in told
    assert "FD-evaluator" in told


@pytest.mark.parametrize("prompt", PROMPTS)
def test_diffusers_makes_the_same_picture(folder: Path, prompt: str) -> None:
    diffusers: Any = import_module("diffusers")  # Any: untyped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        theirs = pipe(
            prompt,
            num_inference_steps=10,
            guidance_scale=3.0,
            height=64,
            width=64,
            generator=torch.Generator().manual_seed(1),
        ).images[0]
    ours, other = (np.asarray(image, dtype=np.float64) for image in (picture(prompt), theirs))
    error = float(np.mean((ours - other) ** 2))
    assert error == 0 or 10 * math.log10(255**2 / error) >= 50


def test_it_draws_what_it_is_asked_for() -> None:
    """Colours follow the words on a white ground; a heart is red where a blue one is blue."""
    for color, channel in (("red", 0), ("blue", 2)):
        drawn = np.asarray(picture(f"a {color} heart, twemoji", steps=20), dtype=np.float64)
        middle, corners = drawn[24:40, 24:40].mean((0, 1)), drawn[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert middle[channel] > 1.5 * middle[2 - channel], color
        assert corners.min() > 200
