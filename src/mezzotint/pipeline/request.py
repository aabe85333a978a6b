"""What is asked for and what is told: `Request`, `ImageRef`, `Progress`. No torch.

The fields of `Request` are the flags of the command line, the keys of the JSON and the fields of the form. None means
"as the model wants it"; `pipeline.generate` fills those in and records what it chose.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mezzotint.errors import MezzotintError, RequestError, unknown
from mezzotint.images import Resize, encode, open_image
from mezzotint.names import SAMPLERS, find_sampler, find_spacing, implied_options

SIZE_STEP = 8
MAX_SIDE = 8192
MAX_SEED = 2**63 - 1
DRAWN_SEEDS = 2**32  # seeds that are drawn lie below: typeable, and within what other programs accept


class ImageRef(BaseModel):
    """A picture named by its path, given as bytes, or uploaded before; recorded by its sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path | None = None
    data: bytes | None = Field(default=None, repr=False, exclude=True)  # records hold the hash, never the pixels
    upload: str | None = None
    sha256: str | None = None  # in a record: what the file must still be

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if isinstance(value, str | Path):
            return {"path": Path(value)}
        if isinstance(value, bytes):
            return {"data": value}
        if isinstance(value, Image.Image):
            return {"data": encode(value)}
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "ImageRef":
        if sum(source is not None for source in (self.path, self.data, self.upload)) > 1:
            raise ValueError("exactly one of path, bytes and upload id")
        return self

    @cached_property
    def content(self) -> bytes:
        """The bytes of the file, read once and checked against sha256 where that is known.

        Raises: RequestError if they are not here, cannot be read, or have changed.
        """
        if self.data is None and self.path is None:
            raise RequestError(f"picture {self.upload or self.sha256!r} is not here; give it as a path")
        try:
            content = self.path.read_bytes() if self.path else self.data or b""
        except OSError as error:
            raise RequestError(f"picture {str(self.path)!r} cannot be read: {error.strerror}") from None
        if self.sha256 not in (None, found := hashlib.sha256(content).hexdigest()):
            raise RequestError(
                f"picture {str(self.path)!r} has changed (sha256 {found[:10]}, recorded {self.sha256[:10]})"
            )
        return content

    def open(self, name: str) -> Image.Image:
        """The decoded picture; `name` is what errors call it."""
        return open_image(self.content, f"{name} {str(self.path)!r}" if self.path else name)

    def recorded(self) -> "ImageRef":
        """The same reference with its hash filled in."""
        return self.model_copy(update={"sha256": hashlib.sha256(self.content).hexdigest()})


