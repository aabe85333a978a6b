"""`/sdapi/v1/*`: what clients of the AUTOMATIC1111 web UI say. Unknown keys are ignored, what cannot be done is listed.

`interrupt` and `skip` act on the oldest job of this dialect that the same address began, and on nobody else's. An
interrupted call answers with the pictures that were finished.

Source: modules/api of the web UI, version 1.10.
"""

import asyncio
import base64
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from PIL import Image, ImageOps
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from mezzotint.errors import RequestError
from mezzotint.images import encode, fitted, open_image, read_infotext
from mezzotint.names import SAMPLERS, SPACINGS
from mezzotint.serve.client import client_of, decoded, ended, hub_of
from mezzotint.serve.dialects.a1111_body import Batch, Extra, Image2Image, One, Text2Image
from mezzotint.serve.foreign import explained
from mezzotint.serve.hub import Hub
from mezzotint.serve.job import ENDED, Job
from mezzotint.serve.models import Entry
from mezzotint.serve.thumbs import converted, given
from mezzotint.serve.wish import asked, referred

LONGEST_SWITCH_S = 300.0

router = APIRouter(tags=["automatic1111"])
sd = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"])


@sd.post("/txt2img")
async def text_to_image(body: Text2Image, request: Request) -> dict[str, Any]:  # Any: JSON
    """Pictures from a prompt."""
    warnings: list[str] = []
    return await _answered(request, body, body.fields(warnings), warnings)


@sd.post("/img2img")
async def image_to_image(body: Image2Image, request: Request) -> dict[str, Any]:  # Any: JSON
    """Pictures from a picture, or from the masked part of one."""
    if not body.init_images:
        raise HTTPException(404, "Init image not found")
    warnings: list[str] = []
    fields = body.fields(warnings)
    if len(body.init_images) > 1:
        warnings.append("init_images: only the first is used")
    data = decoded(body.init_images[0], "init_images")
    fields["image"] = referred((await asyncio.to_thread(given, data, "init_images")).png)
    if body.mask:
        fields["mask"] = referred(
            await asyncio.to_thread(_mask, body.mask, is_inverted=body.inpainting_mask_invert == 1)
        )
    return await _answered(request, body, fields, warnings)


def _mask(sent: str, *, is_inverted: bool) -> bytes:
    """The mask of a request as we take it: white is made again."""
    mask = open_image(given(decoded(sent, "mask"), "mask").png).convert("L")
    return encode(ImageOps.invert(mask) if is_inverted else mask)


async def _answered(
    request: Request, body: Text2Image, fields: dict[str, Any], warnings: list[str]
) -> dict[str, Any]:  # Any: JSON
    hub = hub_of(request)
    entry = await _override(hub, body, warnings)
    name = (entry or hub.entry).name
    job = await hub.submit(
        [asked(fields)],
        client=client_of(request),
        dialect="a1111",
        model=entry.id if entry else None,
        keep="gallery" if body.save_images else "memory",
    )
    try:
        await ended(request, job, may_be_partial=True)  # as the web UI does after an interrupt
    except HTTPException as error:
        if error.status_code == 400:
            raise HTTPException(422, error.detail) from None
        raise
    pngs = [await hub.png(made) for made in job.made]
    seeds = [made.seed for made in job.made]
    info = await asyncio.to_thread(_info, body, fields, pngs, seeds, name)
    return {
        "images": [base64.b64encode(png).decode() for png in pngs] if body.send_images else [],
        "parameters": body.echo(),
        "info": json.dumps(info),
        "warnings": warnings + job.warnings,
    }


