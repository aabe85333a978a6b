"""`/api/v1`: everything that there is, in our own words; what the page speaks. docs/reference/http.md describes it.

Here: the server itself, its models and its names. Jobs and pictures have files of their own.
"""

import json
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from mezzotint.names import SAMPLERS, SPACINGS
from mezzotint.serve.client import SSE, Id, hub_of
from mezzotint.serve.dialects import native_jobs, native_pictures
from mezzotint.serve.guard import COOKIE, Access
from mezzotint.serve.hub import Hub
from mezzotint.serve.tokens import counted
from mezzotint.serve.wish import MAX_PROMPT, STRICT, Wish

PROBLEM: dict[str, Any] = {"description": "a problem", "content": {"application/problem+json": {}}}  # Any: as below
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(  # Any: what FastAPI takes
    (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503), PROBLEM
)

router = APIRouter(prefix="/api/v1", tags=["native"], responses=ERRORS)
router.include_router(native_jobs.router)
router.include_router(native_pictures.router)


class TextBody(BaseModel):
    """A prompt."""

    model_config = STRICT

    text: Annotated[str, Field(max_length=MAX_PROMPT)]


class KeyBody(BaseModel):
    """The key of the server."""

    model_config = STRICT

    key: Annotated[str, Field(max_length=1000)]


@router.get("/server")
async def server(request: Request) -> dict[str, Any]:  # Any: JSON
    """State, model, queue and limits."""
    return _server(request, hub_of(request))


@router.get("/events", response_class=StreamingResponse)
async def server_events(request: Request) -> StreamingResponse:
    """The same whenever it changes, as server-sent events."""
    hub = hub_of(request)

    async def lines() -> AsyncIterator[bytes]:
        async for now in hub.news():
            if now is None:
                yield b": still here\n\n"
            else:
                yield f"event: server\ndata: {json.dumps(_server(request, hub))}\n\n".encode()

    return StreamingResponse(lines(), media_type="text/event-stream", headers=SSE)


@router.post("/session", status_code=204)
async def begin_session(body: KeyBody, request: Request) -> Response:
    """A cookie for the key."""
    access: Access = request.app.state.access
    if not access.admits(body.key):
        raise HTTPException(401, "this is not the key of this server")
    answer = Response(status_code=204)
    is_tls = request.url.scheme == "https"  # as a trusted proxy says
    answer.set_cookie(COOKIE, access.token(), httponly=True, samesite="strict", path="/", secure=is_tls)
    return answer


@router.delete("/session", status_code=204)
async def end_session() -> Response:
    """No cookie any more."""
    answer = Response(status_code=204)
    answer.delete_cookie(COOKIE, path="/")
    return answer


@router.get("/schema")
async def schema() -> dict[str, Any]:  # Any: JSON
    """The JSON schema of a request."""
    return Wish.model_json_schema()


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:  # Any: JSON
    """What can be loaded."""
    hub = hub_of(request)
    entries = await hub.on_disk(hub.shelf.entries)
    shown = await hub.on_disk(
        lambda: [{"id": e.id, "name": e.name, "is_current": e.id == hub.entry.id, "bytes": e.bytes} for e in entries]
    )
    return {"current": hub.entry.id, "models": shown}


@router.get("/models/{name}")
async def model(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """What a model is, and which key decided."""
    hub = hub_of(request)
    entry = await hub.on_disk(lambda: hub.shelf.find(name))
    if entry is None:
        raise HTTPException(404, f"there is no model {name!r}")
    return {"id": entry.id, "name": entry.name, "is_current": entry.id == hub.entry.id, **await hub.inspect(entry.path)}


@router.post("/models/{name}/load", status_code=202)
async def load_model(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """Load another model."""
    hub = hub_of(request)
    if await hub.on_disk(lambda: hub.shelf.find(name)) is None:
        raise HTTPException(404, f"there is no model {name!r}")
    await hub.switch(name)
    return _server(request, hub)


@router.get("/samplers")
async def samplers() -> dict[str, Any]:  # Any: JSON
    """Samplers with their options, and spacings."""
    return {
        "samplers": [
            {
                "name": info.name,
                "title": info.title,
                "aliases": info.aliases,
                "spacing": info.spacing,
                "evaluations": info.evaluations,
                "is_stochastic": info.is_stochastic,
                "options": {
                    key: {"default": o.default, "low": o.low, "high": o.high, "doc": o.doc, "choices": o.choices}
                    for key, o in info.options.items()
                },
            }
            for info in SAMPLERS.values()
        ],
        "spacings": [{"name": i.name, "title": i.title, "aliases": i.aliases} for i in SPACINGS.values()],
    }


@router.post("/tokens")
async def tokens(body: Annotated[TextBody, Body()], request: Request) -> dict[str, Any]:  # Any: JSON
    """How much of a prompt fits."""
    hub = hub_of(request)
    entry, room = hub.entry, (hub.model or {}).get("room", 75)
    return await hub.on_disk(lambda: counted(entry.path, body.text, room))


def _server(request: Request, hub: Hub) -> dict[str, Any]:  # Any: JSON
    limits = hub.limits
    return {
        "name": "mezzotint",
        "version": version("mezzotint"),
        "needs_key": request.app.state.access.key is not None,
        **hub.server(),
        "limits": {
            "pixels": limits.pixels,
            "steps": limits.steps,
            "count": limits.count,
            "requests": limits.requests,
            "upload_bytes": limits.upload_bytes,
            "prompt": limits.prompt,
        },
    }
