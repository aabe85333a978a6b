"""Spacings: published tables, closed forms, ends; parity with diffusers is in tests/checkpoints/test_scheduler.py."""

import inspect
import math
from itertools import pairwise
from typing import Any  # options of many kinds

import pytest
import scipy.stats  # pyright: ignore[reportMissingTypeStubs]  # it has none

from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.diffusion.spacing import AYS_SIGMAS, SPACINGS, beta_quantile, spaced
from mezzotint.errors import ConfigError

SD = NoiseSchedule.scaled_linear()


def ts(name: str, steps: int, **options: Any) -> list[float]:
    return [level.t for level in spaced(name, SD, steps, **options)[:-1]]


def sigmas(name: str, steps: int, **options: Any) -> list[float]:
    return [level.sigma for level in spaced(name, SD, steps, **options)]


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30, 50])
@pytest.mark.parametrize("name", SPACINGS)
def test_levels_descend_to_zero(name: str, steps: int) -> None:
    levels = spaced(name, SD, steps)
    assert all(now.sigma > after.sigma and now.t >= after.t for now, after in pairwise(levels))
    assert levels[-1] == (0.0, 0.0)
    assert len(levels) == steps + 1 or (name == "ldm" and 1000 % steps)


@pytest.mark.parametrize("name", SPACINGS)
def test_sigma_belongs_to_t(name: str) -> None:
    for sigma, t in spaced(name, SD, 7)[:-1]:
        if sigma < SD.sigma_max:  # ays starts above
            assert SD.sigma(t) == pytest.approx(sigma, rel=1e-5)  # linear and log interpolation differ by less


def test_timesteps_of_ten_steps() -> None:
    """Worked out by hand from the definition of each."""
    assert ts("leading", 10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert ts("leading", 10, offset=1) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert ts("leading_dpm", 10, offset=1) == [901, 811, 721, 631, 541, 451, 361, 271, 181, 91]
    assert ts("linspace", 10) == [111.0 * i for i in range(9, -1, -1)]
    assert ts("linspace_dpm", 10) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert ts("trailing", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert ts("sgm", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert ts("sgm_uniform", 10) == pytest.approx([99.9 * i for i in range(10, 0, -1)])
    assert ts("simple", 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert ts("ldm", 10) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert ts("uniform", 10) == [111.0 * i for i in range(9, -1, -1)]
    assert ts("lcm", 4) == [999, 759, 499, 259]


def test_first_level_of_the_known_programs() -> None:
    """The difference behind most reports of "another picture for the same seed"."""
    first = {n: spaced("leading", SD, n, offset=1)[0] for n in (20, 30, 50)}
    assert {n: level.t for n, level in first.items()} == {20: 951, 30: 958, 50: 981}
    assert [first[n].sigma for n in (20, 30, 50)] == pytest.approx([11.028, 11.477, 13.120], abs=5e-4)
    for name in ("trailing", "uniform", "sgm", "sgm_uniform", "simple"):
        assert spaced(name, SD, 30)[0] == pytest.approx((SD.sigma_max, 999))


def test_ldm_may_take_one_step_more() -> None:
    assert len(ts("ldm", 30)) == 31
    assert ts("ldm", 30)[0] == 991
    assert ts("ldm", 3) == [999, 667, 334, 1]  # 1000 is not a training step
    assert len(ts("ldm", 20)) == 20


def test_karras_is_even_in_its_power_and_meets_both_ends() -> None:
    found = sigmas("karras", 12)
    roots = [sigma ** (1 / 7) for sigma in found[:-1]]
    steps = [a - b for a, b in pairwise(roots)]
    assert steps == pytest.approx([steps[0]] * 11, rel=1e-9)
    assert (found[0], found[-2], found[-1]) == (SD.sigma_max, SD.sigma_min, 0)


def test_karras_of_one_step_is_the_highest_level() -> None:
    assert spaced("karras", SD, 1) == ((SD.sigma_max, 999.0), (0.0, 0.0))


def test_rho_and_range_are_options() -> None:
    found = sigmas("karras", 3, rho=1.0, sigma_min=1.0, sigma_max=5.0)
    assert found == pytest.approx([5, 3, 1, 0])
    assert sigmas("exponential", 3, sigma_min=1.0, sigma_max=9.0) == pytest.approx([9, 3, 1, 0])
    poly = sigmas("exponential", 3, rho=2.0, sigma_min=1.0, sigma_max=16.0)
    assert poly == pytest.approx([16, 2, 1, 0])  # 16^(1/4) in the middle


def test_beta_is_dense_at_both_ends() -> None:
    """Training steps of scipy's quantiles, and its sigmas, to the last digit."""
    quantiles = [float(scipy.stats.beta.ppf(1 - i / 10, 0.6, 0.6)) for i in range(10)]  # pyright: ignore
    assert ts("beta", 10) == [round(q * 999) for q in quantiles]
    ends = [float(scipy.stats.beta.ppf(1 - i / 9, 0.6, 0.6)) for i in range(10)]  # pyright: ignore
    wanted = [SD.sigma_min + q * (SD.sigma_max - SD.sigma_min) for q in ends]
    assert sigmas("beta_sigmas", 10)[:-1] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.5), (1.0, 1.0), (2.0, 0.7)])
def test_beta_quantile_is_scipys(a: float, b: float) -> None:
    for i in range(21):
        wanted = float(scipy.stats.beta.ppf(i / 20, a, b))  # pyright: ignore
        assert beta_quantile(i / 20, a, b) == pytest.approx(wanted, abs=1e-12)


def test_beta_of_many_steps_leaves_repeated_ones_out() -> None:
    found = ts("beta", 600)
    assert len(found) == len(set(found)) < 600


@pytest.mark.parametrize(("name", "table"), [("ays", "sd1"), ("ays_sdxl", "sdxl")])
def test_ays_is_its_table_at_ten_steps(name: str, table: str) -> None:
    assert sigmas(name, 10)[:-1] == pytest.approx(AYS_SIGMAS[table][:-1], rel=1e-12)
    assert sigmas(name, 20)[:-1:2] == pytest.approx(AYS_SIGMAS[table][:-1], rel=1e-12)
    between = sigmas(name, 20)[1]
    assert between == pytest.approx(math.sqrt(AYS_SIGMAS[table][0] * AYS_SIGMAS[table][1]), rel=1e-12)


def test_ays_tells_the_network_the_published_timesteps() -> None:
    published = {
        "ays": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24],
        "ays_sdxl": [999, 845, 730, 587, 443, 310, 193, 116, 53, 13],
    }
    for name, wanted in published.items():
        # Their sigmas are rounded to three digits and their t are not always the nearest: within 1.5 steps.
        assert ts(name, 10) == pytest.approx(wanted, abs=1.5)


