"""Caches: computed once, continued where they stopped, and other inputs never meet old values."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mezzotint.data import cache
from mezzotint.data.cache import cached, digest_of


def squares(rows: range) -> Tensor:
    return torch.tensor([row**2 for row in rows])


def test_interrupted_computation_continues_at_the_missing_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD", 4)
    asked: list[range] = []

    def stops(rows: range) -> Tensor:
        asked.append(rows)
        if rows.start == 8:
            raise KeyboardInterrupt
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, {"what": "squares"}, 10, stops)
    asked.clear()

    def goes_on(rows: range) -> Tensor:
        asked.append(rows)
        return squares(rows)

    assert torch.equal(cached(tmp_path, {"what": "squares"}, 10, goes_on), squares(range(10)))
    assert asked == [range(8, 10)]


def test_other_inputs_are_another_cache(tmp_path: Path) -> None:
    cached(tmp_path, {"weights": "a"}, 3, squares)
    assert torch.equal(cached(tmp_path, {"weights": "b"}, 3, lambda rows: -squares(rows)), torch.tensor([0, -1, -4]))
    assert torch.equal(cached(tmp_path, {"weights": "a"}, 3, lambda rows: -squares(rows)), torch.tensor([0, 1, 4]))


def test_digest_follows_every_weight_and_dtype() -> None:
    network = nn.Linear(2, 2)
    first = digest_of(network)
    assert digest_of(network) == first
    assert digest_of(nn.Linear(2, 2).double()) != first
    with torch.no_grad():
        network.bias[1] += 1e-3
    assert digest_of(network) != first
