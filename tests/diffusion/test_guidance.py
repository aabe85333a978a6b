"""Stages: guidance against its definition on the network's output, and inpainting against its promises."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion
from torch import Tensor

from mezzotint.diffusion.guidance import guided, masked, unguided
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, Parameterisation, x0_from
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import Query, Row, Stage, staged
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.diffusion.spacing import spaced
from mezzotint.errors import ConfigError

SD = NoiseSchedule.scaled_linear()


def network(row: Row) -> Tensor:
    """Output that depends on everything that a row holds."""
    assert isinstance(row.conditioning, float)
    return torch.tanh(row.x / math.hypot(1, row.sigma) + row.conditioning) + row.t / 1000


def answer(stage: Stage, q: Query, parameterisation: Parameterisation) -> tuple[Tensor, list[Row]]:
    """What a stage makes of the network's answers, and the rows that it asked for."""
    asking = stage(q)
    rows = next(asking)
    with pytest.raises(StopIteration) as finished:
        asking.send([x0_from(network(row), row.x, row.sigma, parameterisation) for row in rows])
    return finished.value.value, rows


@pytest.fixture
def query(generator: torch.Generator) -> Query:
    return Query(torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=generator) * 3, 2.5, 640.0, 3)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_is_what_diffusers_does_to_the_output(name: str, rescale: float, query: Query) -> None:
    parameterisation = PARAMETERISATIONS[name]
    stage = guided(0.3, -0.2, 7.5, rescale=rescale, parameterisation=parameterisation)
    x0, rows = answer(stage, query, parameterisation)
    conditional, unconditional = (network(row) for row in rows)
    rescaled: Callable[[Tensor, Tensor, float], Tensor] = getattr(pipeline_stable_diffusion, "rescale_noise_cfg")  # noqa: B009
    output = rescaled(unconditional + 7.5 * (conditional - unconditional), conditional, rescale)
    torch.testing.assert_close(x0, x0_from(output, query.x, query.sigma, parameterisation), rtol=1e-10, atol=1e-10)


def test_full_rescale_restores_the_deviation_of_the_output(query: Query) -> None:
    parameterisation = PARAMETERISATIONS["sample"]  # where x0 is the output
    x0, rows = answer(guided(0.3, -0.2, 7.5, rescale=1.0, parameterisation=parameterisation), query, parameterisation)
    plain, _ = answer(guided(0.3, -0.2, 7.5), query, parameterisation)
    assert float(x0.std()) == pytest.approx(float(network(rows[0]).std()), rel=1e-12)
    assert float(plain.std()) != pytest.approx(float(network(rows[0]).std()), rel=0.05)


