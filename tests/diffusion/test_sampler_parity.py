"""Our samplers against the programs whose pictures they must repeat, on the same levels, model and noise.

Live against the scheduler classes of diffusers, in their own coordinates (x / sqrt(1 + sigma²) for most); against
golden/k_diffusion.json for k-diffusion, which is not installable beside them.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import NoiseLevel, Query, solve
from mezzotint.diffusion.schedule import NoiseSchedule

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
GOLDEN = Path(__file__).parent.parent / "golden" / "k_diffusion.json"


def network(scaled: Tensor, t: float) -> Tensor:
    """A toy noise prediction, affine in its input and smooth in t; `scaled` is x / sqrt(1 + sigma²)."""
    return (0.6 + 0.3 * math.sin(t / 300)) * scaled + 0.1 * math.cos(t / 200)


def toy(query: Query) -> Tensor:
    """The estimate of x0 that belongs to `network`."""
    return query.x - query.sigma * network(query.x / math.hypot(1, query.sigma), query.t)


def draws() -> Callable[..., Tensor]:
    """Noise without a generator: draw number n is cos(n + 1), cos(n + 2), cos(n + 3)."""
    count = 0

    def draw(*_: object, **__: object) -> Tensor:
        nonlocal count
        count += 1
        return torch.tensor([[[[count, count + 1, count + 2]]]], dtype=torch.float64).cos()  # [1 1 1 3]

    return draw


@dataclass(frozen=True, kw_only=True)
class Case:
    """A scheduler class of diffusers and the sampler that equals it.

    `is_vp`: its x is ours / sqrt(1 + sigma²). `evaluations`: how many of its timesteps one of our steps takes.
    """

    name: str
    scheduler: str
    config: dict[str, Any] = field(default_factory=lambda: dict(LEADING))  # Any: each class has its own
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    step: dict[str, Any] = field(default_factory=dict[str, Any])  # of the scheduler's step function
    final: str = "zero"
    is_vp: bool = True
    evaluations: int = 1
    tolerance: float = 1e-5


LAST = {"final_sigmas_type": "sigma_min", **LEADING}
CASES = [
    Case(name="ddim", scheduler="DDIM", config={"clip_sample": False, **LEADING}),
    Case(
        name="ddim", scheduler="DDIM", config={"clip_sample": False, "set_alpha_to_one": False, **LEADING}, final="t0"
    ),
    Case(
        name="ddim", scheduler="DDIM", config={"clip_sample": False, **LEADING}, options={"eta": 0.6}, step={"eta": 0.6}
    ),
    Case(name="ddpm", scheduler="DDPM", config={"clip_sample": False, **LEADING}),
    Case(name="plms", scheduler="PNDM", config={"skip_prk_steps": True, **LEADING}, final="t0"),
    Case(name="lms", scheduler="LMSDiscrete", is_vp=False),
    Case(name="euler", scheduler="EulerDiscrete", is_vp=False),
    Case(name="euler", scheduler="EulerDiscrete", config=LAST, is_vp=False, final="t0"),
    Case(name="euler_ancestral", scheduler="EulerAncestralDiscrete", is_vp=False),
    Case(name="heun", scheduler="HeunDiscrete", is_vp=False, evaluations=2),
    Case(name="dpm2", scheduler="KDPM2Discrete", is_vp=False, evaluations=2),
    Case(name="dpm2_ancestral", scheduler="KDPM2AncestralDiscrete", is_vp=False, evaluations=2),
    Case(name="dpmpp_2m", scheduler="DPMSolverMultistep"),
    Case(name="dpmpp_2m", scheduler="DPMSolverMultistep", config=LAST, final="t0"),
    Case(
        name="dpmpp_2m",
        scheduler="DPMSolverMultistep",
        config={"euler_at_final": True, "lower_order_final": False, "solver_type": "heun", **LAST},
        options={"euler_at_final": True, "lower_order_final": False, "solver_type": "heun"},
        final="t0",
    ),
    Case(name="dpmpp_2m", scheduler="DPMSolverMultistep", config={"solver_order": 3, **LEADING}, options={"order": 3}),
    Case(name="dpmpp_2m", scheduler="DPMSolverMultistep", config={"solver_order": 1, **LEADING}, options={"order": 1}),
    Case(name="dpmpp_2m_sde", scheduler="DPMSolverMultistep", config={"algorithm_type": "sde-dpmsolver++", **LEADING}),
    Case(
        name="dpmpp_2m_sde",
        scheduler="DPMSolverMultistep",
        config={"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", **LAST},
        options={"solver_type": "heun", "lower_order_final": True},
        final="t0",
    ),
    Case(name="unipc", scheduler="UniPCMultistep"),
    Case(name="unipc", scheduler="UniPCMultistep", config=LAST, final="t0"),
    Case(
        name="unipc",
        scheduler="UniPCMultistep",
        config={"solver_order": 3, "solver_type": "bh1", "lower_order_final": False, **LAST},
        options={"order": 3, "solver_type": "bh1", "lower_order_final": False},
        final="t0",
    ),
    Case(
        name="unipc",
        scheduler="UniPCMultistep",
        config={"solver_order": 3, "disable_corrector": [0, 2], **LEADING},
        options={"order": 3, "disable_corrector": (0, 2)},
    ),
    Case(name="deis", scheduler="DEISMultistep", final="t0"),
    Case(
        name="deis",
        scheduler="DEISMultistep",
        config={"solver_order": 3, **LEADING},
        options={"order": 3},
        final="t0",
        tolerance=5e-5,  # its weights cancel, in float32; measured 2.6e-5
    ),
    Case(name="lcm", scheduler="LCM", config={}),
    Case(name="tcd", scheduler="TCD", config={}, final="t0"),
    Case(name="tcd", scheduler="TCD", config={}, options={"gamma": 0.8}, step={"eta": 0.8}, final="t0"),
]


def reference(case: Case, steps: int, start: int) -> tuple[Any, list[float]]:  # Any: diffusers has no types
    """A scheduler ready to run from step `start`, and the timesteps that it will ask for."""
    scheduler = getattr(import_module("diffusers"), case.scheduler + "Scheduler")(**BETAS, **case.config)
    scheduler.set_timesteps(steps)
    at = start * case.evaluations
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(at)
    return scheduler, list(scheduler.timesteps[at:])


def levels(case: Case, scheduler: Any, timesteps: list[Any], schedule: NoiseSchedule) -> list[NoiseLevel]:  # Any: above
    """Our levels for the scheduler's own table."""
    table = list(map(float, timesteps))
    if case.name == "plms":
        table = sorted(set(table), reverse=True)
    if case.evaluations == 2:  # asks for level, middle (or next level), level, …
        table = table[:1] + table[2::2]
    end = NoiseLevel(0.0, 0.0) if case.final == "zero" else NoiseLevel(schedule.sigma_min, 0.0)
    return [NoiseLevel(schedule.sigma(t), t) for t in table] + [end]


