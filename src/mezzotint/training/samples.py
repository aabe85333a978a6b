"""Pictures as parts see them: which ones train and which are held out, small displacements, and sheets of results."""

import logging
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet, read_pictures
from mezzotint.training.config import DataConfig
from mezzotint.training.part import Inputs

log = logging.getLogger(__name__)

HELD_OUT_SHARE = 0.02  # of a set that does not say itself which pictures are held out
MOST_SHIFT = 16  # a displaced picture moves by up to size / MOST_SHIFT
WHITE = 255


def read_split(inputs: Inputs, data: DataConfig) -> tuple[PictureSet, PictureSet]:
    """(training pictures, held-out pictures): the set's own split if it has one, else one in fifty by their keys."""
    if (inputs.data / "train.parquet").exists():
        train, held = read_pictures(inputs.data / "train.parquet"), read_pictures(inputs.data / "heldout.parquet")
        train = train.select(data.where, by=data.by, at_least=data.at_least)
        return _filtered(train, data), _filtered(held.select(data.where), data)
    every = _filtered(read_pictures(inputs.data).select(data.where, by=data.by, at_least=data.at_least), data)
    is_held = [float(torch.rand((), generator=keyed("held-out", p.key))) < HELD_OUT_SHARE for p in every.pictures]
    parts = [
        PictureSet(tuple(p for p, held in zip(every.pictures, is_held, strict=True) if held == side)) for side in (0, 1)
    ]
    return parts[0], parts[1] if len(parts[1]) else parts[0]


def _filtered(pictures: PictureSet, data: DataConfig) -> PictureSet:
    """What the data rule leaves, with a line in the log for every gate."""
    if data.filters is None:
        return pictures
    kept, card = pictures.curated(data.filters)
    for gate in card.gates:
        log.info("%s: %d of %d left", gate.gate, gate.left, gate.judged)
    return kept


def as_image(pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    """0 … 255 as -1 … 1."""
    return pixels.float() / 127.5 - 1


def displaced(
    pixels: UInt8[Tensor, "b 3 s s"], generators: Iterable[torch.Generator], *, flips: bool
) -> UInt8[Tensor, "b 3 s s"]:
    """Each picture moved a little on a white ground and, with `flips`, mirrored every second time, by its generator."""
    size = pixels.shape[-1]
    most = size // MOST_SHIFT
    moved: list[Tensor] = []
    for picture, generator in zip(F.pad(pixels, (most,) * 4, value=WHITE), generators, strict=True):
        top, left, side = (int(n) for n in torch.randint(2 * most + 1, (3,), generator=generator))
        window = picture[:, top : top + size, left : left + size]
        moved.append(window.flip(-1) if flips and side % 2 else window)
    return torch.stack(moved)


def sheet_of(rows: Sequence[Float[Tensor, "b 3 s s"]]) -> Image.Image:
    """Rows of pictures as one, values clamped to [-1, 1]."""
    drawn = [torch.cat([*row.float().clamp(-1, 1)], dim=-1) for row in rows]  # each [3 s b*s]
    pixels = ((torch.cat(drawn, dim=-2) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
