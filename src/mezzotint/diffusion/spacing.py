"""Which noise levels a trajectory visits: every spacing that people use, as a named value.

A spacing picks either training steps (sigma follows from the schedule) or sigmas (the training step that the network is
told follows from a lookup); `spaced` does what follows, and ends the trajectory. So one table replaces the
`set_timesteps` of every scheduler class. "n + 1" forms divide the range into one step more and leave out the last
point: the DPM-type schedulers of diffusers do.

Sources: Karras et al. 2022, arXiv:2206.00364, eq. 5; Lin et al. 2023, arXiv:2305.08891, table 2 (leading, linspace,
trailing); Lee et al. 2024, arXiv:2407.12173 (beta); Sabour et al. 2024, arXiv:2404.14507 (ays); the timesteps of
CompVis' DDIM (ldm), of k-diffusion (uniform), of ComfyUI (simple, sgm_uniform) and of latent consistency models (lcm).
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mezzotint.diffusion.sampling import NoiseLevel
from mezzotint.diffusion.schedule import Lookup, NoiseSchedule
from mezzotint.errors import ConfigError, unknown

Points = NDArray[np.float64]  # [s], descending

Rounding = Literal["none", "nearest", "floor"]


def _rounded(t: Points, rounding: Rounding) -> Points:
    return {"none": t, "nearest": t.round(), "floor": np.floor(t)}[rounding]


def leading(schedule: NoiseSchedule, steps: int, *, offset: int = 0) -> Points:
    """Multiples of T // n from 0, plus `offset` (Stable Diffusion: 1). Never reaches the noisiest step."""
    return np.arange(steps, dtype=np.float64)[::-1] * (len(schedule) // steps) + offset


def leading_dpm(schedule: NoiseSchedule, steps: int, *, offset: int = 0) -> Points:
    """`leading` in its n + 1 form."""
    return leading(schedule, steps + 1, offset=offset)[:-1]


def linspace(schedule: NoiseSchedule, steps: int, *, rounding: Rounding = "none") -> Points:
    """Evenly from the last training step to the first, both included; 1 step is the first, as in diffusers."""
    return _rounded(np.linspace(0, len(schedule) - 1, steps), rounding)[::-1]


def linspace_dpm(schedule: NoiseSchedule, steps: int, *, rounding: Rounding = "nearest") -> Points:
    """`linspace` in its n + 1 form, so without training step 0."""
    return _rounded(np.linspace(0, len(schedule) - 1, steps + 1), rounding)[:0:-1]


def uniform(schedule: NoiseSchedule, steps: int) -> Points:
    """k-diffusion's own: as `linspace`, but 1 step is the last, and sigma is interpolated in its logarithm."""
    return np.linspace(len(schedule) - 1, 0, steps)


def trailing(schedule: NoiseSchedule, steps: int) -> Points:
    """From the last training step down by T / n, in both forms; for distilled and zero-terminal-SNR models."""
    return np.arange(len(schedule), 0, -len(schedule) / steps)[:steps].round() - 1


def ldm(schedule: NoiseSchedule, steps: int) -> Points:
    """CompVis' DDIM: 1, 1 + T // n, … (more than n where n does not divide T), there with final = "minimum"."""
    last = len(schedule) - 1
    return np.unique(np.arange(0, len(schedule), len(schedule) // steps, dtype=np.float64).clip(max=last - 1) + 1)[::-1]


def simple(schedule: NoiseSchedule, steps: int) -> Points:
    """Every (T / n)-th training step from the noisiest, rounded towards it."""
    return len(schedule) - 1 - np.floor(np.arange(steps) * (len(schedule) / steps))


def beta(schedule: NoiseSchedule, steps: int, *, alpha: float = 0.6, beta: float = 0.6) -> Points:
    """Training steps at even quantiles of a beta distribution: dense at both ends. Repeated steps are left out."""
    quantiles = np.array([beta_quantile(1 - i / steps, alpha, beta) for i in range(steps)])
    return np.unique(np.rint((quantiles * (len(schedule) - 1)).round(9)))[::-1]  # the median is 1/2, not just below


def lcm(schedule: NoiseSchedule, steps: int, *, original: int = 50) -> Points:
    """n of the `original` training steps that a consistency model was distilled at, from the noisiest.

    Raises: ConfigError if there are fewer of them than steps.
    """
    if steps > original:
        raise ConfigError(f"steps = {steps}: the model was distilled at {original} training steps; ask for no more")
    distilled = np.arange(original, 0, -1.0) * (len(schedule) // original) - 1
    return distilled[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.intp)]


def karras(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Points:
    """Sigmas evenly in sigma^(1/rho); rho > 1 puts more steps at low noise. 1 step is sigma_max."""
    low, high = _range(schedule, sigma_min, sigma_max)
    roots = np.linspace(math.pow(high, 1 / rho), math.pow(low, 1 / rho), steps)
    return _between(low, high, roots**rho)


def exponential(
    schedule: NoiseSchedule,
    steps: int,
    *,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Points:
    """Sigmas evenly in log sigma; rho other than 1 is k-diffusion's polyexponential."""
    low, high = _range(schedule, sigma_min, sigma_max)
    return _between(low, high, low * (high / low) ** (np.linspace(1, 0, steps) ** rho))


def beta_sigmas(
    schedule: NoiseSchedule,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Points:
    """Sigmas, not training steps, at even quantiles of a beta distribution: `use_beta_sigmas` of diffusers."""
    low, high = _range(schedule, sigma_min, sigma_max)
    quantiles = np.array([beta_quantile(q, alpha, beta) for q in np.linspace(1, 0, steps)])
    return _between(low, high, low + quantiles * (high - low))


AYS_SIGMAS = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""The optimised levels of 10 steps, per model, as published."""


def ays(schedule: NoiseSchedule, steps: int, *, table: Literal["sd1", "sdxl"] = "sd1") -> Points:
    """Align Your Steps: levels optimised for 10 steps; other counts log-linearly between them. In n + 1 form."""
    logs = np.log(AYS_SIGMAS[table])
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(logs)), logs))[:-1]


def _range(schedule: NoiseSchedule, sigma_min: float | None, sigma_max: float | None) -> tuple[float, float]:
    low = schedule.sigma_min if sigma_min is None else sigma_min
    high = schedule.sigma_max if sigma_max is None else sigma_max
    if not 0 < low <= high:
        raise ConfigError(f"sigma_min = {low}, sigma_max = {high}: 0 < sigma_min <= sigma_max is needed")
    return low, high


def _between(low: float, high: float, sigmas: Points) -> Points:
    sigmas[-1], sigmas[0] = low, high  # exact, as pow and exp are not; 1 step is the high one
    return sigmas


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x below which a share q of the beta distribution lies: its series at x <= 1/2, and bisection. float64."""

    def below(x: float, a: float, b: float) -> float:
        if x > 0.5:
            return 1 - below(1 - x, b, a)
        total, term = 0.0, 1.0
        for k in range(60):  # term falls at least like 2^-k
            total += term / (a + k)
            term *= (k + 1 - b) / (k + 1) * x
        return total * x**a * math.gamma(a + b) / (math.gamma(a) * math.gamma(b))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle, a, b) < q else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Spacing:
    """How a named spacing is completed: what its points are and, for training steps, how sigma is interpolated."""

    points: Callable[..., Points]  # (schedule, steps, **options)
    picks: Literal["t", "sigma"]
    interpolation: Literal["linear", "log"] = "linear"


SPACINGS: dict[str, Spacing] = {
    "leading": Spacing(points=leading, picks="t"),
    "leading_dpm": Spacing(points=leading_dpm, picks="t"),
    "linspace": Spacing(points=linspace, picks="t"),
    "linspace_dpm": Spacing(points=linspace_dpm, picks="t"),
    "trailing": Spacing(points=trailing, picks="t"),
    "ldm": Spacing(points=ldm, picks="t"),
    "uniform": Spacing(points=uniform, picks="t", interpolation="log"),
    "sgm": Spacing(points=partial(linspace_dpm, rounding="floor"), picks="t"),
    "sgm_uniform": Spacing(points=partial(linspace_dpm, rounding="none"), picks="t", interpolation="log"),
    "simple": Spacing(points=simple, picks="t"),
    "beta": Spacing(points=beta, picks="t"),
    "lcm": Spacing(points=lcm, picks="t"),
    "karras": Spacing(points=karras, picks="sigma"),
    "exponential": Spacing(points=exponential, picks="sigma"),
    "beta_sigmas": Spacing(points=beta_sigmas, picks="sigma"),
    "ays": Spacing(points=ays, picks="sigma"),
    "ays_sdxl": Spacing(points=partial(ays, table="sdxl"), picks="sigma"),
}


def spaced(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    *,
    final: Literal["zero", "minimum"] | float = "zero",
    interpolation: Literal["linear", "log"] | None = None,
    lookup: Lookup = "interpolated",
    **options: float | int | str | None,
) -> tuple[NoiseLevel, ...]:
    """The levels of a trajectory, descending: `steps` of them (but see ldm and beta) and the one where it stops.

    `final` is where it stops: 0, the trained minimum, or a sigma; it may repeat the level before it, which makes the
    last step one of no length. `interpolation` of sigma between training steps (None: the spacing's own) serves
    spacings that pick t, `lookup` of t those that pick sigma; `options` are those of the spacing's function.

    Raises: ConfigError for an unknown name or option, no steps, or more than there are distinct levels.
    """
    if name not in SPACINGS:
        raise ConfigError(unknown("spacing", name, SPACINGS))
    spacing = SPACINGS[name]
    known = [p.name for p in inspect.signature(spacing.points).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(f"spacing {name!r}: {unknown('option', option, known)}")
    if not 1 <= steps <= len(schedule):
        raise ConfigError(f"steps = {steps}: must be 1 … {len(schedule)}")
    points = spacing.points(schedule, steps, **options)
    if spacing.picks == "t":
        ts = np.clip(points, 0, len(schedule) - 1)
        trained, table = np.arange(len(schedule)), schedule.sigmas.numpy()
        is_log = (interpolation or spacing.interpolation) == "log"
        sigmas = np.exp(np.interp(ts, trained, np.log(table))) if is_log else np.interp(ts, trained, table)
        levels = [NoiseLevel(float(sigma), float(t)) for sigma, t in zip(sigmas, ts, strict=True)]
    else:
        levels = [NoiseLevel(float(sigma), schedule.timestep(float(sigma), lookup)) for sigma in points]
    stop = {"zero": 0.0, "minimum": schedule.sigma_min}[final] if isinstance(final, str) else final
    if math.isclose(stop, levels[-1].sigma):
        stop = levels[-1].sigma
    if stop > levels[-1].sigma or any(after.sigma >= now.sigma for now, after in pairwise(levels)):
        raise ConfigError(f"spacing {name!r}: {steps} steps ending at sigma {stop:g} do not descend")
    return (*levels, NoiseLevel(stop, schedule.timestep(stop) if stop > 0 else 0.0))
