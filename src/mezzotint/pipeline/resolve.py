"""Every default of a request filled in for one system: what is recorded, and what runs."""

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mezzotint.checkpoints.scheduler import Plan, plan
from mezzotint.diffusion.sampling import NoiseLevel
from mezzotint.errors import RequestError
from mezzotint.names import SAMPLERS
from mezzotint.pipeline.levels import FEW_STEP_SAMPLER, FEW_STEP_SPACINGS, LEVELS
from mezzotint.pipeline.request import DRAWN_SEEDS, SIZE_STEP, Request

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

STRENGTH, STRENGTH_MASKED = 0.8, 1.0
LARGEST_A1111 = 0.999


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A request ready to run."""

    request: Request  # no field that matters is None
    plan: Plan
    start: int  # index of the level that an image-to-image run starts from; 0 otherwise
    handover: int | None  # index of the level at which the refiner takes over

    @property
    def levels(self) -> tuple[NoiseLevel, ...]:
        """The levels that are visited, over base and refiner."""
        return self.plan.levels[self.start :]

    @property
    def evaluations(self) -> int:
        """Network evaluations per picture, counting the rows of one query as one."""
        info, handover = SAMPLERS[self.plan.sampler], self.handover
        steps = len(self.levels) - 1
        if handover is None:
            return info.cost(steps)
        return info.cost(handover - self.start) + info.cost(steps - handover + self.start)

    @property
    def is_pure_noise(self) -> bool:
        """Whether the run starts without the given picture: none was given, or a masked one at full strength."""
        request = self.request
        return request.image is None or (request.mask is not None and request.strength == 1.0)


def resolve(system: "System", asked: Request) -> Resolved:
    """The request with defaults of the system's family.

    Raises: RequestError if the system cannot do what is asked, or strength leaves no step.
    """
    _refuse(system, asked)
    defaults = system.defaults
    width, height = _size(system, asked)
    asked = _levelled(system, asked)
    steps = asked.steps or defaults.steps
    strength = None
    if asked.image is not None:
        strength = asked.strength or (STRENGTH_MASKED if asked.mask else STRENGTH)
    planned, start = _trajectory(system, asked, steps, strength)
    is_distilled = system.unet.config.guidance > 0
    request = asked.model_copy(
        update={
            "width": width,
            "height": height,
            "canvas": _canvas(asked),
            "steps": steps,
            "strength": strength,
            "seed": secrets.randbelow(DRAWN_SEEDS) if asked.seed is None else asked.seed,
            "sampler": planned.sampler,
            "spacing": planned.spacing,
            "guidance": defaults.guidance if asked.guidance is None else asked.guidance,
            "options": {
                key: value
                for key, value in planned.options.items()
                if key in SAMPLERS[planned.sampler].options and isinstance(value, bool | int | float | str)
            },
            "original_size": asked.original_size or (width, height),
            "image": asked.image and asked.image.recorded(),
            "mask": asked.mask and asked.mask.recorded(),
            "reference": asked.reference and asked.reference.recorded(),
        }
    )
    if is_distilled and request.guidance_interval:
        raise RequestError("guidance_interval: this distilled model takes guidance as an input; leave it out")
    return Resolved(request=request, plan=planned, start=start, handover=_handover(planned, start, request))


def _refuse(system: "System", asked: Request) -> None:
    """Raises RequestError for a picture that this model cannot use, or one that it needs."""
    channels, latent = system.unet.config.in_channels, system.vae.config.latent_channels
    if channels not in (latent, 2 * latent + 1):
        raise RequestError(f"{system.name}: a U-Net of {channels} input channels ({system.preset}) cannot be run yet")
    if channels > latent and not asked.mask:
        raise RequestError(f"{system.name} is an inpainting model: it needs image and mask")
    if system.image_tower is None and asked.reference:
        raise RequestError(f"reference: {system.name} ({system.preset}) is no unCLIP model; use image with strength")
    if system.image_tower is not None and not asked.reference:
        raise RequestError(f"{system.name} is an unCLIP model: it needs reference, the picture to vary")
    if asked.level != "full" and system.kernels.kernels.weights == "plain":
        raise RequestError(
            f"level {asked.level!r}: {system.name} runs at 'full' only, because its modules run as torch runs them here"
        )
    if asked.refiner and asked.mask:
        raise RequestError("refiner: cannot take over from a masked run; leave out mask or refiner")


def _levelled(system: "System", asked: Request) -> Request:
    """The request with what its level fills in where it is silent: steps, and a sampler and spacing made for few."""
    level = LEVELS[asked.level]
    if asked.level == "full":
        return asked
    steps = asked.steps or max(1, round(system.defaults.steps * level.steps))
    spacing = FEW_STEP_SPACINGS.get(system.preset) if level.has_few_step_spacing else None
    is_open = asked.sampler is None and asked.spacing is None and spacing is not None
    names = {"sampler": FEW_STEP_SAMPLER, "spacing": spacing} if is_open else {}
    return asked.model_copy(update={"steps": steps, **names})


def _size(system: "System", asked: Request) -> tuple[int, int]:
    """Width and height: as asked, else the given picture's (not above the family's area), else the family's."""
    default_width, default_height = system.size
    if asked.image is not None and not (asked.width and asked.height):
        given_width, given_height = asked.image.open("image").size
        scale = min(1.0, (default_width * default_height / (given_width * given_height)) ** 0.5)
        if asked.width or asked.height:  # one side is asked for: keep the shape
            scale = asked.width / given_width if asked.width else (asked.height or 0) / given_height
        default_width, default_height = (
            max(SIZE_STEP, int(side * scale + 0.5) // SIZE_STEP * SIZE_STEP) for side in (given_width, given_height)
        )
    return asked.width or default_width, asked.height or default_height


def _canvas(asked: Request) -> tuple[int, int] | None:
    """Size that a masked result is pasted at: as asked; the input's own, which a model may be too small for."""
    sized = asked.width or asked.height
    if asked.canvas or sized or not (asked.image and asked.mask and asked.paste and asked.resize == "stretch"):
        return asked.canvas
    return asked.image.open("image").size


def _trajectory(system: "System", asked: Request, steps: int, strength: float | None) -> tuple[Plan, int]:
    """The planned levels and where the run starts on them."""
    sampler = asked.sampler or system.sampler
    planned_steps = int(steps / strength) if strength and asked.start == "comfy" else steps
    planned = plan(system.scheduler, planned_steps, sampler=sampler, spacing=asked.spacing)
    options = planned.options | asked.options
    planned = planned._replace(options=options)
    if strength is None:
        return planned, 0
    available = len(planned.levels) - 1
    run = {
        "diffusers": int(available * strength),
        "a1111": int(min(strength, LARGEST_A1111) * available) + 1,
        "comfy": steps,
    }[asked.start]
    if run < 1:
        least = next(n / 100 for n in range(1, 101) if int(available * n / 100) >= 1)
        raise RequestError(f"strength {strength} of {steps} steps leaves no step to run; at least {least} is needed")
    return planned, available - min(run, available)


def _handover(planned: Plan, start: int, request: Request) -> int | None:
    """Index of the first level that is the refiner's: the first t below the share of noise that is left.

    Source: `denoising_end` and `denoising_start` of diffusers.
    """
    if request.refiner is None:
        return None
    training_steps = len(planned.schedule)
    cutoff = round(training_steps - request.refiner_at * training_steps)
    index = next((i for i, level in enumerate(planned.levels[:-1]) if level.t < cutoff), len(planned.levels) - 1)
    if not start < index < len(planned.levels) - 1:
        raise RequestError(
            f"refiner_at = {request.refiner_at}: one of the two models has none of the {request.steps} steps; use more"
        )
    return index
