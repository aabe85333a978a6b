"""`/v1/images/*` and `/v1/models`: what clients of OpenAI's images say.

A mask is transparent where the picture is to be made again, the opposite of everybody else's. Besides OpenAI's fields,
some of ours are taken under the names that other servers made known; what cannot be done is listed under `warnings`.

Source: types of openai-python; names of extensions: vLLM-Omni.
"""

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from PIL import Image, ImageOps
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from mezzotint.errors import RequestError
from mezzotint.images import encode, read_infotext
from mezzotint.pipeline.request import MAX_SEED
from mezzotint.serve.client import cancel_later, client_of, ended, hub_of
from mezzotint.serve.foreign import infotext_fields
from mezzotint.serve.hub import Hub
from mezzotint.serve.ids import is_id, moment_of
from mezzotint.serve.job import Job, Made
from mezzotint.serve.models import Entry
from mezzotint.serve.thumbs import Given, converted, given, recoded
from mezzotint.serve.wish import MAX_PROMPT, asked, referred

QUALITIES = {"low": 12, "medium": 25, "high": 50, "hd": 50}  # steps
ELSEWHERE = re.compile(r"dall-e-\d|(chat)?gpt-image-.*")  # models that clients offer without asking which there are
VARIATION = 0.7  # strength, where no model for variations is loaded
FILES_S = 3600.0
OPTIONS = {"max_files": 20, "max_fields": 100, "max_part_size": 1 << 20}
Kind = Literal["png", "jpeg", "webp"]

router = APIRouter(prefix="/v1", tags=["openai"])


