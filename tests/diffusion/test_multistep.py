"""Laws of the samplers that remember: exact for polynomials in their own variable, and special cases of each other."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mezzotint.diffusion import multistep
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import NoiseLevel, Query, solve
from mezzotint.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
Model = Callable[[Query], Tensor]
Moments = Callable[[float], tuple[float, float, float]]


def no_noise(sigma_from: float, sigma_to: float) -> Tensor:
    raise AssertionError("these samplers draw nothing")


def polynomial(name: str, terms: int) -> tuple[Model, Callable[[float, float], float], list[NoiseLevel]]:
    """A model whose answer is a polynomial of so many terms in the sampler's own variable; a constant; levels.

    The constant is a function of x and sigma that the exact solution never changes.
    """
    c = [0.7, -0.4, 0.3, -0.2][:terms]
    p = np.polynomial.Polynomial(c)
    whole, once, twice = p.integ(), p.deriv(), p.deriv(2)
    ramp = [(4.0 ** (1 / 7) * (1 - i / 9) + 0.1 ** (1 / 7) * i / 9) ** 7 for i in range(10)]
    levels = [NoiseLevel(sigma, 0.0) for sigma in ramp]
    if name in {"lms", "plms"}:  # eps over sigma
        even = [NoiseLevel(4.0 - 0.4 * i, 0.0) for i in range(10)]
        return lambda q: q.x - q.sigma * p(q.sigma), lambda x, s: x - whole(s), levels if name == "lms" else even
    if name == "deis":  # eps over u = log sigma: the integral of p exp(u) is (p - p' + p'') exp(u)
        return (
            lambda q: q.x - q.sigma * p(math.log(q.sigma)),
            lambda x, s: x - s * (p - once + twice)(math.log(s)),
            levels,
        )
    return (  # x0 over lambda
        lambda q: torch.full_like(q.x, p(-math.log(q.sigma))),
        lambda x, s: (x - (p - once + twice)(-math.log(s))) / s,
        levels,
    )


def check_polynomial(name: str, terms: int, **options: object) -> None:
    """Once there is enough past, steps are exact for a polynomial of so many terms."""
    model, constant, levels = polynomial(name, terms)
    seen: list[float] = []

    def predict(query: Query) -> Tensor:
        seen.append(constant(float(query.x), query.sigma))
        return model(query)

    end = solve(
        SAMPLERS[name](
            torch.tensor(1.0, dtype=torch.float64),
            levels,
            noise=no_noise,
            schedule=SCHEDULE,
            **options,
        ),
        predict,
    )
    seen.append(constant(float(end), levels[-1].sigma))
    start = terms + (name == "plms")  # its first step asks twice
    assert seen[start:] == pytest.approx([seen[start]] * len(seen[start:]), rel=1e-10)


POLYNOMIALS: list[tuple[str, int, dict[str, object]]] = [
    *[("lms", order, {"order": order}) for order in (1, 2, 3, 4)],
    ("plms", 4, {}),
    *[("deis", order, {"order": order, "lower_order_final": False}) for order in (1, 2, 3)],
    ("dpmpp_2m", 1, {"order": 1}),
    ("dpmpp_2m", 2, {"solver_type": "heun", "lower_order_final": False}),
    ("unipc", 3, {"order": 3, "lower_order_final": False}),
    ("unipc", 3, {"order": 3, "lower_order_final": False, "solver_type": "bh1"}),
]


@pytest.mark.parametrize(("name", "terms", "options"), POLYNOMIALS)
def test_multistep_integrates_polynomials_exactly(name: str, terms: int, options: dict[str, object]) -> None:
    check_polynomial(name, terms, **options)


def test_dpmpp_of_order_3_halves_the_second_derivative_as_published() -> None:
    """So it is not exact for x0 of degree 2; with the halving undone it is."""
    options: dict[str, object] = {"order": 3, "solver_type": "heun", "lower_order_final": False}
    with pytest.raises(AssertionError):
        check_polynomial("dpmpp_2m", 3, **options)
    derivatives = multistep.derivatives

    def doubled(nodes: Sequence[float], values: Sequence[Tensor]) -> list[Tensor]:
        return [slope * (1 + i) for i, slope in enumerate(derivatives(nodes, values))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multistep, "derivatives", doubled)
        check_polynomial("dpmpp_2m", 3, **options)


EQUAL: list[tuple[str, dict[str, object], str, dict[str, object]]] = [
    ("ddim", {}, "euler", {}),
    ("ddim", {"eta": 1.0}, "ddpm", {}),
    ("euler_ancestral", {}, "ddpm", {}),
    ("dpm2_ancestral", {"eta": 0.0}, "dpm2", {}),
    ("dpmpp_2m_sde", {"eta": 0.0}, "dpmpp_2m", {"lower_order_final": False}),
    ("dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_2m", {"order": 3, "solver_type": "heun", "lower_order_final": False}),
    ("dpmpp_2m", {"order": 1}, "euler", {}),
    ("deis", {"order": 1}, "euler", {}),
    ("lms", {"order": 1}, "euler", {}),
    ("restart", {}, "heun", {}),
]


@pytest.mark.parametrize(("one", "of_one", "other", "of_other"), EQUAL)
def test_samplers_that_are_special_cases_of_others(
    one: str, of_one: dict[str, object], other: str, of_other: dict[str, object]
) -> None:
    levels = [NoiseLevel(10.0 * 0.4**i, 500.0) for i in range(7)] + [NoiseLevel(0.0, 0.0)]
    x = torch.tensor([10.0, -3.0], dtype=torch.float64)

    def noise(sigma_from: float, sigma_to: float) -> Tensor:
        return x * (sigma_from - sigma_to)

    def run(name: str, options: dict[str, object]) -> Tensor:
        sampling = SAMPLERS[name](x, levels, noise=noise, schedule=SCHEDULE, **options)
        return solve(sampling, lambda query: torch.tanh(query.x))

    torch.testing.assert_close(run(one, of_one), run(other, of_other), rtol=1e-12, atol=1e-12)


def test_moments_are_the_integrals_they_stand_for() -> None:
    """exp(s - h) s^k / k! over 0 … h, by quadrature; h of both signs, large and small."""
    points, weights = np.polynomial.legendre.leggauss(60)
    for h in (-6.0, -0.3, 0.01, 0.5, 4.0):
        at = (points + 1) * h / 2
        for k, moment in enumerate(multistep.exponential_moments(h)):
            integral = float(weights @ (np.exp(at - h) * at**k / math.factorial(k))) * h / 2
            assert moment == pytest.approx(integral, rel=1e-9)


def test_adams_weights_of_an_even_grid_are_those_of_the_textbook() -> None:
    found = multistep.adams_weights([0.0, -1.0, -2.0, -3.0], 1.0)
    assert found == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])


def second_too_large(h: float, right: Moments = multistep.exponential_moments) -> tuple[float, float, float]:
    zeroth, first, second = right(h)
    return zeroth, 1.1 * first, second


def third_too_large(h: float, right: Moments = multistep.exponential_moments) -> tuple[float, float, float]:
    zeroth, first, second = right(h)
    return zeroth, first, 1.1 * second


@pytest.mark.parametrize(
    ("wrong", "name", "terms", "options"),
    [
        (second_too_large, "deis", 2, {"lower_order_final": False}),
        (second_too_large, "dpmpp_2m", 2, {"solver_type": "heun", "lower_order_final": False}),
        (third_too_large, "unipc", 3, {"order": 3, "lower_order_final": False}),
    ],
)
def test_the_law_catches_a_wrong_moment(
    wrong: Moments, name: str, terms: int, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_polynomial(name, terms, **options)
    monkeypatch.setattr(multistep, "exponential_moments", wrong)
    with pytest.raises(AssertionError):
        check_polynomial(name, terms, **options)
