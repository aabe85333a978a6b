"""Nineteen ways from noise to a picture, under one signature; those that do not remember earlier steps are here.

Every sampler is `(x, sigmas, *, noise, schedule, **options) -> Sampling`: it starts from `x` of any shape at level
`sigmas[0]`, asks for x0 by yielding queries, and returns x at `sigmas[-1]`, which is 0 or any level to stop at.
Coordinates are x = x0 + sigma * noise. In them a step of Euler, of DDIM and of DPM-Solver++(1) is one formula,
`toward`, and adding noise of standard deviation `up` after a step to `down` reaches sqrt(down² + up²), `ancestral`.

`noise` is asked only by samplers that draw, once per draw, with the levels it is drawn for. `schedule` gives the t of
levels that are not in `sigmas`. Weights are float64; x keeps its dtype.
"""

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from mezzotint.diffusion.multistep import deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, lms, plms, toward, unipc
from mezzotint.diffusion.sampling import Noise, NoiseLevel, Query, Sampling
from mezzotint.diffusion.schedule import NoiseSchedule


def ancestral(sigma: float, sigma_to: float, eta: float = 1.0) -> tuple[float, float]:
    """(down, up): a step from sigma to `down`, then noise of standard deviation `up`, arrives at sigma_to.

    eta = 1 is the posterior of the forward process, eta = 0 adds nothing.

    Source: Song et al. 2020, arXiv:2010.02502, eq. 16, divided by sqrt(ᾱ) of the step's end.
    """
    up = min(sigma_to, eta * sigma_to * math.sqrt(max(0.0, 1 - (sigma_to / sigma) ** 2)))
    return math.sqrt(sigma_to**2 - up**2), up


def churned(
    x: Tensor, now: NoiseLevel, gamma: float, s_noise: float, noise: Noise, schedule: NoiseSchedule
) -> tuple[Tensor, NoiseLevel]:
    """x with noise added until its level is (1 + gamma) times as high, and that level.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2, lines 4-6.
    """
    if gamma == 0:
        return x, now
    sigma = now.sigma * (1 + gamma)
    x = x + s_noise * math.sqrt(sigma**2 - now.sigma**2) * noise(now.sigma, sigma)
    return x, NoiseLevel(sigma, schedule.timestep(sigma))


def churn_factor(sigma: float, steps: int, s_churn: float, s_tmin: float, s_tmax: float | None) -> float:
    """gamma of `churned`: s_churn spread over all steps, 0 outside s_tmin … s_tmax (None: no upper end)."""
    if not s_tmin <= sigma <= (math.inf if s_tmax is None else s_tmax):
        return 0.0
    return min(s_churn / steps, math.sqrt(2) - 1)


def ddim(
    x: Tensor, sigmas: Sequence[NoiseLevel], *, noise: Noise, schedule: NoiseSchedule, eta: float = 0.0
) -> Sampling:
    """Denoising diffusion implicit model: deterministic, or with a share `eta` of DDPM's noise.

    Source: Song et al. 2020, arXiv:2010.02502, eq. 12 and 16.
    """
    return euler_ancestral(x, sigmas, noise=noise, schedule=schedule, eta=eta)


def ddpm(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
) -> Sampling:
    """Ancestral sampling of DDPM: a draw from the posterior q(x_to | x, x0), whose variance may be the larger bound.

    No noise is added to a final level of 0 (diffusers adds some for fixed_large).

    Source: Ho et al. 2020, arXiv:2006.11239, eq. 7 and section 3.2, divided by sqrt(ᾱ) of the step's end.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        down, up = ancestral(now.sigma, after.sigma)
        x = toward(x, x0, down / now.sigma)
        if variance == "fixed_large":
            up = math.sqrt((now.sigma**2 - after.sigma**2) * (1 + after.sigma**2) / (1 + now.sigma**2))
        if after.sigma > 0:
            x = x + up * noise(now.sigma, after.sigma)
    return x


def euler(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float | None = None,
    s_noise: float = 1.0,
) -> Sampling:
    """Euler's method in sigma. With s_churn, each step first adds noise and is asked at the higher level.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2 without its second evaluation.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        gamma = churn_factor(now.sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, now = churned(x, now, gamma, s_noise, noise, schedule)
        x0 = yield Query(x, now.sigma, now.t, step)
        x = toward(x, x0, after.sigma / now.sigma)
    return x