def test_final_is_where_it_stops() -> None:
    assert spaced("leading", SD, 4, offset=1, final="minimum")[-1] == (SD.sigma_min, 0)
    handed_over = spaced("karras", SD, 4, sigma_min=1.0, final=0.5)
    assert handed_over[-1] == (0.5, SD.timestep(0.5))
    twice = spaced("karras", SD, 4, final="minimum")
    assert len(twice) == 5
    assert twice[-1].sigma == twice[-2].sigma


def test_interpolation_and_lookup_are_options() -> None:
    log = spaced("linspace", SD, 4, interpolation="log")
    assert log[1].sigma == SD.sigma(666) == spaced("uniform", SD, 4)[1].sigma
    linear = spaced("sgm_uniform", SD, 4, interpolation="linear")[1]
    assert linear.sigma == pytest.approx(0.75 * SD.sigma(749) + 0.25 * SD.sigma(750), rel=1e-12)
    loose, near = spaced("karras", SD, 7), spaced("karras", SD, 7, lookup="nearest")
    assert [level.t for level in near] == [round(level.t) for level in loose]
    assert [level.sigma for level in near] == [level.sigma for level in loose]


def test_zero_terminal_snr_starts_at_the_named_sigma() -> None:
    assert spaced("trailing", SD.with_zero_terminal_snr(), 4)[0].sigma == pytest.approx(4096, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("karas", 4, {}, "unknown spacing 'karas'; did you mean 'karras'"),
        ("karras", 4, {"roh": 3.0}, "spacing 'karras': unknown option 'roh'; did you mean 'rho'"),
        ("trailing", 4, {"offset": 1}, "spacing 'trailing': unknown option 'offset'; one of: $"),
        ("karras", 0, {}, "steps = 0: must be 1 … 1000"),
        ("leading", 1001, {}, "steps = 1001: must be 1 … 1000"),
        ("lcm", 51, {}, "steps = 51: the model was distilled at 50 training steps"),
        ("karras", 4, {"sigma_min": 3.0, "sigma_max": 2.0}, "0 < sigma_min <= sigma_max is needed"),
        ("leading", 4, {"final": 5.0}, "'leading': 4 steps ending at sigma 5 do not descend"),
        ("leading_dpm", 1000, {}, "do not descend"),
    ],
)
def test_what_cannot_be_spaced_says_why(name: str, steps: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spaced(name, SD, steps, **options)


def test_every_spacing_has_documented_points() -> None:
    for spacing in SPACINGS.values():
        assert inspect.signature(spacing.points).parameters.keys() >= {"schedule", "steps"}
