"""Pictures as a frozen autoencoder sees them, computed once: moments of every view, so that latents stay random.

Squares are displaced a little from view to view; pictures in aspect buckets are cut elsewhere in each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.buckets import BucketRule, Placement
from mezzotint.data.cache import cached, digest_of
from mezzotint.data.latents import bucket_moments
from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet
from mezzotint.data.sample import Size
from mezzotint.errors import ConfigError
from mezzotint.models.vae import LOG_VARIANCE_RANGE, AutoencoderKL
from mezzotint.training.samples import as_image, displaced

CHUNK = 64  # pictures at once without gradients
SQUARE_STEP = 8  # of the rule whose only bucket is a square


@dataclass(frozen=True, slots=True)
class Latents:
    """`pictures` in order; of each the moments of its views and, where they were placed in buckets, how."""

    pictures: PictureSet
    moments: Sequence[Float[Tensor, "views c2 h w"]]
    views: Sequence[Sequence[Placement]] | None

    @property
    def buckets(self) -> list[Size] | None:
        """The bucket of every picture, if they have several shapes."""
        shapes = [Size(moments.shape[-1], moments.shape[-2]) for moments in self.moments]
        return shapes if len(set(shapes)) > 1 else None

    def chunks(self, count: int) -> Iterator[range]:
        """The first `count` pictures in runs of one shape, at most CHUNK at once."""
        start = 0
        for end in range(1, count + 1):
            is_full = end - start == CHUNK
            if end == count or is_full or self.moments[end].shape != self.moments[start].shape:
                yield range(start, end)
                start = end


def check_resolution(resolution: int, factor: int, step: int = 0) -> None:
    """Refuse what the autoencoder cannot halve often enough, or no bucket fits.

    Raises: ConfigError with the nearest resolutions that fit.
    """
    if resolution % factor:
        low = resolution // factor * factor
        raise ConfigError(
            f"data.resolution {resolution}: the autoencoder needs a multiple of {factor}; nearest are "
            f"{low} and {low + factor}"
        )
    if step:
        BucketRule(resolution=resolution, step=step)


def read_latents(
    pictures: PictureSet, autoencoder: AutoencoderKL, size: int, views: int, cache: Path, rule: BucketRule | None
) -> Latents:
    """Moments of all views; one view is the picture as it is. With `rule`, pictures are placed in its buckets."""
    if rule is not None:
        return _placed(pictures, autoencoder, rule, views, cache)

    def moments(rows: range) -> Tensor:
        parts: list[Tensor] = []
        for start in range(rows.start, rows.stop, CHUNK):
            chosen = range(start, min(start + CHUNK, rows.stop))
            pixels = pictures.pixels([row // views for row in chosen], size)
            if views > 1:
                keys = [pictures.pictures[row // views].key for row in chosen]
                generators = [keyed("view", k, row % views) for k, row in zip(keys, chosen, strict=True)]
                pixels = displaced(pixels, generators, flips=False)
            parts.append(autoencoder.moments(as_image(pixels)))
        return torch.cat(parts)

    said = {
        "what": "latents", "version": 1, "pictures": pictures.fingerprint(), "size": size, "views": views,
        "autoencoder": digest_of(autoencoder),
    }  # fmt: skip
    with torch.no_grad():
        found = cached(cache, said, views * len(pictures), moments)
    return Latents(pictures, found.view(-1, views, *found.shape[1:]).unbind(), None)


def square(size: int) -> BucketRule:
    """The rule whose only bucket is a square."""
    return BucketRule(resolution=size, step=SQUARE_STEP, shortest=size, longest=size)


def _placed(pictures: PictureSet, autoencoder: AutoencoderKL, rule: BucketRule, views: int, cache: Path) -> Latents:
    """Moments of pictures in their buckets."""
    sets = [pictures.placed(rule, view if views > 1 else None) for view in range(views)]
    pictures = sets[0][0]
    found = [bucket_moments(pictures, placements, autoencoder, cache) for _, placements in sets]
    moments = [torch.cat([view.of([sample]) for view in found]) for sample in range(len(pictures))]
    return Latents(pictures, moments, list(zip(*(view.placements for view in found), strict=True)))


def sampled(moments: Float[Tensor, "b c2 h w"], generators: Sequence[torch.Generator]) -> Float[Tensor, "b c h w"]:
    """Latents drawn from their Gaussians."""
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
    return mean + (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise
