"""Moments of pictures in their buckets, cached per bucket. Not samples: a latent is drawn anew every time it is used.

The key of a bucket's cache covers its pictures and captions, how each is resized and cut, and the autoencoder's
weights; pictures that join other buckets leave it alone.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.buckets import Placement
from mezzotint.data.cache import cached, digest_of
from mezzotint.data.pictures import PictureSet
from mezzotint.data.sample import Size
from mezzotint.errors import MezzotintError
from mezzotint.models.vae import AutoencoderKL

CHUNK = 8  # pictures encoded at once


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketMoments:
    """Means and log-variances of every sample's latent, by bucket."""

    placements: Sequence[Placement]  # of every sample
    rows: Sequence[int]  # of every sample, in its bucket's tensor
    moments: Mapping[Size, Float[Tensor, "n c2 h w"]]

    def of(self, samples: Sequence[int]) -> Float[Tensor, "b c2 h w"]:
        """Moments of samples that share a bucket.

        Raises: ValueError if they do not.
        """
        buckets = {self.placements[sample].target for sample in samples}
        if len(buckets) != 1:
            raise ValueError(f"BucketMoments: one batch of {len(buckets)} buckets {sorted(buckets)}")
        return self.moments[buckets.pop()][[self.rows[sample] for sample in samples]]

    def ids(self, samples: Sequence[int]) -> Float[Tensor, "b 6"]:
        """XL's size conditioning of the samples."""
        return torch.tensor([self.placements[sample].ids for sample in samples], dtype=torch.float32)


def bucket_moments(
    pictures: PictureSet, placements: Sequence[Placement], network: AutoencoderKL, cache: Path
) -> BucketMoments:
    """The moments that the autoencoder gives for the pictures, cut as `placements` say; from disk where they are there.

    Raises: MezzotintError if one is not finite, with the picture's name.
    """
    members: dict[Size, list[int]] = defaultdict(list)
    rows: list[int] = []
    for sample, place in enumerate(placements):
        rows.append(len(members[place.target]))
        members[place.target].append(sample)
    weights = digest_of(network)
    found: dict[Size, Tensor] = {}
    for bucket, samples in members.items():
        part = PictureSet(tuple(pictures.pictures[sample] for sample in samples))
        cuts = [placements[sample] for sample in samples]
        depends_on = {
            "what": f"latents of {bucket.width}x{bucket.height}", "version": 1, "pictures": part.fingerprint(),
            "cuts": hashlib.sha256(json.dumps(cuts).encode()).hexdigest(), "autoencoder": weights,
        }  # fmt: skip

        def compute(wanted: range, part: PictureSet = part, cuts: Sequence[Placement] = cuts) -> Tensor:
            parts: list[Tensor] = []
            for start in range(wanted.start, wanted.stop, CHUNK):
                chosen = range(start, min(start + CHUNK, wanted.stop))
                parts.append(network.moments(part.cut(chosen, cuts).float() / 127.5 - 1))
                for row, moments in zip(chosen, parts[-1], strict=True):
                    if not moments.isfinite().all():
                        raise MezzotintError(f"the latent of {part.pictures[row].key} is not finite")
            return torch.cat(parts)

        with torch.no_grad():
            found[bucket] = cached(cache, depends_on, len(samples), compute)
    return BucketMoments(placements=tuple(placements), rows=tuple(rows), moments=found)
