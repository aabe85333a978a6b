"""`/api/v1`: everything that there is, in our own words; what the page speaks. docs/reference/http.md describes it."""

import json
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from mezzotint.names import SAMPLERS, SPACINGS
from mezzotint.serve.client import body_bytes, client_of, hub_of
from mezzotint.serve.foreign import explained
from mezzotint.serve.guard import COOKIE, Access
from mezzotint.serve.hub import Hub
from mezzotint.serve.ids import ID_PATTERN
from mezzotint.serve.job import ENDED, Job
from mezzotint.serve.queue import cost, evaluations
from mezzotint.serve.thumbs import given
from mezzotint.serve.tokens import counted
from mezzotint.serve.wish import MAX_PROMPT, MAX_REQUESTS, STRICT, Wish, check, wished
from mezzotint.serve.works import links

PROBLEM: dict[str, Any] = {"description": "a problem", "content": {"application/problem+json": {}}}  # Any: as below
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(  # Any: what FastAPI takes
    (400, 401, 403, 404, 409, 413, 415, 422, 429, 503), PROBLEM
)
SSE = {"x-accel-buffering": "no", "cache-control": "no-store"}

router = APIRouter(prefix="/api/v1", tags=["native"], responses=ERRORS)
Id = Annotated[str, PathParameter(pattern=ID_PATTERN)]


class JobBody(BaseModel):
    """What to make: one request, or several in order."""

    model_config = STRICT

    request: Wish | None = None
    requests: Annotated[list[Wish], Field(min_length=1, max_length=MAX_REQUESTS)] | None = None
    preview: bool = True
    keep: bool = True
    model: Annotated[str, Field(pattern=ID_PATTERN)] | None = None

    def wishes(self) -> list[Wish]:
        """All of them."""
        if (self.request is None) == (self.requests is None):
            raise HTTPException(400, "exactly one of request and requests is needed")
        return [self.request] if self.request is not None else self.requests or []


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
    answer.set_cookie(COOKIE, access.token(), httponly=True, samesite="strict", path="/")
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


@router.post("/jobs", status_code=202)
async def create(
    body: JobBody,
    request: Request,
    idempotency_key: Annotated[str | None, Header(max_length=200, min_length=1, pattern=r"^[\x21-\x7e]+$")] = None,
) -> dict[str, Any]:  # Any: JSON
    """Begin to make pictures."""
    hub, client = hub_of(request), client_of(request)

    async def submit() -> Job:
        wishes = body.wishes()
        requests = await hub.on_disk(lambda: [wished(wish, hub.store.source_bytes) for wish in wishes])
        return await hub.submit(
            requests,
            client=client,
            dialect="native",
            shown=[wish.model_dump(mode="json", exclude_unset=True) for wish in wishes],
            model=body.model,
            keep="gallery" if body.keep else "passing",
            wants_preview=body.preview,
            key=idempotency_key and f"{client} {idempotency_key}",
            body=body.model_dump(mode="json"),
        )

    if idempotency_key is None:
        job = await submit()
        return job.told(*hub.place(job))
    found = await hub.submit_once(f"{client} {idempotency_key}", body.model_dump(mode="json"), submit)
    if found is None:
        raise HTTPException(404, "the job of this key is forgotten")
    return found


@router.get("/jobs")
async def jobs(request: Request) -> dict[str, Any]:  # Any: JSON
    """What waits and runs, then what has ended."""
    hub = hub_of(request)
    now = [job for job in hub.jobs.values() if job.state not in ENDED and job.keep != "memory"]
    rows = await hub.on_disk(hub.store.recent_jobs)
    names = [job.id for job in now] + [row["id"] for row in rows if row["id"] not in {job.id for job in now}]
    return {"jobs": [told for name in names[:100] if (told := await hub.look(name)) is not None]}


@router.delete("/jobs")
async def cancel_all(request: Request) -> dict[str, Any]:  # Any: JSON
    """Cancel every job of this dialect."""
    hub = hub_of(request)
    running = [job for job in hub.jobs.values() if job.state not in ENDED and job.dialect == "native"]
    for job in running:
        await hub.cancel(job)
    return {"jobs": [job.told() for job in running]}