def reference_x(case: Case, scheduler: Any, timesteps: list[Any], x: Tensor) -> Tensor:  # Any: above
    """What the scheduler makes of x."""
    for t in timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, float(t)), t, x, return_dict=False, **case.step)[0]
    return x


def compare(case: Case, steps: int, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, timesteps = reference(case, steps, start)
    module = import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", draws())
    schedule = NoiseSchedule(scheduler.alphas_cumprod.double())
    ours = levels(case, scheduler, timesteps, schedule)
    x = ours[0].sigma * torch.tensor([[[[1.0, -0.3, 0.2]]]], dtype=torch.float64)
    unit = [math.hypot(1, level.sigma) if case.is_vp else 1.0 for level in (ours[0], ours[-1])]
    expected = reference_x(case, scheduler, timesteps, x / unit[0]).double() * unit[1]
    found = solve(SAMPLERS[case.name](x, ours, noise=draws(), schedule=schedule, **case.options), toy)
    torch.testing.assert_close(found, expected, rtol=case.tolerance, atol=case.tolerance * float(expected.abs().max()))


def identity(case: Case) -> str:
    return "-".join([case.name, *map(str, case.options.values()), case.final])


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("case", CASES, ids=identity)
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of diffusers with NumPy 2
def test_equals_the_scheduler_of_diffusers(case: Case, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 1e-5: diffusers' tables are float32."""
    compare(case, steps, 0, monkeypatch)


# Not plms and lms: there diffusers counts on slopes that it never saw; and it counts disable_corrector from the step
# where the tail was cut from, we from the first that is run.
TAILS = [case for case in CASES if case.name not in {"plms", "lms"} and "disable_corrector" not in case.options]


@pytest.mark.parametrize("case", TAILS, ids=identity)
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_equals_the_scheduler_of_diffusers_on_the_tail_of_its_steps(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last 16 of 20 steps, as an image to image run at strength 0.8 takes them."""
    compare(case, 20, 4, monkeypatch)


RESULTS = json.loads(GOLDEN.read_text())["results"]


@pytest.mark.parametrize("name", sorted({result["name"] for result in RESULTS}))
def test_equals_k_diffusion(name: str) -> None:
    """To 1e-10, with churn and options off their defaults; denoiser, levels and draws are those of the script."""

    def denoised(query: Query) -> Tensor:
        return torch.tanh(query.x) / (1 + query.sigma) + 0.1 * query.x / (1 + query.sigma**2)

    for result in (result for result in RESULTS if result["name"] == name):
        steps = result["steps"]
        ramp = [i / max(steps - 1, 1) for i in range(steps)]
        sigmas = [(14 ** (1 / 7) * (1 - r) + 0.03 ** (1 / 7) * r) ** 7 for r in ramp] + [result["final"]]
        sampling = SAMPLERS[name](
            torch.tensor([[[[3.0, -2.0, 0.5]]]], dtype=torch.float64),
            [NoiseLevel(sigma, 0.0) for sigma in sigmas],
            noise=draws(),
            schedule=NoiseSchedule.scaled_linear(),  # for the t of middle levels, which the denoiser does not read
            **result["options"],
            **({"lower_order_final": False} if name == "dpmpp_2m" else {}),  # k-diffusion never does, diffusers may
        )
        expected = torch.tensor([[[result["x"]]]], dtype=torch.float64)
        torch.testing.assert_close(solve(sampling, denoised), expected, rtol=1e-10, atol=1e-10)
