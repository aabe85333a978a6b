"""Batches that never mix buckets, in an order that is a pure function of (seed, epoch, batch).

Every epoch has the same number of batches, so any of them can be reached without the ones before. All have full size:
the last of a bucket is filled with samples that its bucket shows anyway, which `Filled.fresh` counts apart.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from mezzotint.data.order import keyed


class Filled(NamedTuple):
    """Samples of one bucket; the first `fresh` have their turn of the epoch, the others only fill up."""

    samples: tuple[int, ...]
    fresh: int


class BucketOrder:
    """The order of samples with a bucket each, for ever; positions as in `Order`, `batch` of them at a time.

    Every rank of several processes sees every batch, so that none has more of them than another.
    """

    def __init__(self, buckets: Sequence[Hashable], batch: int, seed: int) -> None:
        if not buckets or batch < 1:
            raise ValueError(f"BucketOrder: {len(buckets)} samples in batches of {batch}; at least 1 of both is needed")
        self.size, self.seed = batch, seed
        members: dict[Hashable, list[int]] = defaultdict(list)
        for sample, bucket in enumerate(buckets):
            members[bucket].append(sample)
        self.members = list(members.values())  # in the order of their first samples
        self.batches = sum(-(-len(listed) // batch) for listed in self.members)  # in an epoch
        self.count = self.batches * batch  # positions in an epoch
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[Filled]:
        found: list[Filled] = []
        for bucket, listed in enumerate(self.members):
            mixed = [*map(int, torch.randperm(len(listed), generator=keyed(self.seed, "bucket", epoch, bucket)))]
            for start in range(0, len(mixed), self.size):
                places = [place % len(mixed) for place in range(start, start + self.size)]
                fresh = min(self.size, len(mixed) - start)
                found.append(Filled(tuple(listed[mixed[place]] for place in places), fresh))
        shuffled = torch.randperm(len(found), generator=keyed(self.seed, "batches", epoch))
        return [found[int(place)] for place in shuffled]

    def batch(self, index: int) -> Filled:
        """Batch number `index` of all epochs together."""
        return self.epoch(index // self.batches)[index % self.batches]

    def samples(self, start: int, count: int) -> list[int]:
        """Samples at positions start … start + count - 1, fillings included."""
        places = range(start, start + count)
        return [self.batch(place // self.size).samples[place % self.size] for place in places]

    def weights(self, start: int, count: int) -> list[float]:
        """Weights of the same positions that make a mean over a whole batch one over its fresh samples."""
        places = [(self.batch(place // self.size).fresh, place % self.size) for place in range(start, start + count)]
        return [self.size / fresh if slot < fresh else 0.0 for fresh, slot in places]
