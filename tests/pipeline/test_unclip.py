"""From a picture to the vector of unCLIP models."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import CLIP_MEAN, CLIP_STD
from mezzotint.pipeline.unclip import Statistics, clip_pixels, noised_vector, read_statistics


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (120, 330)])
def test_crop_is_what_transformers_does(size: tuple[int, int]):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    processor: Any = import_module("transformers").CLIPImageProcessor()  # Any: untyped
    theirs = processor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(clip_pixels(image, 224, "crop"), theirs)


def test_ldm_squashes_and_keeps_the_corners():
    """Corners aligned: the first and last pixels of a picture that is only enlarged are those of the result."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    x = clip_pixels(Image.fromarray(pixels), 64, "ldm")
    unit = x[0] * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    corners = torch.as_tensor(pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.float32)).T / 255
    torch.testing.assert_close(unit[:, [0, 0, -1, -1], [0, -1, 0, -1]], corners)


def test_ldm_blurs_before_it_shrinks():
    """A fine checkerboard becomes grey: without the blur it would alias."""
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    x = clip_pixels(Image.fromarray(board).convert("RGB"), 64, "ldm")
    unit = x[0] * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]
    assert (unit - 0.5).abs().max() < 0.01


def test_noise_grows_with_its_level_and_is_told():
    statistics = Statistics(torch.full((1, 8), 2.0), torch.full((1, 8), 3.0))
    embedding, noise = torch.randn(1, 8), torch.randn(1, 8)
    none, all_of_it = (noised_vector(embedding, statistics, level, noise) for level in (0, 999))
    torch.testing.assert_close(none[:, :8], embedding, atol=0.2, rtol=0)
    torch.testing.assert_close(all_of_it[:, :8], noise * 3 + 2, atol=1e-2, rtol=0)
    assert none.shape == (1, 16)
    assert not torch.equal(none[:, 8:], all_of_it[:, 8:])


def test_statistics_are_read_and_checked(tmp_path: Path):
    path = tmp_path / "stats.safetensors"
    write_state(path, {"mean": torch.arange(4.0), "std": torch.ones(4)})
    assert torch.equal(read_statistics(path, 4).mean, torch.arange(4.0)[None])
    with pytest.raises(CheckpointError, match="no mean and std of width 768"):
        read_statistics(path, 768)
