"""scheduler_config.json against the installed diffusers: equal levels, equal scales; and what is said is kept."""

import importlib
import inspect
import itertools
import json
import math
import sys
from types import ModuleType
from typing import Any  # diffusers is not typed

import diffusers
import pytest
import torch

from mezzotint.checkpoints.scheduler import (
    CLASSES,
    SCHEDULERS,
    SD1,
    SchedulerConfig,
    default_config,
    plan,
)
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.schedule import TERMINAL_ALPHA_BAR
from mezzotint.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # numpy with torch, in diffusers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

CONFIGS: dict[str, dict[str, object]] = {  # as published
    "sd15": {
        **SD,
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "sd21": {
        **SD,
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.8.0",
        "clip_sample": False,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    },
    "sdxl": {
        **SD,
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": "0.19.0.dev0",
        "clip_sample": False,
        "interpolation_type": "linear",
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
    "trailing": {**SD, "_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "steps_offset": 1},
    "zero_snr": {
        **SD,
        "_class_name": "DDIMScheduler",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "prediction_type": "v_prediction",
    },
    "karras": {**SD, "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    "karras_leading": {
        **SD,
        "_class_name": "EulerDiscreteScheduler",
        "use_karras_sigmas": True,
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "final_sigmas_type": "sigma_min",
    },
    "exponential": {**SD, "_class_name": "DPMSolverMultistepScheduler", "use_exponential_sigmas": True},
    "beta": {**SD, "_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True},
    "lu": {**SD, "_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True, "final_sigmas_type": "sigma_min"},
    "sigma_range": {
        **SD,
        "_class_name": "EulerDiscreteScheduler",
        "use_karras_sigmas": True,
        "sigma_min": 0.1,
        "sigma_max": 10.0,
    },
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400, "_class_name": "DDPMScheduler"},
}

with pytest.MonkeyPatch.context() as patch:  # its levels need no torchsde, only its import does
    patch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    _sde = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")

THEIRS = [sampler for sampler in CLASSES if sampler not in {"dpmpp_2s_ancestral", "restart"}]
PUBLISHED = ("sd15", "sd21", "sdxl", "trailing", "zero_snr")


def read(config: dict[str, object]) -> SchedulerConfig:
    return SchedulerConfig.from_json(json.dumps(config))


def theirs(config: dict[str, object], sampler: str) -> Any:
    """Their scheduler for our sampler, computing on our ᾱ: theirs are float32 products, compared on their own below."""
    base = getattr(diffusers, str(config["_class_name"])).from_config(config)
    cls = getattr(_sde if sampler == "dpmpp_sde" else diffusers, CLASSES[sampler])
    extra = {"algorithm_type": "sde-dpmsolver++"} if sampler.endswith("m_sde") else {}
    scheduler = cls.from_config(base.config, **({"skip_prk_steps": True} if sampler == "plms" else extra))
    abar = read(config).schedule().alphas_cumprod.clamp(min=TERMINAL_ALPHA_BAR)
    scheduler.alphas_cumprod = abar
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0) if scheduler.config.set_alpha_to_one else abar[0]
    return scheduler


def their_levels(scheduler: Any, sampler: str, steps: int) -> tuple[list[float], list[float]]:
    """Their sigmas, the last included, and the t that the network is told, without the evaluations between levels."""
    scheduler.set_timesteps(steps)
    t: list[float] = scheduler.timesteps.tolist()
    if sampler in {"ddim", "plms", "ddpm", "lcm", "tcd"}:
        if sampler == "plms" and steps > 1:
            t = t[:1] + t[2:]  # the second is asked twice
        abar = [*(float(scheduler.alphas_cumprod[int(i)]) for i in t)]
        end = {"ddpm": 1.0, "lcm": 1.0, "tcd": float(scheduler.alphas_cumprod[0])}
        abar.append(end[sampler] if sampler in end else float(scheduler.final_alpha_cumprod))
        return [math.sqrt((1 - a) / a) for a in abar], t
    sigmas: list[float] = scheduler.sigmas.tolist()
    if sampler in {"heun", "dpm2", "dpm2_ancestral", "dpmpp_sde"}:
        sigmas = sigmas[:1] + sigmas[1::2][: steps - 1] + sigmas[-1:]
        t = t[:1] + t[1::2] if sampler == "heun" else t[::2]
    return sigmas, t


def assert_equal_levels(config: dict[str, object], sampler: str, steps: int) -> None:
    scheduler = theirs(config, sampler)
    sigmas, t = their_levels(scheduler, sampler, steps)
    ours = plan(read(config), steps, sampler=sampler)
    if math.isclose(sigmas[-1], sigmas[-2], rel_tol=1e-6):  # a step of no length: we leave it out
        sigmas, t = sigmas[:-1], t[:-1]
    assert [level.sigma for level in ours.levels] == pytest.approx(sigmas, rel=2e-6 if "beta_start" not in config else 1e-6, abs=0)
    assert [level.t for level in ours.levels[: len(t)]] == pytest.approx(t, rel=1e-6, abs=2e-4)
    first = float(scheduler.init_noise_sigma)
    is_unit = scheduler.init_noise_sigma == 1
    assert ours.initial_scale == pytest.approx(math.hypot(1, sigmas[0]) if is_unit else first, rel=1e-6)
    assert ours.final_scale == pytest.approx(1 / math.hypot(1, sigmas[-1]) if is_unit else 1.0, rel=1e-6)


PAIRS = [
    (config, sampler)
    for config, sampler in itertools.product(CONFIGS, THEIRS)
    if config != "sigma_range" or sampler not in {"lms", "dpmpp_sde", "deis"}  # they do not know the key; here all do
]


@pytest.mark.parametrize(("config", "sampler"), PAIRS)
def test_levels_equal_diffusers(config: str, sampler: str) -> None:
    """Every sampler on every config. sigma to 1e-6 relative, as theirs end as float32; t to 1e-6 or 2e-4 of a step."""
    for steps in (1, 2, 7, 20, 30) if config in PUBLISHED else (2, 7, 20, 30):
        assert_equal_levels(CONFIGS[config], sampler, steps)