class Request(BaseModel):
    """One wish for `count` pictures. Raises RequestError with one line for everything that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(default="", description="what the picture shows")
    negative: str | None = Field(default=None, description="what it should not show; none is not the same as empty")
    width: int | None = Field(default=None, description="pixels, a multiple of 8")
    height: int | None = Field(default=None, description="pixels, a multiple of 8")
    count: int = Field(default=1, ge=1, description="number of pictures; seeds count up")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="seed of the first picture; none: drawn")
    steps: int | None = Field(default=None, le=1000, description="sampling steps")
    sampler: str | None = Field(default=None, description="name or any known alias; none: the model's own")
    spacing: str | None = Field(default=None, description="how noise levels are spaced; none: as the sampler's model")
    guidance: float | None = Field(default=None, ge=0, le=100, description="classifier-free guidance scale; 1 is off")
    guidance_rescale: float = Field(default=0.0, ge=0, le=1, description="0.7 helps zero-terminal-SNR models")
    guidance_interval: tuple[float, float] | None = Field(
        default=None, description="lowest and highest sigma at which guidance acts"
    )
    image: ImageRef | None = Field(default=None, description="picture to start from")
    mask: ImageRef | None = Field(default=None, description="bright where the picture is made again")
    strength: float | None = Field(default=None, gt=0, le=1, description="share of the steps that are run on an image")
    start: Literal["diffusers", "a1111", "comfy"] = Field(
        default="diffusers", description="whose rule turns strength into steps"
    )
    resize: Resize = Field(default="stretch", description="how image and mask are brought to the size")
    feather: int = Field(default=8, ge=0, le=128, description="pixels over which the mask's edge falls off")
    paste: bool = Field(default=True, description="put the input's own pixels back outside the feathered mask")
    canvas: tuple[int, int] | None = Field(
        default=None,
        description="size of a pasted result, width height; none: width and height, or without these the input's own",
    )
    reference: ImageRef | None = Field(default=None, description="picture to vary (unCLIP models)")
    reference_crop: Literal["ldm", "crop"] = Field(
        default="ldm", description="how it is brought to a square: squashed, or its centre"
    )
    reference_noise: int = Field(default=0, ge=0, le=999, description="noise added to its embedding")
    clip_skip: int | None = Field(
        default=None, ge=1, description="text layer that is read, from the end; 1 is the last"
    )
    empty_negative: Literal["encode", "zeros_if_none", "zeros_if_empty", "zeros_if_any_empty"] | None = Field(
        default=None, description="what an empty negative prompt is; none: as the model was trained"
    )
    original_size: tuple[int, int] | None = Field(
        default=None, description="SDXL: size the model is told, width height"
    )
    crop: tuple[int, int] = Field(default=(0, 0), description="SDXL: crop the model is told, left top")
    aesthetic: float = Field(default=6.0, description="SDXL refiner: score the model is told")
    negative_aesthetic: float = Field(default=2.5, description="SDXL refiner: score told with the negative prompt")
    refiner: str | None = Field(default=None, description="model that takes over at the end: path or hub id")
    refiner_at: float = Field(default=0.8, gt=0, lt=1, description="share of the noise that is gone by then")
    options: dict[str, float | int | bool | str] = Field(
        default_factory=dict[str, float | int | bool | str], description="options of the sampler"
    )
    level: Literal["full", "balanced", "fast"] = Field(default="full", description="how much is approximated")
    mark: bool = Field(default=True, description="mark the file as made by AI: IPTC's digital source type, in XMP")
    strict: bool = Field(default=False, description="refuse prompts that do not fit instead of warning")

    if not TYPE_CHECKING:  # type checkers see the fields instead

        def __init__(self, **fields: object) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise RequestError(_one_line(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _canonical_names(cls, fields: object) -> object:
        """ "DPM++ 2M Karras" is a sampler and a spacing; a spacing that is given wins."""
        if not isinstance(fields, Mapping):
            return fields
        known = dict[str, Any](cast(Mapping[str, Any], fields))  # Any: not validated yet
        if isinstance(sampler := known.get("sampler"), str):
            info, spacing = find_sampler(sampler)
            known |= {"sampler": info.name, "spacing": known.get("spacing") or spacing}
            if implied := implied_options(sampler):
                known["options"] = implied | known.get("options", {})
        if isinstance(spacing := known.get("spacing"), str):
            known["spacing"] = find_spacing(spacing).name
        return known

    @field_validator("width", "height")
    @classmethod
    def _multiple(cls, value: int | None) -> int | None:
        if value is None:
            return None
        if not 0 < value <= MAX_SIDE:
            raise ValueError(f"must be from {SIZE_STEP} to {MAX_SIDE}")
        if value % SIZE_STEP:
            below = value // SIZE_STEP * SIZE_STEP
            near = f"nearest are {below} and {below + SIZE_STEP}" if below else f"nearest is {SIZE_STEP}"
            raise ValueError(f"must be a multiple of {SIZE_STEP}; {near}")
        return value

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("at least 1 step is needed")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Request":
        if self.mask and not self.image:
            raise ValueError("mask: needs the image that it belongs to; give image too")
        if self.canvas and not (self.mask and self.paste and self.resize == "stretch"):
            raise ValueError("canvas: is for a mask with paste and resize 'stretch'; give width and height instead")
        if self.strength is not None and not self.image:
            raise ValueError("strength: means something only with an image; give image or leave it out")
        if self.guidance_interval and self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {self.guidance_interval}: the lowest sigma comes first")
        if self.sampler is not None:
            check_options(self.sampler, self.options)
        return self


class Progress(NamedTuple):
    """Where the work is: after every network evaluation of every picture."""

    image: int  # 0-based
    step: int  # sampling steps finished, of `steps`
    steps: int
    evaluation: int  # network evaluations done over all pictures, of `evaluations`
    evaluations: int
    sigma: float
    seconds_left: float | None  # None until one evaluation has been timed
    preview: Callable[[], Image.Image]  # small and approximate; costs nothing until called


def check_options(sampler: str, options: Mapping[str, object]) -> None:
    """Raises RequestError for an option that the sampler does not have or that is out of its range."""
    known = SAMPLERS[sampler].options
    for key, value in options.items():
        if key not in known:
            raise RequestError(f"options: {unknown(f'option of {sampler}', key, known)}")
        low, high, choices = known[key].low, known[key].high, known[key].choices
        if choices and value not in choices:
            raise RequestError(f"options: {unknown(f'{key} of {sampler}', str(value), choices)}")
        if isinstance(value, int | float) and not (-math.inf if low is None else low) <= value <= (
            math.inf if high is None else high
        ):
            raise RequestError(f"options.{key} = {value!r}: must be {_range(low, high)}")


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"from {low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


def _one_line(error: ValidationError) -> str:
    """Every complaint as `field value: what is wrong`, on one line."""
    lines: list[str] = []
    for detail in error.errors():
        cause = detail.get("ctx", {}).get("error")
        message = str(cause) if cause is not None else detail["msg"].replace("Input should", "must")
        field = ".".join(str(part) for part in detail["loc"] if not isinstance(part, str) or "[" not in part)
        if detail["type"] == "extra_forbidden":
            message = unknown("field", field, Request.model_fields)
        elif detail["loc"] and not isinstance(cause, MezzotintError):
            message = (
                f"{field} {detail['input']!r}: {message}" if len(repr(detail["input"])) < 100 else f"{field}: {message}"
            )
        lines.append(message)
    return "; ".join(lines)
