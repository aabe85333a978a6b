"""The Fréchet distance obeys its laws, equals its peers, tells its bias; every broken form of it breaks a law."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.peers import CASES, GOLDEN, golden_features
from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import jackknife
from mezzotint.evaluation.fid import (
    INCEPTION,
    fid,
    fid_infinity,
    frechet,
    frechet_of_features,
    intercept,
    name_of,
)
from mezzotint.evaluation.statistics import (
    Moments,
    Provenance,
    Statistics,
    chunks_of,
    merge,
    moments_of,
    statistics_of,
)

OURS = Provenance(extractor="clip", extractor_sha256="1a2b3c4d" * 8, protocol="clean")

linalg: Any = torch.linalg  # Any: declares no types
scipy_linalg: Any = import_module("scipy.linalg")  # Any: untyped

Distance = Callable[[Tensor, Tensor], float]  # features of either side -> distance


def drawn(n: int, width: int, seed: int, decades: float = 1.5) -> Tensor:
    """Rectified, correlated features of one distribution, whose spectrum falls by twice the `decades`."""
    turn: Tensor = linalg.qr(normal(width, width, 0))[0]
    return ((normal(n, width, seed) * torch.logspace(0, -decades, width, dtype=torch.float64)) @ turn + 0.1).relu()


def normal(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shaped(n: int, mean: Tensor, root: Tensor, seed: int) -> Tensor:
    """n features whose mean is exactly `mean` and whose covariance (n - 1) is exactly root root^T."""
    x = normal(n, len(mean), seed)
    white: Tensor = linalg.qr(x - x.mean(0))[0]
    return white * math.sqrt(n - 1) @ root.T + mean


def ours(x: Tensor, y: Tensor, size: int = 37) -> float:
    return frechet(moments_of(chunks_of(x, size)), moments_of(chunks_of(y, size))).value


def from_features(x: Tensor, y: Tensor) -> float:
    return frechet_of_features(x, y).value


def trace(x: Tensor) -> float:
    return float(x.var(0).sum())


# laws: each gives the error of a distance over what is allowed, for features whose answer is known


def self_distance(distance: Distance) -> float:
    x = drawn(400, 48, 0)
    return abs(distance(x, x)) / (1e-9 * trace(x))


def self_distance_of_few(distance: Distance) -> float:
    x = drawn(30, 48, 0)
    return abs(distance(x, x)) / (1e-6 * trace(x))


def known_gaussians(distance: Distance) -> float:
    """Two covariances of the same directions: |m|² + sum of (√a - √b)²; scaled so that an epsilon of 1e-6 shows."""
    width = 24
    turn: Tensor = linalg.qr(normal(width, width, 3))[0]
    a, b = torch.logspace(0, -2, width, dtype=torch.float64), torch.linspace(0.02, 0.4, width, dtype=torch.float64)
    m = torch.full((width,), 0.05, dtype=torch.float64)
    found = distance(shaped(500, m, turn * a.sqrt(), 1), shaped(300, 0 * m, turn * b.sqrt(), 2))
    exact = float(m.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    return abs(found / exact - 1) / 1e-6


def known_gaussians_that_turn(distance: Distance) -> float:
    """Two by two, of different directions: Tr √(S1 S2) = √(Tr S1 S2 + 2 √det S1 S2)."""
    one, other = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double(), torch.tensor([[0.5, -0.7], [0.0, 2.0]]).double()
    first, second = one @ one.T, other @ other.T
    root = math.sqrt(float((first @ second).trace()) + 2 * abs(float(linalg.det(one) * linalg.det(other))))
    m = torch.tensor([3.0, -1.0]).double()
    exact = float(m.square().sum() + first.trace() + second.trace()) - 2 * root
    return abs(distance(shaped(50, m, one, 1), shaped(60, 0 * m, other, 2)) / exact - 1) / 1e-6


def few_pictures(distance: Distance) -> float:
    """SciPy's singular values of the product of centred features: nothing is squared before."""
    x, y = 3 * drawn(40, 128, 1), 3.3 * drawn(50, 128, 2)
    x_mean, y_mean = x.mean(0), y.mean(0)
    product = ((x - x_mean) @ (y - y_mean).T).numpy() / math.sqrt(39 * 49)
    roots = float(scipy_linalg.svdvals(product).sum())
    exact = float((x_mean - y_mean).square().sum()) + trace(x) + trace(y) - 2 * roots
    return abs(distance(x, y) - exact) / 1e-7


LAWS = [self_distance, self_distance_of_few, known_gaussians, known_gaussians_that_turn, few_pictures]


