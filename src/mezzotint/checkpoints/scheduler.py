"""`scheduler_config.json`: what it says about the model, and the trajectory that diffusers would make of it.

A config names a scheduler class and says some of its settings; what it leaves out is filled in by the class that runs
it. So `plan(config, steps, sampler=...)` answers as `Class.from_config(config)` does for the class of that sampler, and
gives it in our terms: levels in x = x0 + sigma * noise, options of our sampler, and the scale of the first noise.

On purpose not as diffusers: nothing is clipped unless the file says so; the schedule, its zero terminal SNR included,
is a fact about the model and never changes with the sampler; DDIM and PNDM go to the next level, where diffusers goes
down by T // n (the same for leading, and for trailing where n divides T); PNDM always skips its Runge-Kutta steps and
extrapolates the noise, where diffusers extrapolates v for models that predict it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from mezzotint.diffusion.sampling import NoiseLevel
from mezzotint.diffusion.schedule import Lookup, NoiseSchedule
from mezzotint.diffusion.spacing import spaced
from mezzotint.errors import CheckpointError, ConfigError, unknown

Objective = Literal["epsilon", "v_prediction", "sample"]

Option = float | int | bool | str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduler:
    """How one scheduler class of diffusers reads a config."""

    sampler: str
    spacing: Literal["leading", "linspace", "lcm"] = "linspace"  # if the config is silent; lcm: always
    betas: tuple[float, float, str] = (0.0001, 0.02, "linear")  # if the config is silent
    end: Literal["alpha", "sigma", "zero", "minimum"] = (
        "zero"  # decided by set_alpha_to_one, by final_sigmas_type, fixed
    )
    is_alpha_to_one: bool = True  # if the config is silent
    is_variance_preserving: bool = False  # starts from unit noise and rounds t
    is_dpm: bool = False  # n + 1 points; karras and others over the whole trained range, with t rounded
    has_sigma_spacings: bool = False  # knows use_karras_sigmas and others
    karras_lookup: Lookup = "interpolated"


_DISTILLED = (0.00085, 0.012, "scaled_linear")
_NARROW = (0.00085, 0.012, "linear")

SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(sampler="ddim", spacing="leading", end="alpha", is_variance_preserving=True),
    "PNDMScheduler": Scheduler(
        sampler="plms", spacing="leading", end="alpha", is_alpha_to_one=False, is_variance_preserving=True
    ),
    "DDPMScheduler": Scheduler(sampler="ddpm", spacing="leading", is_variance_preserving=True),
    "LCMScheduler": Scheduler(sampler="lcm", spacing="lcm", betas=_DISTILLED, is_variance_preserving=True),
    "TCDScheduler": Scheduler(
        sampler="tcd", spacing="lcm", betas=_DISTILLED, end="minimum", is_variance_preserving=True
    ),
    "EulerDiscreteScheduler": Scheduler(sampler="euler", end="sigma", has_sigma_spacings=True),
    "EulerAncestralDiscreteScheduler": Scheduler(sampler="euler_ancestral"),
    "LMSDiscreteScheduler": Scheduler(sampler="lms", has_sigma_spacings=True),
    "HeunDiscreteScheduler": Scheduler(sampler="heun", betas=_NARROW, has_sigma_spacings=True),
    "KDPM2DiscreteScheduler": Scheduler(
        sampler="dpm2", betas=_NARROW, has_sigma_spacings=True, karras_lookup="nearest"
    ),
    "KDPM2AncestralDiscreteScheduler": Scheduler(
        sampler="dpm2_ancestral", betas=_NARROW, has_sigma_spacings=True, karras_lookup="nearest"
    ),
    "DPMSolverSDEScheduler": Scheduler(sampler="dpmpp_sde", betas=_NARROW, has_sigma_spacings=True),
    "DPMSolverMultistepScheduler": Scheduler(
        sampler="dpmpp_2m", end="sigma", is_variance_preserving=True, is_dpm=True, has_sigma_spacings=True
    ),
    "UniPCMultistepScheduler": Scheduler(
        sampler="unipc", end="sigma", is_variance_preserving=True, is_dpm=True, has_sigma_spacings=True
    ),
    "DEISMultistepScheduler": Scheduler(
        sampler="deis", end="minimum", is_variance_preserving=True, is_dpm=True, has_sigma_spacings=True
    ),
}

CLASSES: dict[str, str] = {scheduler.sampler: name for name, scheduler in SCHEDULERS.items()} | {
    "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_3m_sde": "DPMSolverMultistepScheduler",
    "dpmpp_2s_ancestral": "DPMSolverSDEScheduler",  # this and restart: not in diffusers, spaced as their nearest kin
    "restart": "HeunDiscreteScheduler",
}
"""The scheduler class whose rules space each of our samplers."""

ONLY: dict[str, object] = {
    "thresholding": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "lambda_min_clipped": -math.inf,
    "predict_x0": True,
}
"""Settings that are understood with one value only: others belong to models outside this family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """A scheduler config with the names of the file; None where it is silent, `other` for what is not read here."""

    name: str  # class in diffusers
    num_train_timesteps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool | None = None
    prediction_type: Objective | None = None
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: int | None = None
    set_alpha_to_one: bool | None = None
    final_sigmas_type: Literal["zero", "sigma_min"] | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    algorithm_type: str | None = None
    solver_order: Literal[1, 2, 3] | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    disable_corrector: tuple[int, ...] | None = None
    variance_type: str | None = None
    clip_sample: bool | None = None
    clip_sample_range: float | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None
    other: Mapping[str, object] = field(default_factory=dict[str, object])

    @classmethod
    def from_json(cls, text: str, source: str = "scheduler_config.json") -> "SchedulerConfig":
        """The config that a file says; `source` is named in errors.

        Raises: CheckpointError if it is not an object, names an unknown class, or a value is not what it may be.
        """
        try:
            values = TypeAdapter(dict[str, object]).validate_json(text)
        except ValidationError as error:
            raise CheckpointError(f"{source}: not a JSON object: {error.errors()[0]['msg']}") from None
        known = {f.name for f in fields(cls)} - {"name", "other"}
        name = str(values.pop("_class_name", None))
        if name not in SCHEDULERS:
            raise CheckpointError(f"{source}: _class_name: {unknown('scheduler class', name, SCHEDULERS)}")
        read = {key: value for key, value in values.items() if key in known and value is not None}
        other = {key: value for key, value in values.items() if key not in known}
        try:
            return TypeAdapter(cls).validate_python({"name": name, **read, "other": other})
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(f"{source}: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from None

    def to_json(self) -> str:
        """The text of a scheduler_config.json that says the same, for diffusers too."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {"name", "other"}}
        values = {key: value for key, value in said.items() if value is not None}
        return json.dumps({"_class_name": self.name, **self.other, **values}, indent=2, sort_keys=True) + "\n"

    @property
    def objective(self) -> Objective:
        """What the network predicts."""
        return self.prediction_type or "epsilon"

    @property
    def clip(self) -> float | None:
        """Largest magnitude that x0 may have, where the file itself asks for it; None: any."""
        return (1.0 if self.clip_sample_range is None else self.clip_sample_range) if self.clip_sample else None

    @property
    def sampler(self) -> str:
        """Our sampler that does what this class does.

        Raises: ConfigError for an algorithm of DPM-Solver that no sampler has.
        """
        if self.name != "DPMSolverMultistepScheduler":
            return SCHEDULERS[self.name].sampler
        algorithm, order = self.algorithm_type or "dpmsolver++", self.solver_order or 2
        if algorithm in {"dpmsolver++", "deis"}:
            return "dpmpp_2m"
        if algorithm == "sde-dpmsolver++" and order > 1:
            return f"dpmpp_{order}m_sde"
        raise ConfigError(
            f"{self.name}: algorithm_type {algorithm!r} of order {order} has no sampler; name one: dpmpp_2m"
        )

    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the model was trained with."""
        default_start, default_end, default_kind = SCHEDULERS[self.name].betas
        start = default_start if self.beta_start is None else self.beta_start
        end = default_end if self.beta_end is None else self.beta_end
        kind, steps = self.beta_schedule or default_kind, self.num_train_timesteps
        if self.trained_betas is not None:
            schedule = NoiseSchedule.from_betas(torch.tensor(self.trained_betas, dtype=torch.float64))
        elif kind == "squaredcos_cap_v2":
            schedule = NoiseSchedule.cosine(steps)
        else:
            rise = NoiseSchedule.scaled_linear if kind == "scaled_linear" else NoiseSchedule.linear
            schedule = rise(start, end, steps)
        return schedule.with_zero_terminal_snr() if self.rescale_betas_zero_snr else schedule


class Plan(NamedTuple):
    """A trajectory ready to run: `SAMPLERS[sampler](initial_scale * noise, levels, schedule=schedule, **options)`."""

    sampler: str
    options: dict[str, Option]
    spacing: str
    levels: tuple[NoiseLevel, ...]
    schedule: NoiseSchedule
    initial_scale: float  # of unit noise, to make the x that the sampler starts from
    final_scale: float  # of the x that the sampler returns: 1 unless it still holds noise
    clip: float | None  # largest magnitude of x0


def plan(config: SchedulerConfig, steps: int, *, sampler: str | None = None, spacing: str | None = None) -> Plan:
    """What diffusers does with this config in `steps` steps, with the class of `sampler` instead of its own if given.

    `spacing` replaces the config's: a timestep_spacing, one of its use_…_sigmas (karras, exponential, beta_sigmas), or
    any other of our names.

    Raises: ConfigError for an unknown sampler or spacing, too many steps, or a setting that no model here has.
    """
    if sampler is not None and sampler not in CLASSES:
        raise ConfigError(unknown("sampler", sampler, CLASSES))
    for key, only in ONLY.items():
        if config.other.get(key, only) not in (only, None):
            raise ConfigError(f"scheduler_config.json: {key} = {config.other[key]!r}: only {only!r} is supported")
    sampler = sampler or config.sampler
    scheduler = SCHEDULERS[CLASSES[sampler]]
    schedule = config.schedule()
    base = "lcm" if scheduler.spacing == "lcm" else config.timestep_spacing or scheduler.spacing
    name = spacing or _sigma_spacing(config, scheduler) or base
    base = name if name in {"leading", "linspace", "trailing"} else base
    levels = _levels(config, scheduler, schedule, steps, base, name)
    first, last = levels[0].sigma, levels[-1].sigma
    is_unit = scheduler.is_variance_preserving or base not in {"linspace", "trailing"}
    return Plan(
        sampler=sampler,
        options=_options(config, sampler),
        spacing=name,
        levels=levels,
        schedule=schedule,
        initial_scale=math.hypot(1, first) if is_unit else first,
        final_scale=1 / math.hypot(1, last) if scheduler.is_variance_preserving else 1.0,
        clip=config.clip,
    )


def _sigma_spacing(config: SchedulerConfig, scheduler: Scheduler) -> str | None:
    """The spacing that a flag of the config asks for, if this class knows the flag."""
    if not scheduler.has_sigma_spacings:
        return None
    if config.use_karras_sigmas:
        return "karras"
    if config.use_exponential_sigmas or (config.use_lu_lambdas and scheduler.sampler == "dpmpp_2m"):
        return "exponential"
    return "beta_sigmas" if config.use_beta_sigmas else None


def _levels(
    config: SchedulerConfig, scheduler: Scheduler, schedule: NoiseSchedule, steps: int, base: str, name: str
) -> tuple[NoiseLevel, ...]:
    """The levels of spacing `name`; `base` is the timestep_spacing under it."""
    is_zero = {
        "alpha": scheduler.is_alpha_to_one if config.set_alpha_to_one is None else config.set_alpha_to_one,
        "sigma": config.final_sigmas_type != "sigma_min",
        "zero": True,
        "minimum": False,
    }[scheduler.end]
    final = "zero" if is_zero else "minimum"
    if name not in {"karras", "exponential", "beta_sigmas"}:
        return _timesteps(config, scheduler, schedule, steps, name, final)
    low, high = config.sigma_min, config.sigma_max
    if not scheduler.is_variance_preserving:  # these classes space anew between the ends of their timestep_spacing
        own = _timesteps(config, scheduler, schedule, steps, base, "zero")
        low, high = own[-2].sigma if low is None else low, own[0].sigma if high is None else high
    lookup = scheduler.karras_lookup if name == "karras" else "interpolated"
    if scheduler.is_dpm:  # t is made an integer: rounded for karras and lu, truncated for the others
        lookup = "nearest" if name == "karras" or config.use_lu_lambdas else "floor"
    return spaced(name, schedule, steps, final=final, lookup=lookup, sigma_min=low, sigma_max=high)


def _timesteps(
    config: SchedulerConfig,
    scheduler: Scheduler,
    schedule: NoiseSchedule,
    steps: int,
    name: str,
    final: Literal["zero", "minimum"],
) -> tuple[NoiseLevel, ...]:
    """The levels of a spacing that has no range of sigmas, in this class's form of it."""
    if name == "leading":
        form = "leading_dpm" if scheduler.is_dpm else name
        return spaced(form, schedule, steps, final=final, offset=config.steps_offset or 0)
    if name == "linspace" and scheduler.is_dpm:
        return spaced("linspace_dpm", schedule, steps, final=final)
    if name == "linspace" and scheduler.is_variance_preserving:
        return spaced(name, schedule, steps, final=final, rounding="nearest")
    if name == "lcm":
        return spaced(name, schedule, steps, final=final, original=config.original_inference_steps or 50)
    return spaced(name, schedule, steps, final=final)


def _options(config: SchedulerConfig, sampler: str) -> dict[str, Option]:
    """The options of our sampler that this config decides, with the defaults of its class in diffusers."""
    order = config.solver_order or 2
    lower_order_final = config.lower_order_final is not False
    solver_type = config.solver_type if config.solver_type in {"midpoint", "heun"} else "midpoint"
    if sampler in {"dpmpp_2m", "dpmpp_2m_sde"}:
        at_final: dict[str, Option] = {
            "solver_type": solver_type,
            "lower_order_final": lower_order_final,
            "euler_at_final": config.euler_at_final is True,
        }
        return {"order": order, **at_final} if sampler == "dpmpp_2m" else at_final
    if sampler == "unipc":
        return {
            "order": order,
            "solver_type": config.solver_type if config.solver_type in {"bh1", "bh2"} else "bh2",
            "lower_order_final": lower_order_final,
            "disable_corrector": config.disable_corrector or (),
        }
    if sampler == "plms" and config.objective == "v_prediction":
        return {"combines": "v_prediction"}
    if sampler == "deis":
        return {"order": order, "lower_order_final": lower_order_final}
    if sampler == "lcm":
        return {"timestep_scaling": 10.0 if config.timestep_scaling is None else config.timestep_scaling}
    if sampler == "ddpm":
        variance = config.variance_type or "fixed_small"
        if variance not in {"fixed_small", "fixed_large"}:
            raise ConfigError(f"variance_type {variance!r}: only 'fixed_small' and 'fixed_large' are supported")
        return {"variance": variance}
    return {}


SD1 = SchedulerConfig(
    name="PNDMScheduler",
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="epsilon",
    timestep_spacing="leading",
    steps_offset=1,
    set_alpha_to_one=False,
    clip_sample=False,
    other={"skip_prk_steps": True},
)
SD2_V = replace(SD1, name="DDIMScheduler", prediction_type="v_prediction")
SDXL = replace(SD1, name="EulerDiscreteScheduler")
X4 = replace(SD2_V, beta_start=0.0001, beta_end=0.02)


def default_config(preset: str, objective: Objective) -> SchedulerConfig:
    """The published scheduler config of a preset, for model files that come without one."""
    if preset == "x4-upscaler":
        config = X4
    elif preset.startswith(("sdxl", "tiny-xl")):
        config = SDXL
    else:
        config = SD2_V if objective == "v_prediction" else SD1
    return replace(config, prediction_type=objective)
