"""CMMD is its definition on features of length 1, and what float32 would make of it is not it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.cmmd import cmmd, gaussian


def drawn(n: int, seed: int) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed)) + 0.5


def published(x: Tensor, y: Tensor) -> float:
    """The published form: 1000 times the biased estimate with exp(-|x - y|² / 200)."""

    def k(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / 200)

    return float(1000 * (k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()))


def test_it_is_the_published_form() -> None:
    x, y = drawn(90, 0), drawn(70, 1) + 0.2
    exact = published(F.normalize(x.double(), dim=1), F.normalize(y.double(), dim=1))
    for blocks in (1, 7, 20):
        assert cmmd(x, y, blocks=blocks).value == pytest.approx(exact, rel=1e-9)
    assert cmmd(3 * x, y / 7).value == pytest.approx(exact, rel=1e-6)  # only directions count


def test_float32_kernels_lose_it() -> None:
    """Kernel values are 1 minus a hundredth: in float32 the differences of their means keep three digits or fewer."""
    x, y = F.normalize(drawn(400, 0), dim=1), F.normalize(drawn(400, 1), dim=1)
    exact = published(x.double(), y.double())
    assert cmmd(x, y).value == pytest.approx(exact, rel=1e-7)
    means = [torch.exp((a @ b.T - 1) / 100).mean() for a, b in ((x, x), (y, y), (x, y))]
    assert abs(float(1000 * (means[0] + means[1] - 2 * means[2])) - exact) > 1e-3 * exact


def test_equal_sets_are_at_zero_and_a_shift_is_significant() -> None:
    assert abs(cmmd(drawn(50, 0), drawn(50, 0)).value) < 1e-9
    x = torch.eye(2).double()
    assert float(gaussian(x, x)[0, 1]) == pytest.approx(math.exp(-2 / 200), rel=1e-12)
    found, shifted = cmmd(drawn(300, 0), drawn(300, 1)), cmmd(drawn(300, 0) + 0.3, drawn(300, 1))
    assert found.high is not None
    assert shifted.low is not None
    assert shifted.low > found.high


def test_what_has_no_direction_is_refused() -> None:
    x = drawn(20, 0)
    x[3] = 0
    with pytest.raises(ConfigError, match="a feature of length 0 has no direction"):
        cmmd(x, drawn(20, 1))