def broken(
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float = 0.0,
    fewer: int = 1,
    dtype: torch.dtype = torch.float64,
    is_clamped: bool = True,
) -> float:
    """The distance as it is often written: from all eigenvalues, perhaps with an epsilon or in float32."""
    means: list[Tensor] = []
    roots: list[Tensor] = []
    traces = 0.0
    values: Tensor
    vectors: Tensor
    for side in (x.to(dtype), y.to(dtype)):
        mean = side.mean(0)
        covariance = (side.T @ side - len(side) * torch.outer(mean, mean)) / (len(side) - fewer)
        covariance += epsilon * torch.eye(len(mean), dtype=dtype)
        means.append(mean)
        traces += float(covariance.trace())
        values, vectors = linalg.eigh(covariance)
        roots.append(vectors * values.clamp_min(0).sqrt() @ vectors.T)
    inner = roots[0] @ roots[1] @ roots[1] @ roots[0]
    values = linalg.eigvalsh(inner)
    root = float((values.clamp_min(0) if is_clamped else values).sqrt().sum())
    return float((means[0] - means[1]).square().sum()) + traces - 2 * root


def no_cross(x: Tensor, y: Tensor) -> float:
    """Variances alone."""
    return float((x.mean(0) - y.mean(0)).square().sum() + (x.std(0) - y.std(0)).square().sum())


BROKEN: dict[str, tuple[Distance, set[str]]] = {
    "an epsilon on the diagonals": (partial(broken, epsilon=1e-6), {"known_gaussians", "few_pictures"}),
    "covariances divided by n": (partial(broken, fewer=0), {"known_gaussians", "few_pictures"}),
    "sums in float32": (partial(broken, dtype=torch.float32), {"self_distance", "few_pictures"}),
    "square roots of rounding": (broken, {"few_pictures"}),
    "no clamp": (partial(broken, is_clamped=False), {"few_pictures", "self_distance_of_few"}),
    "variances alone": (no_cross, {"known_gaussians", "few_pictures"}),
}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("distance", [ours, from_features])
def test_the_distance_obeys(distance: Distance, law: Callable[[Distance], float]) -> None:
    assert law(distance) <= 1


@pytest.mark.parametrize("name", BROKEN)
def test_broken_forms_are_caught(name: str) -> None:
    """NaN counts as broken."""
    distance, laws = BROKEN[name]
    assert laws <= {law.__name__ for law in LAWS if not law(distance) <= 1}


def test_order_and_chunks_change_nothing() -> None:
    x, y = drawn(400, 32, 1), drawn(300, 32, 2)
    whole = ours(x, y, 1000)
    for size in (1, 10, 77):
        assert abs(ours(x, y, size) - whole) < 1e-12
    parts = [Statistics(provenance=OURS, chunks=chunks_of(x, 20)[i::3]) for i in range(3)]
    reference = statistics_of(y, OURS)
    assert fid(merge(parts), reference) == fid(merge(parts[::-1]), reference)


def test_dead_features_and_hard_spectra_keep_their_digits() -> None:
    """Forty features that never fire, and variances over six decades: within 1e-9 of the features' own distance."""
    x, y = drawn(900, 128, 1, decades=3), drawn(800, 128, 2, decades=3)
    x[:, :40] = y[:, :20] = 0
    assert abs(ours(x, y) - frechet_of_features(x, y).value) < 1e-9 * (trace(x) + trace(y))
    assert abs(ours(x, x)) < 1e-9 * trace(x)


