"""How a picture was made, read from its file, whichever program wrote it; as fields of a request.

Our own record says everything. The text of the AUTOMATIC1111 web UI is read by its own rules; InvokeAI, Fooocus,
NovelAI and ComfyUI's odd graphs by sd-parsers; ComfyUI's plain ones, SwarmUI and Easy Diffusion here. What a file says
is never trusted: names that are not ours and numbers out of range are left out, and said to be.
"""

import ast
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast  # Any: what other programs wrote

from PIL import Image
from pydantic import ValidationError

from mezzotint.errors import RequestError
from mezzotint.images import FORMATS, Infotext, read_infotext, read_metadata
from mezzotint.names import find_sampler, find_spacing
from mezzotint.serve.thumbs import MAX_GIVEN_PIXELS
from mezzotint.serve.wish import MAX_PROMPT, Wish

SOURCES = {"AUTOMATIC1111": "a1111", "ComfyUI": "comfyui", "InvokeAI": "invokeai", "Fooocus": "fooocus"}
SIZE_STEP = 8
MODEL_ITEMS = ("Model", "Model hash", "VAE", "VAE hash")
MEANINGLESS = {
    "RNG",
    "Version",
    "Size",
    "Model",
    "Model hash",
    "Seed",
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
}
LISTED = 40


@dataclass
class Explained:
    """What is known of how a picture was made; `request` has the fields of a request, or is None."""

    width: int
    height: int
    source: str | None = None
    infotext: str | None = None
    request: dict[str, Any] | None = None  # Any: JSON
    model: str | None = None
    record: dict[str, Any] | None = None  # Any: JSON
    ignored: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])


def explained(data: bytes) -> Explained:
    """How the picture of this file was made. Raises: RequestError if it is none that can be read."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_GIVEN_PIXELS:
                raise RequestError(f"{width}x{height} pixels; at most {MAX_GIVEN_PIXELS} are accepted")
            image.load()
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except RequestError:
        raise
    except Exception:
        raise RequestError("not a PNG, JPEG or WebP picture that can be read") from None
    told = Explained(width, height)
    found = read_metadata(data)
    told.infotext = _infotext(data, texts)
    if found.record is not None:
        _own(told, found.record)
    elif (swarm := _json(texts.get("parameters"), "sui_image_params")) is not None:
        told.source = "swarmui"
        _fill(told, _swarm(swarm))
    elif (comfy := _comfy(texts.get("prompt"))) is not None:
        told.source, told.model = "comfyui", str(comfy["model"]) if comfy["model"] else None
        _fill(told, comfy)
    elif found.infotext is not None and found.infotext.items:
        told.source = "a1111"
        _from_infotext(told, found.infotext)
    elif texts.keys() & {"negative_prompt", "Negative Prompt"}:
        told.source = "easydiffusion"
        _fill(told, {key.lower().replace(" ", "_"): value for key, value in texts.items()})
    else:
        _parsed(told, data)
    return told


def infotext_fields(text: Infotext) -> tuple[dict[str, Any], list[str], list[str]]:  # Any: JSON
    """Fields of a request from a `parameters` text, what of it they cannot say, and warnings."""
    told = Explained(0, 0)
    _from_infotext(told, text)
    return told.request or {}, told.ignored, told.warnings


def _own(told: Explained, record: dict[str, Any]) -> None:  # Any: JSON
    told.source, told.record = "mezzotint", record
    request = record.get("resolved", {}).get("request", {})
    known = {key: value for key, value in request.items() if key in Wish.model_fields}
    told.ignored = [f"{key}: {value}" for key, value in request.items() if key not in known][:LISTED]
    told.request = known
    with suppress(AttributeError):
        told.model = str(record.get("model", {}).get("unet", {}).get("name"))
    told.warnings = [
        f"it was made from a picture: give {key} again" for key in ("image", "mask", "reference") if key in known
    ]


def _from_infotext(told: Explained, text: Infotext) -> None:
    items = dict(text.items)
    told.model = items.get("Model")
    width, _, height = items.get("Size", "").partition("x")
    _fill(
        told,
        {
            "prompt": text.prompt,
            "negative_prompt": text.negative or None,
            "width": width,
            "height": height,
            "steps": items.get("Steps"),
            "sampler": items.get("Sampler"),
            "scheduler": items.get("Schedule type"),
            "cfg_scale": items.get("CFG scale"),
            "seed": items.get("Seed"),
            "clip_skip": items.get("Clip skip"),
        },
    )
    told.ignored = [f"{key}: {value}" for key, value in items.items() if key not in MEANINGLESS and key != "Clip skip"][
        :LISTED
    ]


def _swarm(said: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    names = {"negativeprompt": "negative_prompt", "cfgscale": "cfg_scale", "clipstopatlayer": "clip_skip"}
    return {names.get(key, key): value for key, value in said.items()}


def _comfy(text: object) -> dict[str, Any] | None:  # Any: JSON
    """Of ComfyUI's graph the sampler and what leads to it; None where that is not told in plain nodes."""
    if not isinstance(text, str) or '"class_type"' not in text:
        return None
    with suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError, StopIteration):
        nodes: dict[str, dict[str, Any]] = json.loads(text)  # Any: JSON
        sampler = next(node["inputs"] for node in nodes.values() if str(node["class_type"]).startswith("KSampler"))

        def source(link: Any, key: str) -> Any:  # Any: JSON
            """The input of that name of the node that a link leads to, or of the first one before it that has it."""
            for _ in range(20):
                if not isinstance(link, list):
                    return None
                inputs: dict[str, Any] = nodes[str(cast(list[Any], link)[0])]["inputs"]  # Any: JSON
                if key in inputs and not isinstance(inputs[key], list):
                    return inputs[key]
                link = next(
                    (cast(Any, value) for value in inputs.values() if isinstance(value, list)), None
                )  # Any: JSON
            return None

        latent = sampler.get("latent_image")
        return {
            **{key: value for key, value in sampler.items() if not isinstance(value, list | dict)},
            "prompt": source(sampler.get("positive"), "text"),
            "negative_prompt": source(sampler.get("negative"), "text"),
            "width": source(latent, "width"),
            "height": source(latent, "height"),
            "model": source(sampler.get("model"), "ckpt_name"),
        }
    return None


