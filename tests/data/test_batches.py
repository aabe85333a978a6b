"""Batches of buckets: everything once per epoch, never mixed, and any of them can be asked for alone."""

import random
from collections import Counter

import pytest

from mezzotint.data.batches import BucketOrder

BUCKETS = random.Random(0).choices(["square", "wide", "tall", "rare"], weights=[60, 25, 14, 1], k=203)


def seen(order: BucketOrder, epoch: int) -> Counter[int]:
    """How often each sample has its turn in an epoch."""
    batches = [order.batch(epoch * order.batches + i) for i in range(order.batches)]
    return Counter(sample for batch in batches for sample in batch.samples[: batch.fresh])


@pytest.mark.parametrize("size", [1, 4, 7, 300])
def test_every_sample_once_per_epoch(size: int) -> None:
    order = BucketOrder(BUCKETS, size, seed=5)
    for epoch in range(3):
        assert seen(order, epoch) == Counter(range(len(BUCKETS)))


def test_no_batch_mixes_buckets_or_is_short() -> None:
    order = BucketOrder(BUCKETS, 8, seed=5)
    for i in range(3 * order.batches):
        batch = order.batch(i)
        assert len(batch.samples) == 8
        assert len({BUCKETS[sample] for sample in batch.samples}) == 1


def test_the_laws_catch_buckets_that_are_batched_together() -> None:
    """The broken variant: one order over all samples, cut into batches, mixes buckets."""
    mixed = BucketOrder(["any"] * len(BUCKETS), 8, seed=5)
    assert seen(mixed, 0) == Counter(range(len(BUCKETS)))
    assert any(len({BUCKETS[s] for s in mixed.batch(i).samples}) > 1 for i in range(mixed.batches))


def test_any_batch_can_be_asked_for_alone() -> None:
    order = BucketOrder(BUCKETS, 8, seed=5)
    whole = [order.batch(i) for i in range(3 * order.batches)]
    for i in (0, 1, order.batches - 1, order.batches, 3 * order.batches - 1):
        assert BucketOrder(BUCKETS, 8, seed=5).batch(i) == whole[i]
    flat = [sample for batch in whole for sample in batch.samples]
    assert BucketOrder(BUCKETS, 8, seed=5).samples(8 * order.batches + 3, 11) == flat[8 * order.batches + 3 :][:11]


def test_epochs_and_seeds_differ() -> None:
    order = BucketOrder(BUCKETS, 8, seed=5)
    epochs = [{frozenset(batch.samples) for batch in order.epoch(epoch)} for epoch in (0, 1)]
    assert len(epochs[0] & epochs[1]) < order.batches / 4  # not the same batches in another order
    first = order.samples(0, order.count)
    assert first != order.samples(order.count, order.count)
    assert first != BucketOrder(BUCKETS, 8, seed=6).samples(0, order.count)


def test_weights_make_the_mean_one_over_fresh_samples() -> None:
    order = BucketOrder(BUCKETS, 8, seed=5)
    for i in range(order.batches):
        weights, fresh = order.weights(8 * i, 8), order.batch(i).fresh
        assert sum(weights) == pytest.approx(8)
        assert [weight > 0 for weight in weights] == [slot < fresh for slot in range(8)]


def test_nothing_to_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="0 samples in batches of 4"):
        BucketOrder([], 4, seed=0)
