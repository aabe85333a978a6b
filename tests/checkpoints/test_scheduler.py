"""scheduler_config.json against the installed diffusers: equal levels, equal scales; and what is said is kept."""

import importlib
import inspect
import itertools
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any  # diffusers is not typed

import diffusers
import pytest
import torch

from mezzotint.checkpoints.scheduler import (
    CLASSES,
    SCHEDULERS,
    SD1,
    Objective,
    SchedulerConfig,
    default_config,
    plan,
)
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, x0_from
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import Query, solve
from mezzotint.diffusion.schedule import TERMINAL_ALPHA_BAR
from mezzotint.diffusion.spacing import SPACINGS
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
    "lu": {
        **SD,
        "_class_name": "DPMSolverMultistepScheduler",
        "use_lu_lambdas": True,
        "final_sigmas_type": "sigma_min",
    },
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
    extra = {
        "ddim": {"clip_sample": False},
        "ddpm": {"clip_sample": False},
        "plms": {"skip_prk_steps": True},
        "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"},
        "dpmpp_3m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    }
    scheduler = cls.from_config(base.config, **extra.get(sampler, {}))
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


def assert_equal_levels(scheduler: Any, config: dict[str, object], sampler: str, steps: int) -> None:
    sigmas, t = their_levels(scheduler, sampler, steps)
    ours = plan(read(config), steps, sampler=sampler)
    assert [level.sigma for level in ours.levels] == pytest.approx(
        sigmas, rel=2e-6 if "beta_start" not in config else 1e-6, abs=0
    )
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
    scheduler = theirs(CONFIGS[config], sampler)
    for steps in (1, 2, 7, 20, 30) if config in PUBLISHED else (2, 20):
        assert_equal_levels(scheduler, CONFIGS[config], sampler, steps)


def test_a_class_keeps_its_own_rules() -> None:
    """The comparison above can fail: DDIM and DPM-Solver do not share a table, nor do two ends of one."""
    config = read(CONFIGS["sdxl"])
    assert plan(config, 20, sampler="ddim").levels != plan(config, 20, sampler="dpmpp_2m").levels
    assert plan(config, 20, sampler="ddim").levels[-1].sigma == config.schedule().sigma_min
    assert plan(config, 20, sampler="euler").levels[-1].sigma == 0


@pytest.mark.parametrize("name", SCHEDULERS)
def test_silent_configs_have_the_defaults_of_their_class(name: str) -> None:
    cls = getattr(_sde if name == "DPMSolverSDEScheduler" else diffusers, name)
    default = {key: p.default for key, p in inspect.signature(cls.__init__).parameters.items()}
    ours = SCHEDULERS[name]
    assert ours.betas == (default["beta_start"], default["beta_end"], default["beta_schedule"])
    if ours.spacing != "lcm":
        assert ours.spacing == default["timestep_spacing"]
    assert ours.has_sigma_spacings == ("use_karras_sigmas" in default)
    if ours.end == "alpha":
        assert ours.is_alpha_to_one == default["set_alpha_to_one"]
    assert (ours.end == "sigma") == ("final_sigmas_type" in default)


@pytest.mark.parametrize(
    ("kind", "is_zero_snr", "error"),
    [("linear", False, 2e-7), ("scaled_linear", False, 1e-6), ("scaled_linear", True, 4e-5)],
)
def test_schedule_equals_diffusers(kind: str, is_zero_snr: bool, error: float) -> None:
    """Theirs are products of 1,000 float32 factors: the difference is their rounding, here measured."""
    config: dict[str, object] = {
        **SD,
        "beta_schedule": kind,
        "rescale_betas_zero_snr": is_zero_snr,
        "_class_name": "DDIMScheduler",
    }
    scheduler: Any = getattr(diffusers, "DDIMScheduler").from_config(config)  # noqa: B009
    ours, theirs = read(config).schedule().alphas_cumprod, scheduler.alphas_cumprod.double()
    torch.testing.assert_close(ours, theirs, rtol=error, atol=0)


def network(x: torch.Tensor, t: float) -> torch.Tensor:
    """Stands for a U-Net: bounded, not linear, and it notices a wrong t."""
    return torch.tanh(x * 0.7 + math.sin(t / 60))


