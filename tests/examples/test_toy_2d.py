"""The toy tells the truth: its exact answers are exact, and what its page claims comes out as numbers."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_2d", EXAMPLES / "toy_2d.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_score_is_the_gradient_of_the_log_density(toy: ModuleType) -> None:
    """Autograd of the mixture's own density, written out anew."""
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(2).requires_grad_()
    sigma = 0.4
    variance = toy.SPREAD**2 + sigma**2
    square = (x[:, None] - toy.CENTRES.double()).square().sum(-1)
    log_density = torch.logsumexp(-square / (2 * variance), dim=1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(toy.score(x.detach(), sigma), gradient)


def test_page_plots_and_numbers(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toy, "POINTS", 1500)
    found = toy.main(tmp_path)
    assert found["order of euler"] == pytest.approx(1, abs=0.15)
    assert found["order of heun"] == pytest.approx(2, abs=0.25)
    assert found["order of dpmpp_2m"] == pytest.approx(2, abs=0.25)
    shares = [found[f"share that obeys, scale {scale}"] for scale in (0, 0.5, 1, 2, 4)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(3 / 8, abs=0.05)
    assert shares[2] > 0.99
    assert found["exact"] == pytest.approx(math.sqrt(math.pi / 2), abs=0.08)
    assert found["best possible"] < found["loss"] < 1.1 * found["best possible"]
    assert found["learnt"] < 1.6
    assert (tmp_path / "toy_2d.html").stat().st_size < 5_000_000
    assert len(list(tmp_path.glob("*.png"))) + len(list(tmp_path.glob("*.jpg"))) >= 20
