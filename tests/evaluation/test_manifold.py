"""Precision, recall, density and coverage: by hand on a line, against their definition, against a peer."""

import pytest
import torch
from torch import Tensor

from evaluation.peers import CASES, GOLDEN, golden_features
from mezzotint.errors import ConfigError
from mezzotint.evaluation import manifold as module
from mezzotint.evaluation.manifold import Manifold, manifold
from mezzotint.evaluation.neighbours import nearest, squares


def line(*places: float) -> Tensor:
    return torch.tensor(places, dtype=torch.float64)[:, None]


def drawn(n: int, seed: int, width: int = 5) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def values(found: Manifold) -> tuple[float, float, float, float]:
    return found.precision.value, found.recall.value, found.density.value, found.coverage.value


def defined(made: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    """Straight from the definitions, with whole matrices."""
    apart = torch.cdist(made, real)
    around_real = torch.cdist(real, real).sort(dim=1).values[:, k]  # column 0 is the picture itself
    around_made = torch.cdist(made, made).sort(dim=1).values[:, k]
    held = apart <= around_real
    return (
        float(held.any(1).double().mean()),
        float((apart <= around_made[:, None]).any(0).double().mean()),
        float(held.double().sum(1).mean() / k),
        float(held.any(0).double().mean()),
    )


def test_four_on_a_line_by_hand() -> None:
    """Real at 0, 1, 3, 7 with balls of 1, 1, 2, 4 (k = 1); made at 1.5, 5.5, 20, 30 with balls of 4, 4, 10, 10.

    1.5 lies in the balls of 1 and 3, 5.5 in that of 7, 20 and 30 in none: precision 2/4, density 3/4, coverage 3/4.
    0, 1, 3 lie in the ball of 1.5 and 7 in that of 5.5: recall 4/4.
    """
    found = manifold(line(1.5, 5.5, 20, 30), line(0, 1, 3, 7), precision_k=1, coverage_k=1)
    assert values(found) == (0.5, 1.0, 0.75, 0.75)
    assert (found.precision.hits, found.recall.of) == (2, 4)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_it_is_the_definition_in_any_blocks(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = drawn(61, 0) + 0.4, drawn(83, 1)
    for rows in (7, 1024):
        monkeypatch.setattr(module, "ROWS", rows)
        found = manifold(made, real, precision_k=k, coverage_k=k)
        assert values(found) == pytest.approx(defined(made, real, k), abs=1e-12)


def test_precision_and_recall_are_not_exchanged() -> None:
    """A model that makes one kind of picture very well: precise, and little else. A peer had them exchanged."""
    found = manifold(0.05 * drawn(200, 0), drawn(300, 1))
    assert found.precision.value == 1
    assert found.recall.value < 0.05
    assert found.coverage.value < 0.2
    exchanged = manifold(drawn(300, 1), 0.05 * drawn(200, 0))
    assert exchanged.precision.value == found.recall.value
    assert exchanged.recall.value == found.precision.value


def test_an_outlier_spoils_precision_and_not_density() -> None:
    """What Naeem et al. made density for: one real picture far out has a ball that holds the whole of space."""
    real = torch.cat([drawn(300, 1), torch.full((1, 5), 30.0, dtype=torch.float64)])
    made = drawn(200, 0) + 12
    assert manifold(made, real).precision.value > 0.9
    assert manifold(made, real).density.value < 0.3


def test_equal_distributions_reach_their_ceilings() -> None:
    found = manifold(drawn(1500, 0), drawn(1500, 1))
    assert found.density.low is not None
    assert found.density.high is not None
    assert found.density.low - 0.05 < 1 < found.density.high + 0.05
    assert found.coverage.value == pytest.approx(1 - 0.5**5, abs=0.02)  # Naeem et al., eq. 9, n = m


@pytest.mark.parametrize("case", CASES)
def test_a_peer_agrees(case: str) -> None:
    """torch-fidelity since 0.4.0; float32 means of whole counts."""
    made, reference = golden_features(case)
    found = manifold(made, reference)
    assert found.precision.value == pytest.approx(GOLDEN[case]["precision"], abs=1e-6)
    assert found.recall.value == pytest.approx(GOLDEN[case]["recall"], abs=1e-6)


def test_equal_rows_are_at_distance_zero_exactly() -> None:
    """Far from the origin, |x|² + |y|² - 2 x·y puts equal rows some rounding apart; a ball of radius 0 needs 0."""
    x = drawn(50, 0) + 1e4
    assert bool((squares(x, x).diagonal() == 0).all())
    plain = x.square().sum(1)[:, None] + x.square().sum(1) - 2 * x @ x.T
    assert not bool((plain.diagonal() == 0).all())
    twice = torch.cat([x, x, x, x, x, x])  # every radius is 0
    assert values(manifold(x, twice)) == (1, 1, 6 / 5, 1)


def test_nearest_are_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(40, 0), drawn(90, 1)
    apart = torch.cdist(x, y).sort(dim=1)
    found = nearest(x, y, 4)
    torch.testing.assert_close(found.distance, apart.values[:, :4], rtol=1e-12, atol=1e-12)
    assert found.place.equal(apart.indices[:, :4])
    # far from the origin, too, and none is its own neighbour
    own = nearest(x + 1e6, x + 1e6, 1, is_same=True)
    assert own.place[:, 0].equal(torch.cdist(x, x).fill_diagonal_(torch.inf).argmin(1))
    # ties: the lower place first
    assert nearest(line(0), line(5, -1, 1, 1), 3).place.equal(torch.tensor([[1, 2, 3]]))


def test_too_few_are_refused() -> None:
    with pytest.raises(ConfigError, match="manifold: 5 made and 9 real pictures; more than 5 are needed"):
        manifold(drawn(5, 0), drawn(9, 1))
    with pytest.raises(ConfigError, match="4 nearest neighbours among 3 features; give at least 4"):
        nearest(drawn(2, 0), drawn(3, 1), 4)
