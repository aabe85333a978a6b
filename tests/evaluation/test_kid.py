"""Kernel distances are unbiased where they say so, equal their peers, and do not depend on how they are cut."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from evaluation.peers import CASES, GOLDEN, golden_features
from mezzotint.errors import ConfigError
from mezzotint.evaluation.kid import kid, polynomial
from mezzotint.evaluation.mmd import estimate, kernel_sums, mmd2


def drawn(n: int, seed: int, width: int = 6) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).relu()


def whole(x: Tensor, y: Tensor, *, is_unbiased: bool) -> float:
    """Straight from the definition, pair by pair."""

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    total = 0.0
    for side in (x, y):
        pairs = [k(a, b) for i, a in enumerate(side) for j, b in enumerate(side) if i != j or not is_unbiased]
        total += math.fsum(pairs) / len(pairs)
    return total - 2 * math.fsum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize("is_unbiased", [True, False])
def test_blocks_are_the_definition(is_unbiased: bool) -> None:
    x, y = drawn(23, 0), drawn(17, 1) + 0.3
    exact = whole(x, y, is_unbiased=is_unbiased)
    for blocks in (1, 4, 20):
        sums = kernel_sums(x, y, polynomial, blocks)
        assert mmd2(sums, is_unbiased=is_unbiased) == pytest.approx(exact, rel=1e-12)
    without = mmd2(kernel_sums(x, y, polynomial, 23), is_unbiased=is_unbiased, without=4)
    assert without == pytest.approx(whole(torch.cat([x[:4], x[5:]]), y, is_unbiased=is_unbiased), rel=1e-12)


def test_every_draw_from_a_population_averages_to_its_distance() -> None:
    """All 81 ways to draw two and two of three and three: unbiased is exact on average, biased is far too large."""
    x, y = drawn(3, 0), drawn(3, 1) + 0.3
    exact = mmd2(kernel_sums(x, y, polynomial), is_unbiased=False)  # of the whole population, nothing is estimated
    means: dict[bool, float] = {}
    for is_unbiased in (True, False):
        values = [
            mmd2(kernel_sums(x[list(i)], y[list(j)], polynomial), is_unbiased=is_unbiased)
            for i in itertools.product(range(3), repeat=2)
            for j in itertools.product(range(3), repeat=2)
        ]
        means[is_unbiased] = sum(values) / 81
    assert means[True] == pytest.approx(exact, rel=1e-12)
    assert means[False] > 1.2 * exact


def test_equal_distributions_are_at_distance_zero_for_any_number_of_pictures() -> None:
    """Mean of 100 pairs within three standard errors of 0, for 20 pictures; the biased form is thirty away."""
    for is_unbiased, far in ((True, (0, 3)), (False, (15, 1000))):
        sums = [kernel_sums(drawn(20, 2 * i), drawn(20, 2 * i + 1), polynomial, 1) for i in range(100)]
        values = torch.tensor([mmd2(one, is_unbiased=is_unbiased) for one in sums])
        assert far[0] <= abs(float(values.mean() / (values.std() / 10))) <= far[1]


def test_the_interval_covers() -> None:
    """100 pairs 0.15 apart against one reference: 95 % of the intervals hold the mean."""
    reference = drawn(400, 999)
    found = [estimate(kernel_sums(drawn(100, i) + 0.15, reference, polynomial), is_unbiased=True) for i in range(100)]
    truth = sum(one.value for one in found) / 100
    hits = sum(one.low <= truth <= one.high for one in found if one.low is not None and one.high is not None)
    assert 88 <= hits <= 99


@pytest.mark.parametrize("case", CASES)
def test_peers_agree(case: str) -> None:
    """Their subsets are other ones than ours: means of 100 agree within what subsets scatter, far more tightly."""
    made, reference = golden_features(case)
    theirs = GOLDEN[case]["kid"]
    found = kid(made, reference, size=theirs["size"])
    for name in ("torch-fidelity", "clean-fid"):
        assert abs(found.subset_mean - theirs[name]) < 0.5 * theirs["torch-fidelity deviation"]
        assert found.distance.low is not None
        assert found.distance.high is not None
        assert found.distance.low < theirs[name] < found.distance.high
    assert found.subset_deviation == pytest.approx(theirs["torch-fidelity deviation"], rel=0.35)


def test_sorted_pictures_widen_no_interval() -> None:
    """Two kinds of pictures, one after the other: blocks of neighbours scatter by the kinds, dealt ones do not."""
    x, y = torch.cat([drawn(100, 0), drawn(100, 1) + 1]), drawn(200, 2)
    dealt, in_order = kid(x, y, subsets=2).distance, estimate(kernel_sums(x, y, polynomial), is_unbiased=True)
    assert dealt.value == pytest.approx(in_order.value, rel=1e-9)
    widths = [one.high - one.low for one in (dealt, in_order) if one.low is not None and one.high is not None]
    assert widths[1] > 2 * widths[0]


def test_subsets_are_drawn_by_the_seed_alone() -> None:
    x, y = drawn(60, 0), drawn(50, 1)
    assert kid(x, y, subsets=5) == kid(x, y, subsets=5) != kid(x, y, subsets=5, seed=1)
    assert kid(x, y, subsets=5).size == 25
    assert kid(x, y, subsets=5, seed=1).distance == kid(x, y, subsets=5).distance


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ConfigError, match="kid: 100 subsets of 51 from 50 pictures; 2 … 50 are possible"):
        kid(drawn(60, 0), drawn(50, 1), size=51)
    with pytest.raises(ConfigError, match=r"made features of shape \(3, 6\): at least 4 rows"):
        kid(drawn(3, 0), drawn(50, 1))
    with pytest.raises(ConfigError, match="features of 6 and 5 numbers cannot be compared"):
        kid(drawn(60, 0), drawn(50, 1, width=5))
    with pytest.raises(ConfigError, match="reference features are not all finite"):
        kid(drawn(60, 0), drawn(50, 1) * torch.inf)