def _info(
    body: Text2Image, fields: dict[str, Any], pngs: list[bytes], seeds: list[int], model: str
) -> dict[str, Any]:  # Any: JSON
    """What clients read out of a finished call; the texts are those in the pictures."""
    texts = [explained(png) for png in pngs]
    record = (texts[0].record if texts else None) or {}
    unet = record.get("model", {}).get("unet", {})
    width, height = (texts[0].width, texts[0].height) if texts else (body.width, body.height)
    count = len(pngs)
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": body.negative_prompt,
        "all_negative_prompts": [body.negative_prompt] * count,
        "seed": seeds[0] if seeds else body.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": SAMPLERS[fields["sampler"]].title if fields.get("sampler") else body.sampler_name,
        "cfg_scale": body.cfg_scale,
        "steps": body.steps,
        "batch_size": body.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": str(unet.get("sha256", ""))[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": fields.get("strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [text.infotext for text in texts],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": fields.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False,
        "version": "mezzotint",
    }


async def _override(hub: Hub, body: Text2Image, warnings: list[str]) -> Entry | None:
    """The model that `override_settings` names."""
    name = body.override_settings.get("sd_model_checkpoint")
    if not isinstance(name, str) or not name:
        return None
    entry = await hub.on_disk(lambda: hub.shelf.find(name))
    if entry is None:
        warnings.append(f"sd_model_checkpoint {name[:60]!r}: there is no such model here; the current one is used")
    return entry


@sd.post("/extra-single-image")
async def extra_single_image(body: Extra, request: Request) -> dict[str, Any]:  # Any: JSON
    """A picture in another size; there are no upscaling networks behind it."""
    return {"html_info": "", "image": await _resized(request, body, body.image)}


@sd.post("/extra-batch-images")
async def extra_batch_images(body: Batch, request: Request) -> dict[str, Any]:  # Any: JSON
    """Pictures in another size."""
    images = [await _resized(request, body, one.data) for one in body.imageList]
    return {"html_info": "", "images": images}


async def _resized(request: Request, body: Extra, image: str) -> str:
    limit = 4 * hub_of(request).limits.pixels
    data = decoded(image, "image")

    def work() -> bytes:
        picture = open_image(given(data).png).convert("RGB")
        factor = body.upscaling_resize
        width, height = round(picture.width * factor), round(picture.height * factor)
        if body.resize_mode == 1:
            width, height = body.upscaling_resize_w, body.upscaling_resize_h
        if not 0 < width * height <= limit:
            raise RequestError(f"{width}x{height}: from 1 to {limit} pixels are made here")
        if body.resize_mode == 1 and body.upscaling_crop:
            return encode(fitted(picture, width, height, "crop"))
        return encode(picture.resize((width, height), Image.Resampling.LANCZOS))

    return base64.b64encode(await asyncio.to_thread(work)).decode()


@sd.post("/png-info")
async def png_info(body: One) -> dict[str, Any]:  # Any: JSON
    """How a picture was made."""
    data = decoded(body.image, "image")
    told = await asyncio.to_thread(explained, data)
    text = read_infotext(told.infotext) if told.infotext else None
    items = {"parameters": told.infotext} if told.infotext else {}
    parameters: dict[str, Any] = {}  # Any: JSON
    if text is not None:
        parameters = {"Prompt": text.prompt, "Negative prompt": text.negative, **text.items}
        width, _, height = text.items.get("Size", "").partition("x")
        parameters |= {"Size-1": width, "Size-2": height}
    return {"info": told.infotext or "", "items": items, "parameters": parameters}


@sd.get("/progress")
async def progress(request: Request, skip_current_image: Annotated[bool, Query()] = False) -> dict[str, Any]:
    """How far the current call of this client is."""
    job = _current(request)
    hub = hub_of(request)
    now: dict[str, Any] = (job.progress if job else None) or {}  # Any: JSON
    left = hub.place(job)[1] if job else None
    return {
        "progress": job.fraction if job else 0.0,
        "eta_relative": now.get("seconds_left") or left or 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": job.id if job else "",
            "job_count": job.total if job else 0,
            "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created)) if job else "0",
            "job_no": now.get("number", 0),
            "sampling_step": now.get("step", 0),
            "sampling_steps": now.get("steps", 0),
        },
        "current_image": None if skip_current_image or job is None else await _preview(job),
        "textinfo": f"{job.state}" if job else None,
    }


