"""From a picture to the vector that unCLIP models are conditioned on: preprocessing, noise, level.

The vector is the picture's CLIP embedding, noised in normalised coordinates, followed by a sinusoid of how much noise
that was. The negative side of guidance is a vector of zeros, level included.

Source: Ramesh et al. 2022, arXiv:2204.06125; preprocessing and noise as in Stability-AI/stablediffusion and diffusers.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.errors import CheckpointError
from mezzotint.images import to_array
from mezzotint.models.clip import CLIP_MEAN, CLIP_STD
from mezzotint.models.unet import timestep_embedding


class Statistics(NamedTuple):
    """Mean and standard deviation of CLIP embeddings over the training pictures."""

    mean: Float[Tensor, "1 p"]
    std: Float[Tensor, "1 p"]


def clip_pixels(image: Image.Image, size: int, how: Literal["ldm", "crop"] = "ldm") -> Float[Tensor, "1 3 s s"]:
    """The picture as the image tower wants it.

    ldm   squashed to a square, blurred against aliasing, bicubic with corners aligned: what the models were trained on
    crop  shortest side to size, centre cut out: what diffusers does
    The two are equal only for square pictures that need no shrinking.
    """
    if how == "crop":
        scale = size / min(image.size)
        width, height = (size if side == min(image.size) else int(side * scale) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        x = torch.as_tensor(to_array(resized.crop((left, top, left + size, top + size))))[None]
    else:
        x = torch.as_tensor(to_array(image))[None]
        x = _blurred(x, (x.shape[2] / size, x.shape[3] / size))
        x = F.interpolate(x, (size, size), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((x + 1) / 2 - mean) / std


def noised_vector(
    embedding: Float[Tensor, "1 p"], statistics: Statistics, level: int, noise: Float[Tensor, "1 p"]
) -> Float[Tensor, "1 v"]:
    """The conditioning vector, v = 2 p: the embedding after `level` of 1000 steps of noise, and the level. float32."""
    normal = (embedding.float() - statistics.mean) / statistics.std
    noised = NoiseSchedule.cosine().add_noise(normal, noise, torch.tensor([level])) * statistics.std + statistics.mean
    told = timestep_embedding(torch.tensor([float(level)]), embedding.shape[1])
    return torch.cat([noised, told], dim=1)


def read_statistics(path: Path, width: int) -> Statistics:
    """Mean and standard deviation from a file such as Karlo's ViT-L-14_stats.th or a diffusers image_normalizer.

    Raises: CheckpointError if the file does not hold both, in the width of the model's embeddings.
    """
    from mezzotint.checkpoints.files import read_state

    if path.suffix != ".safetensors":
        from mezzotint.checkpoints.quarantine import to_safetensors

        path = to_safetensors(path)
    state = {key.rpartition(".")[2]: tensor.float().reshape(1, -1) for key, tensor in read_state(path).items()}
    if not {"mean", "std"} <= state.keys() or {state["mean"].shape[1], state["std"].shape[1]} != {width}:
        raise CheckpointError(
            f"{str(path)!r}: no mean and std of width {width}; unCLIP needs ViT-L-14_stats.th or alike"
        )
    return Statistics(state["mean"], state["std"])


def _blurred(x: Float[Tensor, "1 3 h w"], factors: tuple[float, float]) -> Float[Tensor, "1 3 h w"]:
    """Gaussian blur of (factor - 1) / 2 pixels along each side, if either side shrinks. Source: kornia's resize."""
    if max(factors) <= 1:
        return x
    for dim, factor in zip((2, 3), factors, strict=True):
        sigma = max((factor - 1) / 2, 0.001)
        taps = int(max(4 * sigma, 3)) | 1
        at = np.arange(taps) - taps // 2
        weights = torch.tensor(np.exp(-(at**2) / (2 * sigma**2)), dtype=torch.float32)
        kernel = (weights / weights.sum()).view([1, 1, taps, 1] if dim == 2 else [1, 1, 1, taps]).expand(3, -1, -1, -1)
        pad = taps // 2
        x = F.conv2d(F.pad(x, (0, 0, pad, pad) if dim == 2 else (pad, pad, 0, 0), mode="reflect"), kernel, groups=3)
    return x