@router.get("/jobs/{name}")
async def job(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """A job as it is now."""
    found = await hub_of(request).look(name)
    if found is None:
        raise HTTPException(404, f"there is no job {name!r}")
    return found


@router.delete("/jobs/{name}")
async def cancel(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """Stop a job within one step."""
    hub = hub_of(request)
    if (job := hub.jobs.get(name)) is not None:
        await hub.cancel(job)
    found = await hub.look(name)
    if found is None:
        raise HTTPException(404, f"there is no job {name!r}")
    return found


@router.get("/jobs/{name}/events", response_class=StreamingResponse)
async def job_events(
    name: Id,
    request: Request,
    after: Annotated[int, Query(ge=0, le=10**9)] = 0,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
) -> Response:
    """How a job goes, as server-sent events."""
    hub = hub_of(request)
    job = hub.jobs.get(name)
    if job is None:
        return await _past_events(hub, name, last_event_id)
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdecimal():
        after = int(last_event_id)
    if job.log.is_closed and after >= job.log.last_number:
        return Response(status_code=204)

    async def lines() -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        async for event in job.log.follow(after):
            yield b": still here\n\n" if event is None else event.sent()

    return StreamingResponse(lines(), media_type="text/event-stream", headers=SSE)


async def _past_events(hub: Hub, name: str, seen: str | None) -> Response:
    """Of a job that only the index remembers: its pictures and how it ended."""
    told = await hub.look(name)
    if told is None:
        raise HTTPException(404, f"there is no job {name!r}")
    if seen == "1000000000":
        return Response(status_code=204)
    images = [entry["id"] for entry in told["images"]]
    end: dict[str, Any] = {**(told["error"] or {}), "images": images}  # Any: JSON
    lines = [("image", entry) for entry in told["images"]] + [(told["state"], end)]
    text = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in lines)
    return Response(f"id: 1000000000\n{text}", media_type="text/event-stream", headers=SSE)


@router.post("/estimate")
async def estimate(body: JobBody, request: Request) -> dict[str, Any]:  # Any: JSON
    """What a job would cost."""
    hub = hub_of(request)
    wishes = body.wishes()
    requests = await hub.on_disk(lambda: [wished(wish, hub.store.source_bytes) for wish in wishes])
    for one in requests:
        check(one, hub.limits, hub.defaults)
    seconds = hub.queue.seconds_per_cost
    whole = sum(cost(one, hub.defaults) for one in requests)
    return {
        "images": sum(one.count for one in requests),
        "evaluations": sum(evaluations(one, hub.defaults) for one in requests),
        "seconds": None if seconds is None else round(whole * seconds, 2),
    }


@router.get("/images")
async def images(
    request: Request,
    q: Annotated[str, Query(max_length=1000)] = "",
    model: Annotated[str | None, Query(max_length=200)] = None,
    sampler: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 60,
) -> dict[str, Any]:  # Any: JSON
    """The gallery, newest first."""
    hub = hub_of(request)
    words = q.encode("utf-8", "replace").decode()
    found = await hub.on_disk(lambda: hub.store.search(words, model=model, sampler=sampler, before=before, limit=limit))
    entries = await hub.on_disk(lambda: [_entry(hub, row) for row in found.pictures])
    return {"images": entries, "next": found.next, "total": found.total}


@router.get("/images/{name}")
async def image(name: Id, request: Request) -> dict[str, Any]:  # Any: JSON
    """All that is known of a picture."""
    hub = hub_of(request)
    row = await hub.on_disk(lambda: hub.store.picture(name))
    png = await hub.on_disk(lambda: hub.store.picture_bytes(name))
    if row is None or png is None:
        raise HTTPException(404, f"there is no picture {name!r}")
    told = await hub.on_disk(lambda: explained(png))
    record: dict[str, Any] = told.record or {}  # Any: JSON

    def here(fields: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        for key in ("image", "mask", "reference"):
            if fields.get(key) and (found := hub.store.id_of_content(str(fields[key].get("sha256")))):
                fields[key] = {"upload": found}
        return fields

    return {
        **await hub.on_disk(lambda: _entry(hub, row)),
        "request": await hub.on_disk(lambda: here(told.request or {})),
        "asked": record.get("request", {}),
        "infotext": told.infotext,
        "record": record,
    }


@router.get("/images/{name}/file", response_class=Response)
async def image_file(name: Id, request: Request, download: bool = False) -> Response:
    """The picture."""
    hub = hub_of(request)
    return _picture(request, name, await hub.on_disk(lambda: hub.store.picture_bytes(name)), download=download)


@router.get("/images/{name}/thumb", response_class=Response)
async def image_thumb(name: Id, request: Request) -> Response:
    """The picture, small."""
    hub = hub_of(request)
    return _picture(request, name, await hub.on_disk(lambda: hub.store.thumb_bytes(name)), kind="image/webp")


@router.delete("/images/{name}", status_code=204)
async def delete_image(name: Id, request: Request) -> Response:
    """No such picture any more."""
    hub = hub_of(request)
    if not await hub.on_disk(lambda: hub.store.delete_picture(name)):
        raise HTTPException(404, f"there is no picture {name!r}")
    return Response(status_code=204)


_RAW = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}


@router.post("/uploads", status_code=201, openapi_extra=_RAW)
async def upload(request: Request) -> dict[str, Any]:  # Any: JSON
    """Keep a picture for requests."""
    hub = hub_of(request)
    data = await body_bytes(request)
    made = await hub.on_disk(lambda: hub.store.add_upload(given(data).png))
    return {**made, "url": f"/api/v1/uploads/{made['id']}"}


@router.get("/uploads/{name}", response_class=Response)
async def upload_file(name: Id, request: Request) -> Response:
    """A picture that was uploaded."""
    hub = hub_of(request)
    found = await hub.on_disk(lambda: hub.store.source_bytes(name)) if name.startswith("u_") else None
    return _picture(request, name, found)


@router.post("/inspect", openapi_extra=_RAW)
async def inspect(request: Request) -> dict[str, Any]:  # Any: JSON
    """How a picture was made, by whatever program."""
    data = await body_bytes(request)
    told = await hub_of(request).on_disk(lambda: explained(data))
    return {
        "source": told.source,
        "width": told.width,
        "height": told.height,
        "infotext": told.infotext,
        "request": told.request,
        "model": told.model,
        "ignored": told.ignored,
        "warnings": told.warnings,
    }


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


def _entry(hub: Hub, row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    """A picture as the gallery lists it."""
    hidden = ("kept", "sha256", "parents")
    parents = [hub.store.id_of_content(digest) for digest in json.loads(row["parents"])]
    shown = {key: value for key, value in row.items() if key not in hidden}
    return {**shown, "parents": [name for name in parents if name], **links(row["id"])}


def _picture(
    request: Request, name: str, data: bytes | None, *, kind: str = "image/png", download: bool = False
) -> Response:
    if data is None:
        raise HTTPException(404, f"there is no picture {name!r}")
    tag = f'"{name}"'
    headers = {"etag": tag, "cache-control": "private, max-age=31536000, immutable"}
    if download:
        headers["content-disposition"] = f'attachment; filename="{name}.png"'
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=kind, headers=headers)