@sd.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:  # Any: JSON
    """End the current call of this client with what is finished."""
    if (job := _current(request)) is not None:
        await hub_of(request).cancel(job)
    return {}


@sd.post("/skip")
async def skip(request: Request) -> None:
    """Go on with the next picture of the current call."""
    if (job := _current(request)) is not None:
        await hub_of(request).skip(job)


@sd.get("/options")
async def options(request: Request) -> dict[str, Any]:  # Any: JSON
    """Settings; only the model can be changed."""
    return {
        "sd_model_checkpoint": hub_of(request).entry.name,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "samples_save": False,
        "enable_pnginfo": True,
        "randn_source": "CPU",
        "eta_noise_seed_delta": 0,
        "show_progress_every_n_steps": 1,
    }


class Options(BaseModel):
    """Clients send all of `options` back: what is not known here is ignored."""

    sd_model_checkpoint: Annotated[str | None, Field(max_length=300)] = None


@sd.post("/options")
async def set_options(body: Options, request: Request) -> None:
    """Change the model, and wait until it is loaded: jobs that were sent before are finished first.

    After LONGEST_SWITCH_S the answer comes all the same; jobs that are sent from now on get the new model anyway.
    """
    hub = hub_of(request)
    name = body.sd_model_checkpoint
    if not name:
        return
    entry = await hub.on_disk(lambda: hub.shelf.find(name))
    if entry is None:
        raise HTTPException(422, f"sd_model_checkpoint: there is no model {name[:60]!r} here")
    if is_switched := entry.id != hub.entry.id:
        await hub.switch(entry.id)

    def is_under_way() -> bool:
        waits = hub.state == "ready" and is_switched and not hub.has(entry.id)  # for jobs with the model before
        return hub.entry.id == entry.id and (hub.state == "loading" or waits)

    until = time.monotonic() + LONGEST_SWITCH_S
    while is_under_way() and time.monotonic() < until and not await request.is_disconnected():
        await asyncio.sleep(0.1)
    if hub.entry.id != entry.id or hub.state == "failed":
        said = "cannot be loaded, as the server's log says, or another one was chosen meanwhile"
        raise HTTPException(422, f"sd_model_checkpoint: {entry.name!r} {said}; the model is {hub.entry.name!r}")


@sd.get("/samplers")
async def samplers() -> list[dict[str, Any]]:  # Any: JSON
    """Every sampler under the title that the web UI uses."""
    return [{"name": i.title, "aliases": [i.name, *i.aliases], "options": {}} for i in SAMPLERS.values()]


@sd.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:  # Any: JSON
    """Every spacing."""
    automatic = {"name": "automatic", "label": "Automatic", "aliases": None}
    rest = [{"name": i.name, "label": i.title, "aliases": list(i.aliases)} for i in SPACINGS.values()]
    return [{**one, "default_rho": -1.0, "need_inner_model": False} for one in (automatic, *rest)]


@sd.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:  # Any: JSON
    """What can be loaded. `filename` is a name: paths of the server are not told."""
    hub = hub_of(request)
    entries = await hub.on_disk(hub.shelf.entries)
    return [
        {"title": e.name, "model_name": e.name, "hash": None, "sha256": None, "filename": e.name, "config": None}
        for e in entries
    ]


@sd.get("/upscalers")
async def upscalers() -> list[dict[str, Any]]:  # Any: JSON
    """Resampling only."""
    names = ("None", "Lanczos")
    return [{"name": n, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0} for n in names]


@sd.get("/scripts")
async def scripts() -> dict[str, list[str]]:
    """None."""
    return {"txt2img": [], "img2img": []}


@sd.get("/embeddings")
async def embeddings() -> dict[str, dict[str, Any]]:  # Any: JSON
    """None."""
    return {"loaded": {}, "skipped": {}}