def their_picture(config: dict[str, object], sampler: str, steps: int, noise: torch.Tensor) -> torch.Tensor:
    scheduler = theirs(config, sampler)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    takes = inspect.signature(scheduler.step).parameters
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x, **({"generator": generator} if "generator" in takes else {})).prev_sample
    return x


def our_picture(config: dict[str, object], sampler: str, steps: int, noise: torch.Tensor) -> torch.Tensor:
    made = plan(read(config), steps, sampler=sampler)
    parameterisation = PARAMETERISATIONS[read(config).objective]
    generator = torch.Generator().manual_seed(1)

    def draw(sigma_from: float, sigma_to: float) -> torch.Tensor:
        dtype = torch.float32 if sampler.endswith("m_sde") else noise.dtype  # theirs
        return torch.randn(noise.shape, generator=generator, dtype=dtype)

    def predict(q: Query) -> torch.Tensor:
        output = network(parameterisation(q.sigma).c_in * q.x, q.t)
        return x0_from(output, q.x, q.sigma, parameterisation)

    x = made.initial_scale * noise
    sampling = SAMPLERS[made.sampler](x, made.levels, noise=draw, schedule=made.schedule, **made.options)
    return solve(sampling, predict) * made.final_scale


PICTURES = [
    (config, sampler)
    for config, sampler in itertools.product(("sd15", "sd21", "sdxl", "karras"), THEIRS)
    if sampler not in {"dpmpp_sde", "dpmpp_3m_sde"}  # k-diffusion's: a Brownian path, and another third order
    and (config, sampler) != ("sd21", "plms")  # theirs extrapolates v, ours the noise
]


@pytest.mark.parametrize(("config", "sampler"), PICTURES)
def test_pictures_equal_diffusers(config: str, sampler: str) -> None:
    """Config, levels, options and both scales together: their loop and ours, around one function, end on one latent."""
    noise = torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for steps in (7, 20) if sampler == "dpm2_ancestral" else (2, 7, 20):  # of 2 steps, its float32 loses four digits
        ours = our_picture(CONFIGS[config], sampler, steps, noise)
        wanted = their_picture(CONFIGS[config], sampler, steps, noise).double()
        assert float(((ours - wanted).square().sum() / wanted.square().sum()).sqrt()) < 1e-4, steps


def test_spacing_by_name_is_their_flag() -> None:
    """Asking for a spacing equals the config that asks for it, in the form of the sampler's class."""
    for name, said in (
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("beta_sigmas", {"use_beta_sigmas": True}),
        ("trailing", {"timestep_spacing": "trailing"}),
        ("leading", {"timestep_spacing": "leading"}),
    ):
        for sampler in ("euler", "dpmpp_2m"):
            asked = plan(read(CONFIGS["sd15"]), 7, sampler=sampler, spacing=name)
            written = plan(read({**CONFIGS["sd15"], **said}), 7, sampler=sampler)
            assert asked.levels == written.levels
            assert (asked.initial_scale, asked.spacing) == (written.initial_scale, name)


def test_every_spacing_serves_every_sampler() -> None:
    for name, sampler in itertools.product(SPACINGS, CLASSES):
        made = plan(read(CONFIGS["sdxl"]), 5, sampler=sampler, spacing=name)
        assert made.levels[0].sigma > made.levels[-1].sigma
    assert plan(SD1, 5, sampler="euler", spacing="ays").levels[0].sigma == pytest.approx(14.615)


def test_classes_cover_all_samplers() -> None:
    assert set(CLASSES) == set(SAMPLERS)