class ImageBody(BaseModel):
    """What all three routes take; other keys are told back as ignored."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, populate_by_name=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    model: Annotated[str | None, Field(max_length=300)] = None
    n: Annotated[int | None, Field(ge=1, le=10)] = None
    size: Annotated[str | None, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] = None
    quality: Literal["standard", "hd", "low", "medium", "high", "auto"] | None = None
    response_format: Literal["url", "b64_json", "file"] | None = None
    output_format: Kind | None = None
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    background: Literal["transparent", "opaque", "auto"] | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=3)] = None
    stream: bool | None = None
    user: Annotated[str | None, Field(max_length=1000)] = None
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    seed: Annotated[int | None, Field(ge=-1, le=MAX_SEED)] = None
    steps: Annotated[
        int | None, Field(ge=1, le=1000, validation_alias=AliasChoices("steps", "num_inference_steps"))
    ] = None
    guidance: Annotated[
        float | None, Field(ge=0, le=100, validation_alias=AliasChoices("guidance", "guidance_scale", "cfg_scale"))
    ] = None
    sampler: Annotated[str | None, Field(max_length=64)] = None
    spacing: Annotated[
        str | None, Field(max_length=64, validation_alias=AliasChoices("spacing", "schedule", "scheduler"))
    ] = None
    strength: Annotated[float | None, Field(gt=0, le=1)] = None
    clip_skip: Annotated[int | None, Field(ge=1, le=64)] = None

    def fields(self, warnings: list[str]) -> dict[str, Any]:  # Any: each field has its own type
        """The fields of a request; what cannot be said goes to `warnings`."""
        fields: dict[str, Any] = {  # Any: as above
            "prompt": self.prompt,
            "negative": self.negative_prompt,
            "seed": None if self.seed == -1 else self.seed,
            "steps": self.steps or QUALITIES.get(self.quality or ""),
            "guidance": self.guidance,
            "sampler": self.sampler,
            "spacing": self.spacing,
            "strength": self.strength,
            "clip_skip": self.clip_skip,
            "count": self.n,
        }
        pasted = read_infotext(self.prompt)
        if pasted.items:  # a prompt with everything behind it, as people copy them
            found, _, told = infotext_fields(pasted)
            warnings += told
            fields = found | {key: value for key, value in fields.items() if value is not None and key != "prompt"}
        if self.size not in (None, "auto"):
            fields["width"], fields["height"] = (int(side) for side in str(self.size).split("x"))
        if self.background == "transparent":
            raise HTTPException(400, "background 'transparent': pictures made here are opaque")
        ignored = sorted((self.model_extra or {}).keys() - {"image", "image[]", "mask", "response_mode"})
        warnings += [f"{key[:60]}: ignored" for key in ignored[:20]]
        return {key: value for key, value in fields.items() if value is not None}


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:  # Any: JSON
    """The models that can be asked for."""
    hub = hub_of(request)
    entries = await hub.on_disk(hub.shelf.entries)
    return {"object": "list", "data": [_model(entry) for entry in entries]}


@router.get("/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:  # Any: JSON
    """One of them."""
    hub = hub_of(request)
    entry = await hub.on_disk(lambda: hub.shelf.find(name))
    if entry is None:
        raise HTTPException(404, await _unknown(hub, name))
    return _model(entry)


@router.post("/images/generations", response_model=None)
async def generations(body: ImageBody, request: Request) -> Response:
    """Pictures from a prompt."""
    warnings: list[str] = []
    return await _answered(request, body, body.fields(warnings), warnings, "image_generation")


_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "mask": {"type": "string", "format": "binary"},
                        "prompt": {"type": "string"},
                        "n": {"type": "integer"},
                        "size": {"type": "string"},
                    },
                    "required": ["image"],
                }
            }
        },
    }
}


@router.post("/images/edits", response_model=None, openapi_extra=_FORM)
async def edits(request: Request) -> Response:
    """A picture, or its transparent part, made again from a prompt."""
    body, files, warnings = await _form(request)
    image = await asyncio.to_thread(_given, files, "image", warnings)
    fields = body.fields(warnings)
    mask = await asyncio.to_thread(_given, files, "mask", warnings) if "mask" in files else None
    alpha = image.alpha if mask is None else mask.alpha
    if mask is not None and alpha is None:
        raise HTTPException(400, "mask: it has no alpha channel; the part to be made again is where it is transparent")
    fields["image"] = referred(image.png)
    if alpha is not None:
        if alpha.size != (image.width, image.height):
            raise HTTPException(400, "mask: its size is not the image's")
        fields["mask"] = referred(await asyncio.to_thread(lambda: encode(_opposite(alpha))))
    return await _answered(request, body, fields, warnings, "image_edit")


@router.post("/images/variations", response_model=None, openapi_extra=_FORM)
async def variations(request: Request) -> Response:
    """Pictures that resemble one, by an unCLIP model where one is loaded."""
    body, files, warnings = await _form(request)
    image = referred((await asyncio.to_thread(_given, files, "image", warnings)).png)
    fields = body.fields(warnings)
    hub = hub_of(request)
    if hub.model is not None and "reference" in hub.model["needs"]:
        fields["reference"] = image
        fields.pop("strength", None)
    else:
        fields |= {"image": image, "strength": fields.get("strength", VARIATION)}
        warnings.append(f"this model has no image tower: the picture itself was varied, strength {fields['strength']}")
    return await _answered(request, body, fields, warnings, "image_generation")


@router.get("/files/{name}", response_class=Response)
async def file(name: str, request: Request) -> Response:
    """A picture of the last hour whose address was given out."""
    hub = hub_of(request)
    word = name.removesuffix(".png")
    found = None
    if is_id(word, "p") and moment_of(word) > time.time() - FILES_S:
        found = await hub.on_disk(lambda: hub.store.picture_bytes(word))
    if found is None:
        raise HTTPException(404, "there is no such file, or not any more")
    return Response(found, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


async def _form(request: Request) -> tuple[ImageBody, dict[str, list[bytes]], list[str]]:
    """Body and files of a form; numbers arrive as text."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "send multipart/form-data with the file of a picture as image")
    warnings: list[str] = []
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    async with request.form(**OPTIONS) as form:
        for key, value in form.multi_items():
            if isinstance(value, UploadFile):
                files.setdefault(key.removesuffix("[]"), []).append(await value.read())
            elif value != "":
                fields[key] = value
    try:
        return ImageBody.model_validate(fields), files, warnings
    except ValidationError as error:
        said = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5]]
        raise HTTPException(400, "; ".join(said)[:500]) from None


def _given(files: dict[str, list[bytes]], name: str, warnings: list[str]) -> Given:
    found = files.get(name)
    if not found:
        raise HTTPException(400, f"{name}: send the file of a picture")
    if len(found) > 1:
        warnings.append(f"{name}: only the first of {len(found)} files is used")
    return given(found[0], name)


def _opposite(alpha: Image.Image) -> Image.Image:
    """White where it was transparent."""
    return ImageOps.invert(alpha)


