"""A request as HTTP may state it: the fields of `Request` with a bound on every number and ids in place of paths.

Two fields stay out: `refiner` and `refiner_at`, because a refiner is named by a path.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from mezzotint.errors import RequestError
from mezzotint.names import SAMPLERS, SPACINGS
from mezzotint.pipeline.request import MAX_SIDE, ImageRef, Request
from mezzotint.serve.ids import ID_PATTERN
from mezzotint.serve.queue import Defaults

MAX_PROMPT = 20_000
MAX_REQUESTS = 256
PICTURES = ("image", "mask", "reference")
LEFT_OUT = ("refiner", "refiner_at")

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class Upload(BaseModel):
    """A picture that is here: an upload, or one of the gallery."""

    model_config = STRICT

    upload: str = Field(pattern=ID_PATTERN, description="id of an upload or of a picture")


Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Name = Annotated[str, Field(max_length=64)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Level = Annotated[float, Field(ge=0, le=10_000)]
Score = Annotated[float, Field(ge=-100, le=100)]
OptionValue = bool | Annotated[int, Field(ge=-(10**6), le=10**6)] | Annotated[float, Field(ge=-1e6, le=1e6)] | Name


class _Bounded:
    """Fields whose bounds are tighter over HTTP, or whose pictures are named by ids."""

    prompt: Prompt
    negative: Prompt | None
    width: Side | None
    height: Side | None
    count: Annotated[int, Field(ge=1, le=64)]
    steps: Annotated[int, Field(ge=1, le=1000)] | None
    sampler: Name | None
    spacing: Name | None
    guidance_interval: tuple[Level, Level] | None
    image: Upload | None
    mask: Upload | None
    reference: Upload | None
    canvas: tuple[Side, Side] | None
    clip_skip: Annotated[int, Field(ge=1, le=64)] | None
    original_size: tuple[Side, Side] | None
    crop: tuple[Annotated[int, Field(ge=0, le=MAX_SIDE)], Annotated[int, Field(ge=0, le=MAX_SIDE)]]
    aesthetic: Score
    negative_aesthetic: Score
    options: Annotated[dict[Name, OptionValue], Field(max_length=20)]


_BOUNDED = get_type_hints(_Bounded, include_extras=True)
_DOCUMENTED = {"sampler": sorted(SAMPLERS), "spacing": sorted(SPACINGS)}


def _fields() -> dict[str, Any]:  # Any: what create_model takes
    made: dict[str, Any] = {}  # Any: as above
    for name, field in Request.model_fields.items():
        if name in LEFT_OUT:
            continue
        kind = _BOUNDED.get(name, field.annotation)
        default = field.get_default(call_default_factory=True)
        meta = Field(default=default, description=field.description, examples=_DOCUMENTED.get(name))
        bounds = [] if name in _BOUNDED else field.metadata
        made[name] = (Annotated[kind, *bounds] if bounds else kind, meta)
    return made


if TYPE_CHECKING:  # type checkers see what it is; its fields are made below from those of Request

    class Wish(BaseModel):
        """One wish for pictures."""

        count: int = 1

else:
    Wish = create_model("Wish", __config__=STRICT, __doc__="One wish for pictures.", **_fields())


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one client may ask for at once."""

    pixels: int = 1 << 22  # of a picture
    steps: int = 1000
    count: int = 64  # pictures of a request
    requests: int = MAX_REQUESTS  # of a job
    upload_bytes: int = 1 << 25
    prompt: int = MAX_PROMPT


def wished(wish: Wish, find: Callable[[str], bytes | None]) -> Request:
    """The request that a wish stands for; `find` gives the file of an id.

    Raises: RequestError if it cannot be, or names a picture that is not here.
    """
    fields: dict[str, Any] = wish.model_dump(exclude_unset=True)  # Any: each field has its own type
    for name in PICTURES:
        if fields.get(name):
            given = find(fields[name]["upload"])
            if given is None:
                raise RequestError(f"{name}: there is no picture {fields[name]['upload']!r}")
            fields[name] = referred(given)
    return asked(fields)


def asked(fields: Mapping[str, Any]) -> Request:  # Any: each field has its own type
    """The request of these fields, its texts made of whole characters. Raises: RequestError."""
    whole: dict[str, Any] = {k: _whole(v) if isinstance(v, str) else v for k, v in fields.items()}  # Any: as above
    return Request(**whole)


def referred(png: bytes) -> ImageRef:
    """A picture for a request, recorded by its content."""
    return ImageRef(data=png, sha256=hashlib.sha256(png).hexdigest())


def check(request: Request, limits: Limits, defaults: Defaults) -> None:
    """Raises: RequestError for a request that is larger than this server takes on."""
    width, height = request.width or defaults.width, request.height or defaults.height
    if width * height > limits.pixels:
        raise RequestError(f"{width}x{height}: at most {limits.pixels} pixels are made here")
    if request.canvas and request.canvas[0] * request.canvas[1] > 4 * limits.pixels:
        raise RequestError(f"canvas {request.canvas}: at most {4 * limits.pixels} pixels are pasted here")
    if (request.steps or 0) > limits.steps:
        raise RequestError(f"steps {request.steps}: at most {limits.steps} are run here")
    if request.count > limits.count:
        raise RequestError(f"count {request.count}: at most {limits.count} pictures are made at a time")
    if max(len(request.prompt), len(request.negative or "")) > limits.prompt:
        raise RequestError(f"the prompt is longer than {limits.prompt} characters")


def told(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:  # Any: JSON
    """The request as the engine is told it, and the bytes of its pictures by their sha256."""
    fields = request.model_dump(mode="json", exclude_unset=True, exclude=set(PICTURES))
    pictures: dict[str, bytes] = {}
    for name in PICTURES:
        picture = cast(ImageRef | None, getattr(request, name))
        if picture is not None:
            content = picture.content
            digest = hashlib.sha256(content).hexdigest()
            fields[name], pictures[digest] = {"sha256": digest}, content
    return fields, pictures


def fingerprint(body: object) -> str:
    """Equal for equal bodies: what an idempotency key is bound to."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()


def _whole(text: str) -> str:
    """The text without halves of characters, which nothing outside Python takes."""
    return text.encode("utf-8", "replace").decode()