@sd.get("/cmd-flags")
async def cmd_flags() -> dict[str, Any]:  # Any: JSON
    """None that concern clients."""
    return {}


@sd.get("/memory")
async def memory() -> dict[str, Any]:  # Any: JSON
    """Of this machine, where it tells."""
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            rows = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        total, free = rows["MemTotal"], rows["MemAvailable"]
        ram = {"free": free, "used": total - free, "total": total}
    except (OSError, KeyError, ValueError, IndexError):
        ram = {"error": "unknown"}
    return {"ram": ram, "cuda": {"error": "unavailable"}}


async def _nothing() -> list[Any]:  # Any: JSON
    """There are none."""
    return []


EMPTY = (
    *("latent-upscale-modes", "loras", "sd-vae", "sd-modules", "hypernetworks", "face-restorers"),
    *("realesrgan-models", "prompt-styles", "extensions", "script-info"),
)
for _name in EMPTY:
    sd.add_api_route(f"/{_name}", _nothing, methods=["GET"], operation_id=f"sdapi_{_name}")


async def _done() -> dict[str, Any]:  # Any: JSON
    """Nothing has to be done for this."""
    return {}


for _name in ("checkpoints", "vae", "loras", "embeddings"):
    sd.add_api_route(f"/refresh-{_name}", _done, methods=["POST"], operation_id=f"sdapi_refresh_{_name}")
for _name in ("unload-checkpoint", "reload-checkpoint"):
    sd.add_api_route(f"/{_name}", _done, methods=["POST"], operation_id=f"sdapi_{_name}")


@sd.post("/interrogate")
async def interrogate(body: One) -> dict[str, Any]:  # Any: JSON
    """There is no network here that describes pictures."""
    raise HTTPException(422, "interrogate: no captioning model is part of this server")


class Task(BaseModel):
    """Which task a page asks about."""

    id_task: Annotated[str | None, Field(max_length=200)] = None
    id_live_preview: int = Field(default=-1, ge=-1, le=10**9)
    live_preview: bool = True


@router.post("/internal/progress")
async def internal_progress(body: Task, request: Request) -> dict[str, Any]:  # Any: JSON
    """The same as `progress`, in the words of the web UI's own page."""
    job = _current(request)
    hub = hub_of(request)
    preview = await _preview(job) if job is not None and body.live_preview else None
    return {
        "active": job is not None and job.state == "running",
        "queued": job is not None and job.state == "queued",
        "completed": job is None,
        "progress": job.fraction if job else None,
        "eta": hub.place(job)[1] if job else None,
        "live_preview": f"data:image/png;base64,{preview}" if preview else None,
        "id_live_preview": body.id_live_preview + 1 if preview else body.id_live_preview,
        "textinfo": job.state if job else None,
    }


@router.get("/internal/pending-tasks")
async def pending_tasks(request: Request) -> dict[str, Any]:  # Any: JSON
    """Jobs of this dialect that wait."""
    names = [job.id for job in hub_of(request).jobs.values() if job.dialect == "a1111" and job.state == "queued"]
    return {"size": len(names), "tasks": names}


def _current(request: Request) -> Job | None:
    """The oldest job of this dialect and address that has not ended."""
    client = client_of(request)
    jobs = [
        job
        for job in hub_of(request).jobs.values()
        if job.dialect == "a1111" and job.client == client and job.state not in ENDED
    ]
    return min(jobs, key=lambda job: job.id, default=None)


async def _preview(job: Job) -> str | None:
    """The picture as estimated now, at eight times the size of its latent, in base64."""
    latest = job.log.latest("preview")
    if latest is None:
        return None
    png = base64.b64decode(latest["data"].partition(",")[2])
    size = (latest["width"] * 8, latest["height"] * 8)
    return base64.b64encode(await asyncio.to_thread(converted, png, "PNG", size=size)).decode()


router.include_router(sd)
