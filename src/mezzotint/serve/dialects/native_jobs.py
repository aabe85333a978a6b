"""Jobs of the native API: begun, looked at, followed, cancelled, estimated; and the stories that some of them tell."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from mezzotint.explain.page import page as page_of
from mezzotint.serve.client import SSE, Id, client_of, hub_of
from mezzotint.serve.hub import Hub
from mezzotint.serve.ids import ID_PATTERN
from mezzotint.serve.job import ENDED, Job
from mezzotint.serve.queue import cost, evaluations
from mezzotint.serve.wish import MAX_REQUESTS, STRICT, Wish, check, wished

router = APIRouter()


class JobBody(BaseModel):
    """What to make: one request, or several in order."""

    model_config = STRICT

    request: Wish | None = None
    requests: Annotated[list[Wish], Field(min_length=1, max_length=MAX_REQUESTS)] | None = None
    preview: bool = True
    keep: bool = True
    model: Annotated[str, Field(pattern=ID_PATTERN)] | None = None
    explain: bool = False

    def wishes(self) -> list[Wish]:
        """All of them."""
        if (self.request is None) == (self.requests is None):
            raise HTTPException(400, "exactly one of request and requests is needed")
        found = [self.request] if self.request is not None else self.requests or []
        if self.explain and sum(wish.count for wish in found) != 1:
            raise HTTPException(400, "explain: one picture is explained at a time; leave count at 1")
        return found


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
            is_explained=body.explain,
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
    whole = sum(cost(one, hub.defaults, is_explained=body.explain) for one in requests)
    return {
        "images": sum(one.count for one in requests),
        "evaluations": sum(evaluations(one, hub.defaults) for one in requests),
        "seconds": None if seconds is None else round(whole * seconds, 2),
    }


@router.get("/jobs/{name}/story", response_class=Response)
async def story(name: Id, request: Request, page: bool = False) -> Response:
    """How the picture of a job came about, as data or as a page to keep."""
    hub = hub_of(request)
    found = await hub.on_disk(lambda: hub.store.story_bytes(name))
    if found is None:
        raise HTTPException(404, f"there is no story of the job {name!r}")
    if not page:
        return Response(found, media_type="application/json", headers={"cache-control": "private, max-age=3600"})
    told = json.loads(found)
    headers = {"content-disposition": f'attachment; filename="{name}.html"'}
    return Response(page_of(told["title"], told), media_type="text/html; charset=utf-8", headers=headers)
