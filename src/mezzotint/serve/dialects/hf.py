"""`/hf/text-to-image` and `/hf/image-to-image`: what `huggingface_hub.InferenceClient` says to a model's address.

    InferenceClient(model="http://127.0.0.1:8000/hf/text-to-image").text_to_image("a red fox")

Source: huggingface_hub's hf_inference provider.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mezzotint.pipeline.request import MAX_SEED, MAX_SIDE
from mezzotint.serve.client import client_of, decoded, ended, hub_of
from mezzotint.serve.thumbs import given, recoded
from mezzotint.serve.wish import MAX_PROMPT, asked, referred

TYPES = {"image/jpeg": "JPEG", "image/webp": "WEBP"}

router = APIRouter(prefix="/hf", tags=["huggingface"])


class Size(BaseModel):
    """Of the result."""

    model_config = ConfigDict(extra="ignore")

    width: Annotated[int, Field(ge=8, le=MAX_SIDE)]
    height: Annotated[int, Field(ge=8, le=MAX_SIDE)]


class Parameters(BaseModel):
    """What the tasks know; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT)] = None
    height: Annotated[int | None, Field(ge=8, le=MAX_SIDE)] = None
    width: Annotated[int | None, Field(ge=8, le=MAX_SIDE)] = None
    target_size: Size | None = None
    num_inference_steps: Annotated[int | None, Field(ge=1, le=1000)] = None
    guidance_scale: Annotated[float | None, Field(ge=0, le=100)] = None
    scheduler: Annotated[str | None, Field(max_length=64)] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None
    strength: Annotated[float | None, Field(gt=0, le=1)] = None


class TaskBody(BaseModel):
    """A prompt or a picture in base64, and parameters."""

    model_config = ConfigDict(extra="ignore")

    inputs: Annotated[str, Field(max_length=1 << 26)]
    parameters: Parameters = Parameters()


@router.post("/text-to-image", response_class=Response)
async def text_to_image(body: TaskBody, request: Request) -> Response:
    """A picture from a prompt."""
    if len(body.inputs) > MAX_PROMPT:
        raise HTTPException(400, f"the prompt is longer than {MAX_PROMPT} characters")
    return await _answered(request, body.parameters, {"prompt": body.inputs})


@router.post("/image-to-image", response_class=Response)
async def image_to_image(request: Request) -> Response:
    """A picture from a picture: in base64 with parameters, or its bytes alone."""
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            body = TaskBody.model_validate_json(await request.body())
        except ValueError:
            raise HTTPException(400, "inputs and parameters cannot be read") from None
        data, parameters = decoded(body.inputs, "inputs"), body.parameters
    else:
        data, parameters = await request.body(), Parameters()
    picture = await asyncio.to_thread(given, data, "inputs")
    fields: dict[str, Any] = {"image": referred(picture.png), "prompt": parameters.prompt or ""}  # Any: of each field
    if parameters.strength is not None:
        fields["strength"] = parameters.strength
    return await _answered(request, parameters, fields)


async def _answered(request: Request, parameters: Parameters, fields: dict[str, Any]) -> Response:  # Any: of each field
    size = parameters.target_size
    more = {
        "negative": parameters.negative_prompt,
        "width": size.width if size else parameters.width,
        "height": size.height if size else parameters.height,
        "steps": parameters.num_inference_steps,
        "guidance": parameters.guidance_scale,
        "sampler": parameters.scheduler,
        "seed": parameters.seed,
    }
    hub = hub_of(request)
    wish = asked(fields | {key: value for key, value in more.items() if value is not None})
    job = await hub.submit([wish], client=client_of(request), dialect="hf", keep="memory", wants_preview=False)
    await ended(request, job)
    png = await hub.png(job.made[0])
    kind = TYPES.get(request.headers.get("accept", ""), "PNG")
    data = await asyncio.to_thread(recoded, png, kind)
    return Response(data, media_type=f"image/{kind.lower()}", headers={"x-seed": str(job.made[0].seed)})
