"""Samplers that remember: what earlier steps saw is the slope of this one, so each costs one evaluation per step.

Coordinates x = x0 + sigma * noise. With lambda = -log sigma, h = the step in lambda and eps = (x - x0) / sigma, the
probability-flow ODE has three exact forms, and each family puts a polynomial through past values into one of them:

    dx = eps dsigma                     plms, lms         eps over the step number or over sigma
    dx = sigma eps dlog(sigma)          deis              eps over log sigma
    d(x / sigma) = x0 dexp(lambda)      dpmpp_*, unipc    x0 over lambda

The first step has no past and is first order. A step to sigma = 0 (lambda = infinity) always ends on x0 itself, and
so does every first-order step of all three: `toward`.

Every sampler has the signature `(x, sigmas, *, noise, schedule, **options) -> Sampling`: `x` of any shape at
`sigmas[0]`, `sigmas` descending, at least two; the result is at `sigmas[-1]`. Weights are float64, x keeps its dtype.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from torch import Tensor

from mezzotint.diffusion.sampling import Noise, NoiseLevel, Query, Sampling
from mezzotint.diffusion.schedule import NoiseSchedule

FEW_STEPS = 15
"""Below this many steps, `lower_order_final` lowers the order towards the end (DPM-Solver's rule)."""


def toward(x: Tensor, x0: Tensor, ratio: float) -> Tensor:
    """x with its noise scaled: x0 + ratio * (x - x0), where ratio = sigma_to / sigma_from.

    Euler's step in sigma, DDIM with eta = 0 and every first-order exponential integrator are this one formula.
    """
    return x0 + ratio * (x - x0)


def adams_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Weights of f(nodes) in the integral, from nodes[0] to `end`, of the polynomial through them. At most 4 nodes.

    Two Gauss-Legendre points integrate a cubic exactly, so no symbolic integration is needed.
    """
    half, middle = (end - nodes[0]) / 2, (end + nodes[0]) / 2

    def basis(j: int, at: float) -> float:
        return math.prod(((at - node) / (nodes[j] - node) for k, node in enumerate(nodes) if k != j), start=1.0)

    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(basis(j, point) for point in points) for j in range(len(nodes))]


def exponential_moments(h: float) -> tuple[float, float, float]:
    """The integrals of exp(s - h) s^k / k! over s in 0 … h, for k = 0, 1, 2: h^(k+1) phi_(k+1)(-h). h may be negative.

    Source: Hochbruck and Ostermann 2010, "Exponential integrators", eq. 2.10 and its recurrence.
    """
    zeroth = -math.expm1(-h)
    first = h - zeroth
    return zeroth, first, h * h / 2 - first


def derivatives(nodes: Sequence[float], values: Sequence[Tensor]) -> list[Tensor]:
    """First and second derivative, at nodes[0], of the polynomial through 1 … 3 values: as many as there can be."""
    slopes = [(a - b) / (u - v) for (u, v), (a, b) in zip(pairwise(nodes), pairwise(values), strict=True)]
    if len(slopes) < 2:
        return slopes
    bend = (slopes[0] - slopes[1]) / (nodes[0] - nodes[2])
    return [slopes[0] + (nodes[0] - nodes[1]) * bend, 2 * bend]


def allowed_order(order: int, steps: int, step: int, *, lower_order_final: bool, euler_at_final: bool = False) -> int:
    """Order of this step under DPM-Solver's rules for the last ones; a short history may lower it further."""
    left = steps - step
    if euler_at_final and left == 1:
        return 1
    return min(order, left) if lower_order_final and steps < FEW_STEPS else order


def plms(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    combines: Literal["epsilon", "v_prediction"] = "epsilon",
) -> Sampling:
    """Pseudo linear multistep: Adams-Bashforth weights of an even grid, on steps of any size. One evaluation more.

    The first step is Heun's, unless it is the only one: the model is asked twice at sigmas[1], before and after it.
    `combines` says what the weights are put on: the noise, or, as diffusers does with networks that predict it, v.

    Source: Liu et al. 2022, arXiv:2202.09778, eq. 12, with the start of the CompVis sampler (`skip_prk_steps`).
    """
    is_velocity = combines == "v_prediction"

    def output(x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        eps = (x - x0) / sigma
        return (eps - sigma * x0) / math.hypot(1, sigma) if is_velocity else eps

    outputs: list[Tensor] = []  # newest first
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        outputs = [output(x, x0, now.sigma), *outputs][:4]
        if step == 0 and len(sigmas) > 2:
            end = toward(x, x0, after.sigma / now.sigma)
            x0 = yield Query(end, after.sigma, after.t, step)
            slope = (outputs[0] + output(end, x0, after.sigma)) / 2
        else:
            weights = adams_weights([-float(age) for age in range(len(outputs))], 1.0)
            slope = sum((w * o for w, o in zip(weights[1:], outputs[1:], strict=True)), weights[0] * outputs[0])
        if is_velocity:  # back to eps, as it is at x
            scale = math.hypot(1, now.sigma)
            slope = slope / scale + now.sigma / scale**2 * x
        x = x + (after.sigma - now.sigma) * slope
    return x


def lms(x: Tensor, sigmas: Sequence[NoiseLevel], *, noise: Noise, schedule: NoiseSchedule, order: int = 4) -> Sampling:
    """Linear multistep: the polynomial through the last `order` slopes, integrated exactly over sigma.

    Source: Adams-Bashforth with variable steps; Crowson, k-diffusion `sample_lms`.
    """
    slopes: list[Tensor] = []  # eps, newest first
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        slopes = [(x - x0) / now.sigma, *slopes][:order]
        weights = adams_weights([sigmas[step - age].sigma for age in range(len(slopes))], after.sigma)
        for weight, slope in zip(weights, slopes, strict=True):
            x = x + weight * slope
    return x


def deis(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    order: int = 2,
    lower_order_final: bool = True,
) -> Sampling:
    """Exponential Adams-Bashforth on eps over log sigma ("log-rho"); order 1, 2 or 3.

    Source: Zhang and Chen 2022, arXiv:2204.13902, section 3.3, rho-AB.
    """
    nodes: list[float] = []  # log sigma, newest first
    slopes: list[Tensor] = []  # eps
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        nodes = [math.log(now.sigma), *nodes][:order]
        slopes = [(x - x0) / now.sigma, *slopes][:order]
        if after.sigma == 0:
            return x0
        n = allowed_order(order, len(sigmas) - 1, step, lower_order_final=lower_order_final)
        moments = exponential_moments(math.log(after.sigma / now.sigma))
        for moment, slope in zip(moments, [slopes[0], *derivatives(nodes[:n], slopes[:n])], strict=False):
            x = x + after.sigma * moment * slope
    return x


def _dpmpp(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    noise: Noise,
    order: Callable[[int], int],
    solver_type: Literal["midpoint", "heun"],
    eta: float,
    s_noise: float,
) -> Sampling:
    """DPM-Solver++ on x0 over lambda, ODE (eta = 0) or SDE; `order(step)` is at most 3.

    An eta adds noise of variance sigma_to² (1 - exp(-2 eta h)) and contracts x that much more: k = (1 + eta) h stands
    where h would.

    Sources: Lu et al. 2022, arXiv:2211.01095, algorithm 2 and section 5; Crowson, k-diffusion, for eta and 3M.
    """
    nodes: list[float] = []  # lambda, newest first
    values: list[Tensor] = []  # x0
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        nodes = [-math.log(now.sigma), *nodes][:3]
        values = [x0, *values][:3]
        if after.sigma == 0:
            return x0
        h = math.log(now.sigma / after.sigma)
        k = (1 + eta) * h
        zeroth, first, second = exponential_moments(k)
        x = toward(x, x0, math.exp(-k))
        n = order(step)
        slopes = derivatives(nodes[:n], values[:n])
        if len(slopes) == 1:
            x = x + (zeroth / 2 if solver_type == "midpoint" else first / k) * h * slopes[0]
        elif len(slopes) == 2:
            # The exact weight of the second derivative is twice this: all published programs halve it, so the third
            # term makes the error smaller but not of a higher order.
            x = x + first / k * h * slopes[0] + second / k**2 * h**2 / 2 * slopes[1]
        if eta > 0:
            up = after.sigma * math.sqrt(-math.expm1(-2 * eta * h))
            x = x + s_noise * up * noise(now.sigma, after.sigma)
    return x


def dpmpp_2m(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    order: int = 2,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Sampling:
    """DPM-Solver++(2M), or of order 1 or 3: multistep on x0, deterministic.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    def allowed(step: int) -> int:
        flags = {"lower_order_final": lower_order_final, "euler_at_final": euler_at_final}
        return allowed_order(order, len(sigmas) - 1, step, **flags)

    return _dpmpp(x, sigmas, noise, allowed, solver_type, eta=0.0, s_noise=0.0)


def dpmpp_2m_sde(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = False,
    euler_at_final: bool = False,
) -> Sampling:
    """DPM-Solver++(2M) of the SDE: as dpmpp_2m, with a share `eta` of the noise made new at every step.

    Source: Crowson, k-diffusion `sample_dpmpp_2m_sde`; Lu et al. 2022, arXiv:2211.01095, section 5 for eta = 1.
    """

    def allowed(step: int) -> int:
        flags = {"lower_order_final": lower_order_final, "euler_at_final": euler_at_final}
        return allowed_order(2, len(sigmas) - 1, step, **flags)

    return _dpmpp(x, sigmas, noise, allowed, solver_type, eta, s_noise)


def dpmpp_3m_sde(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Sampling:
    """DPM-Solver++(3M) of the SDE: three past x0; its second step is the heun form of dpmpp_2m_sde.

    Source: Crowson, k-diffusion `sample_dpmpp_3m_sde`.
    """
    return _dpmpp(x, sigmas, noise, lambda step: 3, "heun", eta, s_noise)


def _uni_step(
    x: Tensor,
    nodes: Sequence[float],
    values: Sequence[Tensor],
    h: float,
    solver_type: Literal["bh1", "bh2"],
) -> Tensor:
    """One step of length h from nodes[0] = 0, with x0 known at all nodes: later ones predict, h itself corrects.

    `nodes` are lambda relative to the start of the step. One extra node has weight 1/2, as the reference has it.
    """
    zeroth, first, second = exponential_moments(h)
    scale = zeroth if solver_type == "bh2" else h
    x = toward(x, values[0], math.exp(-h))
    ratios = [node / h for node in nodes[1:]]
    if len(ratios) < 2:
        weights = [0.5] * len(ratios)
    else:
        third = h**3 / 6 - second
        targets = [first / h, 2 * second / h**2, 6 * third / h**3][: len(ratios)]
        powers = np.vander(ratios, increasing=True).T
        weights = (np.linalg.solve(powers, np.array(targets)) / scale).tolist()
    for weight, ratio, value in zip(weights, ratios, values[1:], strict=True):
        x = x + scale * weight / ratio * (value - values[0])
    return x


def unipc(
    x: Tensor,
    sigmas: Sequence[NoiseLevel],
    *,
    noise: Noise,
    schedule: NoiseSchedule,
    order: int = 2,
    solver_type: Literal["bh1", "bh2"] = "bh2",
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Sampling:
    """Unified predictor-corrector on x0 over lambda; order 1, 2 or 3.

    The evaluation that starts a step first corrects the step before it, so it costs nothing; the last step is not
    corrected. `disable_corrector` lists the steps (0-based) whose result stays as predicted.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 5-8, data prediction.
    """
    nodes: list[float] = []  # lambda, newest first
    values: list[Tensor] = []  # x0
    start = x  # of the step before, corrected
    used = 0  # its order
    for step, (now, after) in enumerate(pairwise(sigmas)):
        x0 = yield Query(x, now.sigma, now.t, step)
        here = -math.log(now.sigma)
        if step > 0 and step - 1 not in disable_corrector:
            past = [node - nodes[0] for node in nodes[:used]]
            h = here - nodes[0]
            x = _uni_step(start, [*past, h], [*values[:used], x0], h, solver_type)
        nodes, values, start = [here, *nodes][:order], [x0, *values][:order], x
        if after.sigma == 0:
            return x0
        h = math.log(now.sigma / after.sigma)
        used = min(len(nodes), len(sigmas) - 1 - step if lower_order_final else order)
        x = _uni_step(x, [node - here for node in nodes[:used]], values[:used], h, solver_type)
    return x
