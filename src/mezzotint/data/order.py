"""Which sample comes when, and the random numbers that belong to it: pure functions, so nothing needs to be saved.

Position p of a run is sample `p % count` of epoch `p // count`; every epoch is a permutation keyed by (seed, epoch).
Every draw that belongs to a sample comes from a generator keyed by what it is for, so that the number of workers,
processes or restarts cannot change it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

GROUP = 4  # samples of one group that stay next to each other in a grouped order


def key(*parts: Hashable) -> int:
    """A 63-bit number decided by the parts, all of them str or int."""
    digest = hashlib.blake2b("|".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def keyed(*parts: Hashable) -> torch.Generator:
    """A CPU generator that starts where the parts say."""
    return torch.Generator("cpu").manual_seed(key(*parts))


class Order:
    """The order of `count` samples for ever. With `groups` (one label per sample), up to GROUP samples of one label
    stay together, which puts hard negatives into every contrastive batch; each epoch is still a permutation.
    """

    def __init__(self, count: int, seed: int, groups: Sequence[Hashable] | None = None) -> None:
        if count < 1:
            raise ValueError("Order: no samples to order")
        self.count, self.seed, self.groups = count, seed, groups
        self.permutation = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> Tensor:
        mixed = torch.randperm(self.count, generator=keyed(self.seed, "order", epoch))
        if self.groups is None:
            return mixed
        members: dict[Hashable, list[int]] = defaultdict(list)
        for sample in map(int, mixed):
            members[self.groups[sample]].append(sample)
        chunks = [listed[i : i + GROUP] for listed in members.values() for i in range(0, len(listed), GROUP)]
        shuffled = torch.randperm(len(chunks), generator=keyed(self.seed, "groups", epoch))
        return torch.tensor([sample for chunk in shuffled for sample in chunks[int(chunk)]])

    def samples(self, start: int, count: int) -> list[int]:
        """Samples at positions start … start + count - 1."""
        places = range(start, start + count)
        return [int(self.permutation(place // self.count)[place % self.count]) for place in places]
