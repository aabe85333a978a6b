"""The path that SDE samplers follow."""

import pytest
import torch

from mezzotint.diffusion.brownian import BrownianPath


def _path(seed: int = 0, size: int = 20_000) -> BrownianPath:
    return BrownianPath((size,), 14.6, torch.Generator("cpu").manual_seed(seed))


def test_points_do_not_depend_on_what_was_asked_before():
    direct, detour = _path()(3.0, 1.0), _path()
    detour(14.6, 2.0)
    detour(2.5, 0.0)
    assert torch.equal(detour(3.0, 1.0), direct)


def test_an_interval_is_the_sum_of_its_parts():
    path = _path()
    whole = path(3.0, 1.0) * 2**0.5
    torch.testing.assert_close(path(3.0, 2.5) * 0.5**0.5 + path(2.5, 1.0) * 1.5**0.5, whole)


@pytest.mark.parametrize(("start", "stop"), [(14.6, 0.0), (14.6, 7.3), (0.03, 0.0), (1.0001, 1.0)])
def test_increments_are_unit_gaussians(start: float, stop: float):
    noise = _path()(start, stop)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)  # 4 standard errors of 20,000 draws
    assert noise.var().item() == pytest.approx(1, abs=0.04)


def test_increments_over_separate_intervals_are_independent():
    path = _path()
    assert (path(5.0, 3.0) * path(3.0, 1.0)).mean().item() == pytest.approx(0, abs=0.03)


def test_seeds_give_different_paths():
    assert not torch.equal(_path(0)(2.0, 1.0), _path(1)(2.0, 1.0))