def euler_ancestral(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Sampling:
    """Euler's step to a lower level than asked for, then noise up to it. Equal to ddim with the same eta.

    Source: Crowson, k-diffusion `sample_euler_ancestral`.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        down, up = ancestral(now.sigma, after.sigma, eta)
        x = toward(x, x0, down / now.sigma)
        if up > 0:
            x = x + s_noise * up * noise(now.sigma, after.sigma)
    return x


def _heun_step(x: Tensor, now: NoiseLevel, after: NoiseLevel, step: int) -> Generator[Query, Tensor, Tensor]:
    """The mean of the slopes at both ends; Euler's step to a level of 0, which has no slope."""
    x0 = yield Query(x, now.sigma, now.t, step)
    end = toward(x, x0, after.sigma / now.sigma)
    if after.sigma == 0:
        return end
    x0_end = yield Query(end, after.sigma, after.t, step)
    slope = ((x - x0) / now.sigma + (end - x0_end) / after.sigma) / 2
    return x + (after.sigma - now.sigma) * slope


def heun(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float | None = None,
    s_noise: float = 1.0,
) -> Sampling:
    """Heun's second-order method in sigma, two evaluations a step, with optional churn as in `euler`.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        gamma = churn_factor(now.sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, now = churned(x, now, gamma, s_noise, noise, schedule)
        x = yield from _heun_step(x, now, after, step)
    return x


def _midpoint_step(
    x: Tensor, now: NoiseLevel, sigma_to: float, step: int, schedule: NoiseSchedule
) -> Generator[Query, Tensor, Tensor]:
    """The slope in sigma at the geometric middle of both levels; Euler's step to a level of 0."""
    x0 = yield Query(x, now.sigma, now.t, step)
    if sigma_to == 0:
        return x0
    middle = math.sqrt(now.sigma * sigma_to)
    x_middle = toward(x, x0, middle / now.sigma)
    x0_middle = yield Query(x_middle, middle, schedule.timestep(middle), step)
    return x + (sigma_to - now.sigma) / middle * (x_middle - x0_middle)


def dpm2(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float | None = None,
    s_noise: float = 1.0,
) -> Sampling:
    """Midpoint method with the middle of DPM-Solver-2 (halfway in log sigma), with optional churn as in `euler`.

    Source: Crowson, k-diffusion `sample_dpm_2`; Lu et al. 2022, arXiv:2206.00927, algorithm 1 for the middle.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        gamma = churn_factor(now.sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, now = churned(x, now, gamma, s_noise, noise, schedule)
        x = yield from _midpoint_step(x, now, after.sigma, step, schedule)
    return x


def dpm2_ancestral(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Sampling:
    """The midpoint step of dpm2 to a lower level, then noise up to the one asked for.

    Source: Crowson, k-diffusion `sample_dpm_2_ancestral`.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        down, up = ancestral(now.sigma, after.sigma, eta)
        x = yield from _midpoint_step(x, now, down, step, schedule)
        if up > 0:
            x = x + s_noise * up * noise(now.sigma, after.sigma)
    return x


def dpmpp_2s_ancestral(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Sampling:
    """DPM-Solver++(2S) to a lower level, x0 taken halfway in log sigma, then noise up to the one asked for.

    Sources: Lu et al. 2022, arXiv:2211.01095, algorithm 1; Crowson, k-diffusion `sample_dpmpp_2s_ancestral`.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        down, up = ancestral(now.sigma, after.sigma, eta)
        if down > 0:
            middle = math.sqrt(now.sigma * down)
            x0 = yield Query(toward(x, x0, middle / now.sigma), middle, schedule.timestep(middle), step)
        x = toward(x, x0, down / now.sigma)
        if up > 0:
            x = x + s_noise * up * noise(now.sigma, after.sigma)
    return x


def dpmpp_sde(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
    r: float = 0.5,
) -> Sampling:
    """DPM-Solver++ of the SDE: an ancestral step to the share `r` of the way in log sigma, then one over the whole.

    Both start from the same x, so a noise of overlapping intervals (a Brownian path) makes them consistent.

    Source: Crowson, k-diffusion `sample_dpmpp_sde`.
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        if after.sigma == 0:
            return x0
        middle = now.sigma ** (1 - r) * after.sigma**r
        down, up = ancestral(now.sigma, middle, eta)
        x_middle = toward(x, x0, down / now.sigma)
        if up > 0:
            x_middle = x_middle + s_noise * up * noise(now.sigma, middle)
        x0_middle = yield Query(x_middle, middle, schedule.timestep(middle), step)
        down, up = ancestral(now.sigma, after.sigma, eta)
        x = toward(x, x0 + (x0_middle - x0) / (2 * r), down / now.sigma)
        if up > 0:
            x = x + s_noise * up * noise(now.sigma, after.sigma)
    return x


def lcm(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    timestep_scaling: float = 10.0,
) -> Sampling:
    """Latent consistency: jump to x0, add new noise of the next level. For models distilled to it.

    The jump is c_skip x + c_out x0 with x in the coordinates of the trained network, sigma_data = 1/2 and time
    t * timestep_scaling: x0 but for the smallest t.

    Source: Luo et al. 2023, arXiv:2310.04378, eq. 8 and appendix D (multistep sampling).
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        time, data = now.t * timestep_scaling, 0.5
        c_skip = data**2 / (time**2 + data**2)
        c_out = time / math.hypot(time, data)
        x = c_out * x0 + c_skip / math.hypot(1, now.sigma) * x
        if after.sigma > 0:
            x = x + after.sigma * noise(now.sigma, after.sigma)
    return x


def tcd(
    x: Tensor, sigmas: Sequence[NoiseLevel], *, noise: Noise, schedule: NoiseSchedule, gamma: float = 0.3
) -> Sampling:
    """Trajectory consistency: a jump to (1 - gamma) of the next t, then noise up to it. For models distilled to it.

    gamma = 0 is deterministic, gamma = 1 jumps all the way to training step 0. diffusers calls gamma `eta`.

    Source: Zheng et al. 2024, arXiv:2402.19159, algorithm 1 (strategic stochastic sampling).
    """
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        down = after.sigma
        if gamma > 0:
            down = min(down, schedule.sigma(math.floor((1 - gamma) * after.t)))
        x = toward(x, x0, down / now.sigma)
        if down < after.sigma:
            x = x + math.sqrt(after.sigma**2 - down**2) * noise(now.sigma, after.sigma)
    return x


def restart_path(sigmas: Sequence[NoiseLevel], schedule: NoiseSchedule) -> list[tuple[NoiseLevel, NoiseLevel]]:
    """The steps of `restart`, in order: from 20 steps on, some of them go from 2 down to 0.1 again.

    The levels are then spaced anew, evenly in sigma^(1/7), between the first and the last above 0; the number of
    steps stays the same, unless no level lies between 2 and 0.1: then there are fewer and none goes back. Where a step
    does not start at the end of the one before, noise is to be added.

    Source: the values of AUTOMATIC1111's `restart_sampler`.
    """
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    again, times = (steps // 4, 2) if steps >= 36 else (9, 1)

    def spaced(n: int, high: NoiseLevel, low: NoiseLevel) -> list[NoiseLevel]:
        ramp = [(high.sigma ** (1 / 7) * (1 - i / n) + low.sigma ** (1 / 7) * (i / n)) ** 7 for i in range(1, n)]
        return [high, *(NoiseLevel(sigma, schedule.timestep(sigma)) for sigma in ramp), low]

    zero = list(sigmas[-1:]) if sigmas[-1].sigma == 0 else []
    levels = spaced(steps - again * times - len(zero), sigmas[0], sigmas[-1 - len(zero)]) + zero
    top = min(range(len(levels)), key=lambda i: abs(levels[i].sigma - 2.0))
    bottom = min(range(len(levels)), key=lambda i: abs(levels[i].sigma - 0.1))
    path = list(pairwise(levels))
    if top < bottom:
        path[bottom:bottom] = list(pairwise(spaced(again, levels[top], levels[bottom]))) * times
    return path


def restart(
    x: Tensor, sigmas: Sequence[NoiseLevel], *, noise: Noise, schedule: NoiseSchedule, s_noise: float = 1.0
) -> Sampling:
    """Heun's method that, near the end, goes back up with new noise and down again. As heun below 20 steps.

    Source: Xu et al. 2023, arXiv:2306.14878, algorithm 1, on the levels of `restart_path`.
    """
    at = sigmas[0].sigma
    for step, (now, after) in enumerate(restart_path(sigmas, schedule)):
        if at < now.sigma:
            x = x + s_noise * math.sqrt(now.sigma**2 - at**2) * noise(at, now.sigma)
        x = yield from _heun_step(x, now, after, step)
        at = after.sigma
    return x


SAMPLERS: dict[str, Callable[..., Sampling]] = {
    sampler.__name__: sampler
    for sampler in (
        ddim, ddpm, plms, lms, euler, euler_ancestral, heun, dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_sde,
        dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc, deis, lcm, tcd, restart,
    )
}  # fmt: skip
"""Every sampler by name; titles, aliases and option ranges are in mezzotint.names."""