def test_rescale_is_of_each_picture_alone(query: Query) -> None:
    parameterisation = PARAMETERISATIONS["epsilon"]
    stage = guided(0.3, -0.2, 7.5, rescale=0.7, parameterisation=parameterisation)
    both, _ = answer(stage, query._replace(x=torch.cat([query.x, 5 * query.x])), parameterisation)
    alone, _ = answer(stage, query, parameterisation)
    torch.testing.assert_close(both[:1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_one_equals_no_guidance(rescale: float, query: Query) -> None:
    parameterisation = PARAMETERISATIONS["epsilon"]
    x0, rows = answer(
        guided(0.3, -0.2, 1.0, rescale=rescale, parameterisation=parameterisation), query, parameterisation
    )
    alone, (row,) = answer(unguided(0.3), query, parameterisation)
    assert torch.equal(x0, alone)
    assert rows == [row]


def test_guidance_zero_is_the_unconditional_answer(query: Query) -> None:
    parameterisation = PARAMETERISATIONS["epsilon"]
    x0, _ = answer(guided(0.3, -0.2, 0.0), query, parameterisation)
    alone, _ = answer(unguided(-0.2), query, parameterisation)
    assert torch.equal(x0, alone)


def test_rows_name_network_and_slot(query: Query) -> None:
    _, rows = answer(guided(0.3, -0.2, 5.0, network="refiner"), query, PARAMETERISATIONS["epsilon"])
    assert [(row.network, row.slot, row.conditioning) for row in rows] == [
        ("refiner", "conditional", 0.3),
        ("refiner", "unconditional", -0.2),
    ]
    assert all((row.sigma, row.t) == (query.sigma, query.t) for row in rows)


@pytest.mark.parametrize(("sigma", "rows"), [(0.5, 1), (1.0, 2), (2.5, 2), (4.0, 2), (4.5, 1)])
def test_outside_the_interval_there_is_one_row(sigma: float, rows: int, query: Query) -> None:
    at = query._replace(sigma=sigma)
    x0, asked = answer(guided(0.3, -0.2, 5.0, interval=(1.0, 4.0)), at, PARAMETERISATIONS["epsilon"])
    assert len(asked) == rows
    alone, _ = answer(unguided(0.3), at, PARAMETERISATIONS["epsilon"])
    assert torch.equal(x0, alone) == (rows == 1)


def test_rescale_needs_the_parameterisation() -> None:
    with pytest.raises(ConfigError, match="its parameterisation is needed"):
        guided(0.0, 0.0, 5.0, rescale=0.5)


def run(stage: Stage, sampler: str, x: Tensor, predict: Callable[[Row], Tensor]) -> Tensor:
    """A whole trajectory of 6 steps; noise, where it is drawn, is all ones."""

    def ones(sigma_from: float, sigma_to: float) -> Tensor:
        return torch.ones_like(x)

    sampling = SAMPLERS[sampler](x, spaced("trailing", SD, 6), noise=ones, schedule=SD)
    rows = staged(sampling, stage)
    asked = next(rows)
    while True:
        try:
            asked = rows.send([predict(row) for row in asked])
        except StopIteration as finished:
            return finished.value


@pytest.fixture
def picture(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A latent, noise, and a mask whose left half is to be painted anew."""
    latent, noise = (torch.randn(1, 4, 4, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    mask[..., :4] = 1
    return latent, noise, mask


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_outside_the_mask_every_sampler_ends_on_the_given_latent(
    sampler: str, picture: tuple[Tensor, Tensor, Tensor]
) -> None:
    latent, noise, mask = picture
    x = latent + SD.sigma_max * noise
    found = run(masked(unguided(0.3), latent, mask, noise), sampler, x, lambda row: torch.tanh(row.x))
    torch.testing.assert_close(found[..., 4:], latent[..., 4:], rtol=0, atol=1e-6)  # lcm mixes 1e-7 of x in
    assert float((found - latent)[..., :4].abs().min()) > 1e-4


def test_outside_the_mask_the_network_sees_the_latent_at_the_level_asked_for(
    picture: tuple[Tensor, Tensor, Tensor],
) -> None:
    latent, noise, mask = picture
    seen: list[Row] = []

    def predict(row: Row) -> Tensor:
        seen.append(row)
        return torch.zeros_like(row.x)

    run(masked(unguided(0.3), latent, mask, noise), "heun", latent + SD.sigma_max * noise, predict)
    assert len(seen) == 11
    for row in seen:
        torch.testing.assert_close(row.x[..., 4:], (latent + row.sigma * noise)[..., 4:])


def test_full_mask_is_the_stage_and_empty_mask_is_the_latent(
    picture: tuple[Tensor, Tensor, Tensor], query: Query
) -> None:
    latent, noise, _ = picture
    at = query._replace(x=latent + query.sigma * noise)
    inner = guided(0.3, -0.2, 5.0)
    plain, _ = answer(inner, at, PARAMETERISATIONS["epsilon"])
    everywhere, _ = answer(masked(inner, latent, torch.ones(1, 1, 4, 8), noise), at, PARAMETERISATIONS["epsilon"])
    nowhere, _ = answer(masked(inner, latent, torch.zeros(1, 1, 4, 8), noise), at, PARAMETERISATIONS["epsilon"])
    torch.testing.assert_close(everywhere, plain)
    assert torch.equal(nowhere, latent)