def test_scipys_own_root_agrees() -> None:
    x, y = drawn(400, 32, 1), drawn(300, 32, 2)
    one, other = moments_of(chunks_of(x, 99)), moments_of(chunks_of(y, 99))
    root = scipy_linalg.sqrtm((one.covariance @ other.covariance).numpy())
    exact = float((one.mean - other.mean).square().sum() + one.covariance.trace() + other.covariance.trace())
    assert frechet(one, other).value == pytest.approx(exact - 2 * float(root.trace().real), abs=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_peers_agree(case: str) -> None:
    """1e-3 is promised; measured: 2e-14 where there are enough pictures, 1e-7 where the peers' own rounding shows."""
    made, reference = golden_features(case)
    found = ours(made, reference, 500), frechet_of_features(made, reference).value
    for peer in ("pytorch-fid", "clean-fid", "torch-fidelity"):
        assert found == pytest.approx((GOLDEN[case]["fid"][peer],) * 2, abs=1e-6)


def test_what_is_no_covariance_shows() -> None:
    good = moments_of(chunks_of(drawn(100, 8, 1), 50))
    assert abs(frechet(good, good).smallest) < 1
    assert frechet(good, good).smallest > -1e-12
    bad = Statistics(provenance=OURS, given=Moments(None, good.mean, good.covariance - 0.05 * torch.eye(8)))
    found = fid(Statistics(provenance=OURS, given=good), bad)
    assert found.smallest < -1e-3
    assert "the statistics are no covariance" in found.notes[-1]
    assert found.distance.low is None


def test_an_interval_covers_what_n_pictures_give() -> None:
    """120 draws: the 95 % interval holds the mean of all draws; without the jackknife's factor it would hold few."""
    reference = statistics_of(drawn(4000, 4, 100), OURS)
    draws = [fid(statistics_of(drawn(200, 4, seed) * 1.2, OURS, size=10), reference).distance for seed in range(120)]
    truth = sum(draw.value for draw in draws) / len(draws)

    def covers(low: float | None, high: float | None, widths: float = 1.0) -> bool:
        assert low is not None
        assert high is not None
        return abs(truth - (low + high) / 2) <= widths * (high - low) / 2

    assert 0.88 <= sum(covers(draw.low, draw.high) for draw in draws) / len(draws) <= 0.99
    assert sum(covers(draw.low, draw.high, 1 / 19) for draw in draws) / len(draws) < 0.3


def test_infinity_removes_the_bias_of_equal_distributions() -> None:
    """Twelve sets of one distribution against a large one: distances are not 0, their limit is on average."""
    reference = statistics_of(drawn(80_000, 24, 100), OURS, size=8000)
    plain: list[float] = []
    infinite: list[float] = []
    covered = 0
    for seed in range(12):
        made = statistics_of(drawn(800, 24, seed), OURS, size=50)
        found = fid_infinity(made, reference)
        plain.append(fid(made, reference).distance.value)
        infinite.append(found.distance.value)
        assert found.name == "FD-clip:1a2b3c4d-infinity"
        assert [n for n, _ in found.points] == [800, 400, 200]
        assert found.points[0][1] == pytest.approx(plain[-1], rel=1e-9)
        assert found.notes == ()
        assert found.distance.low is not None
        assert found.distance.high is not None
        covered += found.distance.low <= 0 <= found.distance.high
    assert abs(sum(infinite)) < 0.1 * sum(plain)
    assert min(plain) > 0
    assert covered >= 9


def test_a_bent_line_is_told() -> None:
    """Eighty pictures for 64 numbers."""
    found = fid_infinity(statistics_of(drawn(80, 64, 1), OURS, size=10), statistics_of(drawn(3000, 64, 2), OURS))
    assert found.notes[0].startswith("80 pictures for features of 64 numbers: a tenth of the bias or more")
    # pictures sorted by what they show: halves look like the whole, quarters do not
    sides = torch.tensor([0.5, 0.5, -0.5, -0.5]).repeat(2).repeat_interleave(50)[:, None]
    reference = statistics_of(drawn(3000, 8, 2), OURS)
    in_order = statistics_of(drawn(400, 8, 1) + sides, OURS, size=50, seed=None)
    assert "100 pictures miss the line by +" in fid_infinity(in_order, reference).notes[0]
    assert fid_infinity(statistics_of(drawn(400, 8, 1) + sides, OURS, size=50), reference).notes == ()
    with pytest.raises(ConfigError, match="FID-infinity: 1 chunks; 4 or more are needed"):
        fid_infinity(statistics_of(drawn(80, 8, 1), OURS), statistics_of(drawn(80, 8, 1), OURS))


def test_intercept_of_a_line_is_exact() -> None:
    assert intercept([(n, 2 + 30 / n) for n in (100, 50, 20)]) == pytest.approx(2, abs=1e-12)


def test_only_inception_under_a_protocol_is_called_fid() -> None:
    inception = Provenance(extractor=INCEPTION, extractor_sha256="6726825d" * 8, protocol="tf1")
    assert name_of(inception) == "FID"
    assert name_of(inception, "KID") == "KID"
    assert name_of(replace(inception, protocol=None)) == f"FD-{INCEPTION}:6726825d"
    assert name_of(OURS) == "FD-clip:1a2b3c4d"
    assert name_of(OURS, "KID") == "KD-clip:1a2b3c4d"
    assert name_of(Provenance(extractor=None, extractor_sha256=None, protocol="tf1")) == "FD-unknown:unknown"


def test_what_cannot_be_compared_is_refused_by_every_distance() -> None:
    one, other = statistics_of(drawn(200, 8, 1), OURS, size=20), statistics_of(drawn(200, 8, 2), OURS)
    strange = replace(other, provenance=replace(OURS, protocol="tf1"))
    for distance in (fid, fid_infinity):
        with pytest.raises(ConfigError, match="statistics cannot be compared: protocol is 'clean' and 'tf1'"):
            distance(one, strange)
    doubtful = replace(other, provenance=replace(OURS, protocol=None))
    assert fid(one, doubtful).notes == ("protocol unknown (clean and unknown)",)
    assert fid(one, doubtful).distance == fid(one, other).distance


def test_too_few_pictures_are_said_and_refused() -> None:
    reference = statistics_of(drawn(300, 8, 3), OURS)
    found = fid(statistics_of(drawn(6, 8, 1), OURS), reference)
    assert found.notes == ("6 made pictures for features of 8 numbers: mostly bias, see FID-infinity and KID",)
    assert (found.distance.low, found.made_count, found.reference_count) == (None, 6, 300)
    with pytest.raises(ConfigError, match="one picture has no covariance"):
        fid(statistics_of(drawn(1, 8, 1), OURS), reference)
    with pytest.raises(ConfigError, match=r"made features of shape \(1, 8\): at least 2 rows"):
        frechet_of_features(drawn(1, 8, 1), drawn(9, 8, 1))
    assert jackknife(1.0, [], 6).low is None
