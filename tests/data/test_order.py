"""The order of samples is a law of (seed, position), and draws belong to what they are keyed by."""

import pytest
import torch

from mezzotint.data.order import GROUP, Order, key, keyed


def test_every_epoch_is_a_permutation_and_no_two_are_alike() -> None:
    order = Order(101, seed=3)
    epochs = [order.samples(101 * epoch, 101) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(101)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert Order(101, seed=4).samples(0, 101) != epochs[0]


def test_any_position_can_be_asked_for_alone() -> None:
    """Seeking equals having read everything before, across epochs: a restart needs the position and nothing else."""
    whole = Order(7, seed=0).samples(0, 50)
    for start in range(0, 50, 3):
        assert Order(7, seed=0).samples(start, 3)[: 50 - start] == whole[start : start + 3]


def test_groups_stay_together_and_epochs_stay_permutations() -> None:
    groups = [str(i // 8) for i in range(80)]
    epoch = Order(80, seed=1, groups=groups).samples(0, 80)
    assert sorted(epoch) == list(range(80))
    labels = [groups[sample] for sample in epoch]
    chunks = [labels[i : i + GROUP] for i in range(0, 80, GROUP)]
    assert all(len(set(chunk)) == 1 for chunk in chunks)
    assert labels != sorted(labels)


def test_nothing_to_order_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Order(0, seed=0)


def test_keys_differ_in_every_part_and_never_change() -> None:
    parts = [(0, "noise", 1), (0, "noise", 2), (1, "noise", 1), (0, "dropout", 1), (0, "noise1"), ("0", "noise", 1)]
    assert len({key(*part) for part in parts}) == len(parts)
    assert key(0, "noise", 1) == 1636746804693905518  # stored runs depend on it
    torch.testing.assert_close(torch.rand(3, generator=keyed("a", 1)), torch.rand(3, generator=keyed("a", 1)))
