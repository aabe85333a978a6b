"""Intervals hold what they promise, in known cases and by simulation."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

from mezzotint.evaluation.estimate import Estimate, difference, is_significant, jackknife, mean, share, student

stats: Any = import_module("scipy.stats")  # Any: untyped


@pytest.mark.parametrize(("hits", "of"), [(0, 10), (10, 10), (1, 3), (417, 835), (5, 24)])
def test_intervals_are_wilsons(hits: int, of: int) -> None:
    wanted = stats.binomtest(hits, of).proportion_ci(0.95, "wilson")
    found = share(hits, of)
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-12), pytest.approx(wanted.high, abs=1e-12))
    assert found.value == hits / of


def test_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="share: 0 of 0"):
        share(0, 0)
    with pytest.raises(ValueError, match="share: 4 of 3"):
        share(4, 3)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 19, 20, 99, 9999])
def test_students_points_are_scipys(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """For a mean of equal blocks the jackknife is exact; without the factor m - 1 it would be 19 times too narrow."""
    values = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy().tolist()
    without = [(math.fsum(values) - one) / 19 for one in values]
    found, wanted = jackknife(math.fsum(values) / 20, without, 20), mean(values, 20, "values")
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=1e-12), pytest.approx(wanted.high, abs=1e-12))
    low, high = stats.t.interval(0.95, 19, math.fsum(values) / 20, stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_an_interval_stays_where_the_quantity_can_be() -> None:
    assert jackknife(0.1, [0.0, 0.1, 0.2], 9, floor=0.0).low == 0.0


def test_one_value_has_no_interval_and_says_so() -> None:
    for found in (jackknife(2.0, [], 5), mean([2.0], 5, "splits")):
        assert (found.low, found.high) == (None, None)
        assert "no interval" in found.how
        assert not is_significant(difference(found, share(1, 2)))


def interval(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high, count=10, how="given")


def test_a_difference_takes_the_sides_that_face_each_other() -> None:
    found = difference(interval(10.0, 7.0, 11.0), interval(5.0, 1.0, 7.0))
    assert found.low is not None
    assert (found.value, found.low, found.high) == (
        5,
        pytest.approx(5 - math.hypot(3, 2)),
        pytest.approx(5 + math.hypot(1, 4)),
    )
    assert is_significant(found)
    assert not is_significant(difference(interval(10.0, 7.0, 11.0), interval(8.0, 4.0, 10.0)))


def covered(interval_of: Callable[[list[int]], Estimate], truth: float, draws: torch.Tensor) -> float:
    """Share of the rows whose interval holds the truth."""
    hits = 0
    for row in draws.int().numpy().tolist():
        found = interval_of(row)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    return hits / len(draws)


def test_a_difference_of_shares_covers_the_truth() -> None:
    """2,000 pairs of binomial draws of 40: 95 % within chance. Adding the intervals end to end is too wide."""
    generator = torch.Generator().manual_seed(1)
    chances = torch.tensor([0.9, 0.7]).repeat(2000, 1)
    draws = torch.binomial(torch.full((2000, 2), 40.0), chances, generator=generator)

    def honest(row: list[int]) -> Estimate:
        return difference(share(row[0], 40), share(row[1], 40))

    def end_to_end(row: list[int]) -> Estimate:
        one, other = share(row[0], 40), share(row[1], 40)
        return interval(one.value - other.value, one.low - other.high, one.high - other.low)

    assert 0.935 < covered(honest, 0.2, draws) < 0.965
    assert covered(end_to_end, 0.2, draws) > 0.98