@pytest.mark.parametrize(
    ("said", "sampler", "options"),
    [
        ({}, "dpmpp_2m", {"order": 2, "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False}),
        ({"solver_order": 3, "solver_type": "bh2"}, "dpmpp_2m", {"order": 3, "solver_type": "midpoint"}),
        ({"algorithm_type": "sde-dpmsolver++", "euler_at_final": True}, "dpmpp_2m_sde", {"euler_at_final": True}),
        ({"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "dpmpp_3m_sde", {}),
        ({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}, "unipc", {"disable_corrector": (0,)}),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "midpoint"}, "unipc", {"solver_type": "bh2"}),
        ({"_class_name": "DEISMultistepScheduler", "lower_order_final": False}, "deis", {"lower_order_final": False}),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm", {"variance": "fixed_large"}),
        ({"_class_name": "LCMScheduler", "timestep_scaling": 5.0}, "lcm", {"timestep_scaling": 5.0}),
        ({"_class_name": "HeunDiscreteScheduler"}, "heun", {}),
    ],
)
def test_sampler_and_options(said: dict[str, object], sampler: str, options: dict[str, object]) -> None:
    made = plan(read({**CONFIGS["karras"], **said}), 20)
    assert made.sampler == sampler
    assert made.options.items() >= options.items()
    assert set(made.options) <= set(inspect.signature(SAMPLERS[sampler]).parameters)


def test_nothing_is_clipped_unless_said() -> None:
    assert read(CONFIGS["trailing"]).clip is None  # DDIM's own default is to clip
    assert read(CONFIGS["sd15"]).clip is None
    assert read({**SD, "_class_name": "DDPMScheduler", "clip_sample": True}).clip == 1.0
    said = read({**SD, "_class_name": "DDPMScheduler", "clip_sample": True, "clip_sample_range": 2.5})
    assert plan(said, 2).clip == 2.5


def test_schedule_is_the_models_whatever_the_sampler() -> None:
    """Heun's class cannot say rescale_betas_zero_snr; the model was trained with it all the same."""
    assert plan(read(CONFIGS["zero_snr"]), 4, sampler="heun").schedule.alphas_cumprod[-1] == 0
    betas = [0.1, 0.2, 0.3]
    trained = read({"_class_name": "DDIMScheduler", "trained_betas": betas, "num_train_timesteps": 3}).schedule()
    torch.testing.assert_close(trained.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504], dtype=torch.float64))


WRITERS = {"_diffusers_version", "_use_default_values", "_name_or_path"}  # about the file, not about the scheduler


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_written_says_the_same_to_us_and_to_diffusers(config: str, tmp_path: Path) -> None:
    ours = read(CONFIGS[config])
    assert SchedulerConfig.from_json(ours.to_json()) == ours
    said = {key: value for key, value in CONFIGS[config].items() if value is not None}
    assert json.loads(ours.to_json()) == {"num_train_timesteps": 1000, **said}
    (tmp_path / "scheduler_config.json").write_text(ours.to_json())
    cls = getattr(diffusers, ours.name)
    reread, first = cls.from_pretrained(tmp_path), cls.from_config(CONFIGS[config])
    theirs = [{k: v for k, v in c.config.items() if k not in WRITERS} for c in (reread, first)]
    assert theirs[0] == theirs[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "x.json: not a JSON object: "),
        ("{", "x.json: not a JSON object: "),
        ('{"beta_end": 1}', "x.json: _class_name: unknown scheduler class 'None'"),
        (
            '{"_class_name": "EulerDiscretScheduler"}',
            "unknown scheduler class 'EulerDiscretScheduler'; did you mean 'EulerDiscreteScheduler'?",
        ),
        ('{"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}', "x.json: beta_schedule = 'cubic': Input should"),
        ('{"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"}', "x.json: prediction_type = 'flow_"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        SchedulerConfig.from_json(text, "x.json")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"thresholding": True}, "thresholding = True: only False is supported"),
        ({"interpolation_type": "log_linear"}, "interpolation_type = 'log_linear': only 'linear' is supported"),
        ({"algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver' of order 2 has no sampler"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type 'learned': only"),
    ],
)
def test_a_setting_outside_the_family_is_refused(said: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(read({**CONFIGS["karras"], **said}), 20)


def test_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'"):
        plan(SD1, 20, sampler="dpmp_2m")


def test_defaults_are_the_published_configs() -> None:
    cases: list[tuple[str, Objective, str]] = [
        ("sd15", "epsilon", "sd15"),
        ("sd2", "epsilon", "sd15"),
        ("sd2-v", "v_prediction", "sd21"),
        ("sdxl-refiner", "epsilon", "sdxl"),
    ]
    for preset, objective, config in cases:
        ours, published = default_config(preset, objective), read(CONFIGS[config])
        assert (ours.name, ours.objective) == (published.name, published.objective)
        assert plan(ours, 20).levels == plan(published, 20).levels
        assert plan(ours, 20, sampler="ddim").levels == plan(published, 20, sampler="ddim").levels
    assert default_config("x4-upscaler", "v_prediction").schedule().sigma_max == pytest.approx(36.9119, rel=1e-6)