def _joined(said: object) -> object:
    """One text: Fooocus writes a list of what it sent to each text tower, and sd-parsers that list's representation."""
    with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        is_list = isinstance(said, str) and said.startswith("[") and len(said) <= MAX_PROMPT
        parts: Any = ast.literal_eval(str(said)) if is_list else said  # Any: theirs
        if isinstance(parts, list) and all(isinstance(part, str) for part in cast(list[object], parts)):
            return "\n".join(cast(list[str], parts))
    return said


def _parsed(told: Explained, data: bytes) -> None:
    """What sd-parsers makes of it; it raises all sorts of errors on files that it does not expect."""
    try:
        from sd_parsers import ParserManager

        found: Any = ParserManager().parse(io.BytesIO(data))  # Any: sd-parsers' containers are loosely typed
        if found is None:
            return
        source = str(found.generator.value)
        told.source = SOURCES.get(source, source.lower())
        sampler: Any = found.samplers[0] if found.samplers else None  # Any: as above
        parameters = {str(key).lower(): value for key, value in sampler.parameters.items()} if sampler else {}
        more = {str(key).lower(): value for key, value in found.metadata.items()}
        fields = {**more, **parameters, "sampler": sampler.name if sampler else None}
        fields["prompt"] = _joined(found.full_prompt)
        fields["negative_prompt"] = _joined(found.full_negative_prompt) or None
        told.model = str(sampler.model) if sampler and sampler.model else None
        _fill(told, fields)
    except Exception:
        told.warnings.append("what this file says of itself cannot be read")


def _fill(told: Explained, said: Mapping[str, Any]) -> None:  # Any: what other programs wrote
    """Fields of a request from what a file says, each kept only if it is valid alone."""
    fields: dict[str, Any] = {}  # Any: JSON
    skip = said.get("clip_skip")
    wanted: dict[str, tuple[object, Callable[[Any], object]]] = {  # Any: as above
        "prompt": (said.get("prompt"), str),
        "negative": (said.get("negative_prompt"), str),
        "width": (said.get("width"), _side),
        "height": (said.get("height"), _side),
        "steps": (said.get("steps"), int),
        "seed": (said.get("seed", said.get("noise_seed")), int),
        "guidance": (said.get("cfg_scale", said.get("guidance_scale", said.get("cfg", said.get("scale")))), float),
        "clip_skip": (skip if skip not in ("1", 1) else None, lambda value: abs(int(value))),
    }
    for name, (value, read) in wanted.items():
        if value is None or value == "":
            continue
        try:
            read_value = read(value)
            Wish.model_validate({name: read_value})
            fields[name] = read_value
        except (ValueError, TypeError, OverflowError, ValidationError):
            told.warnings.append(f"{name}: {str(value)[:60]!r} is out of range here")
    _add_names(told, fields, said)
    told.request = fields or None


def _add_names(told: Explained, fields: dict[str, Any], said: Mapping[str, Any]) -> None:  # Any: as above
    if sampler := str(said.get("sampler", said.get("sampler_name")) or ""):
        try:
            info, spacing = find_sampler(sampler)
            fields["sampler"] = info.name
            if spacing:
                fields["spacing"] = spacing
        except RequestError:
            told.warnings.append(f"the sampler {sampler[:60]!r} is unknown here")
    spacing = str(said.get("scheduler") or "")
    if spacing and spacing.lower() != "automatic":
        with suppress(RequestError):
            fields["spacing"] = find_spacing(spacing).name


def _side(value: object) -> int:
    return max(SIZE_STEP, round(int(str(value)) / SIZE_STEP) * SIZE_STEP)


def _json(text: object, key: str) -> dict[str, Any] | None:  # Any: JSON
    if not isinstance(text, str) or key not in text:
        return None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
        if isinstance(found, dict) and isinstance(inner := cast(dict[str, Any], found).get(key), dict):  # Any: JSON
            return cast(dict[str, Any], inner)  # Any: JSON
    return None


def _infotext(data: bytes, texts: Mapping[str, str]) -> str | None:
    """The `parameters` text as it stands in the file."""
    if (text := texts.get("parameters")) is not None:
        return text
    with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        comment = image.getexif().get_ifd(0x8769).get(0x9286)
        if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
            return comment[8:].decode("utf-16-be", errors="replace")
    return None


def read_parameters(text: str) -> tuple[dict[str, Any], list[str], list[str]]:  # Any: JSON
    """`infotext_fields` of a text."""
    return infotext_fields(read_infotext(text))