async def _answered(
    request: Request, body: ImageBody, fields: dict[str, Any], warnings: list[str], kind: str
) -> Response:  # Any: each field has its own type
    hub = hub_of(request)
    entry = await _entry(hub, body.model)
    is_url = body.response_format == "url"
    try:
        wish = asked(fields)
        job = await hub.submit(
            [wish],
            client=client_of(request),
            dialect="openai",
            model=entry.id if entry else None,
            keep="passing" if is_url else "memory",
            wants_preview=False,
            partials=(body.partial_images or 0) if body.stream else 0,
        )
    except RequestError as error:
        raise HTTPException(400, str(error)) from None
    if body.stream:
        lines = _stream(hub, job, body, kind)
        return StreamingResponse(lines, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
    await ended(request, job)
    file_kind = (body.output_format or "png").upper()
    quality = 95 if body.output_compression is None else body.output_compression
    if body.response_format == "file":
        png = await hub.png(job.made[0])
        one = await asyncio.to_thread(recoded, png, file_kind, quality=quality)
        return Response(one, media_type=f"image/{file_kind.lower()}")
    data: list[dict[str, Any]] = []  # Any: JSON
    for made in job.made:
        entry_: dict[str, Any] = {"seed": made.seed, "revised_prompt": None}  # Any: JSON
        if is_url:
            data.append({**entry_, "id": made.id, "url": f"{request.base_url}v1/files/{made.id}.png"})
        else:
            png = await asyncio.to_thread(recoded, await hub.png(made), file_kind, quality=quality)
            data.append({**entry_, "b64_json": base64.b64encode(png).decode()})
    size = job.made[0].entry
    answer = {
        "created": int(time.time()),
        "data": data,
        "size": f"{size['width']}x{size['height']}",
        "output_format": file_kind.lower(),
        "background": "opaque",
        "warnings": warnings + job.warnings,
    }
    return Response(json.dumps(answer), media_type="application/json")


async def _stream(hub: Hub, job: Job, body: ImageBody, kind: str) -> AsyncIterator[bytes]:
    """Half-done pictures, then the finished ones, as events; a client that goes away cancels the job."""
    file_kind = (body.output_format or "png").upper()
    common = {"created_at": int(time.time()), "output_format": file_kind.lower(), "background": "opaque"}
    common |= {"size": body.size or "auto", "quality": body.quality or "auto"}
    try:
        async for event in job.log.follow():
            if event is None:
                yield b": still here\n\n"
            elif event.kind == "partial":
                png = base64.b64decode(event.data["data"].partition(",")[2])
                data = await asyncio.to_thread(converted, png, file_kind)
                yield _event(f"{kind}.partial_image", data, {**common, "partial_image_index": event.data["index"]})
            elif event.kind == "image":
                made: Made = job.made[int(event.data["number"])]
                data = await asyncio.to_thread(recoded, await hub.png(made), file_kind)
                yield _event(f"{kind}.completed", data, {**common, "seed": made.seed})
            elif event.kind == "failed":
                error = {"message": event.data["detail"], "type": "server_error", "code": event.data["code"]}
                yield f"event: error\ndata: {json.dumps({'error': {**error, 'param': None}})}\n\n".encode()
    finally:
        cancel_later(hub, job)


def _event(kind: str, data: bytes, more: dict[str, Any]) -> bytes:  # Any: JSON
    body = {"type": kind, "b64_json": base64.b64encode(data).decode(), **more}
    return f"event: {kind}\ndata: {json.dumps(body)}\n\n".encode()


async def _unknown(hub: Hub, name: str) -> str:
    names = [entry.name for entry in await hub.on_disk(hub.shelf.entries)]
    return f"the model {name[:100]!r} does not exist; one of: {', '.join(names[:20])}"


async def _entry(hub: Hub, name: str | None) -> Entry | None:
    """The model that is asked for; None for the default one. Raises: HTTPException if there is none of this name."""
    if name is None:
        return None
    entry = await hub.on_disk(lambda: hub.shelf.find(name))
    if entry is None and not ELSEWHERE.fullmatch(name):
        raise HTTPException(404, await _unknown(hub, name))
    return entry


def _model(entry: Entry) -> dict[str, Any]:  # Any: JSON
    return {"id": entry.name, "object": "model", "created": 0, "owned_by": "mezzotint"}
