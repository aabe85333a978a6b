"""What handlers of every dialect need of a request: the hub, who asks, the body, and whether anybody still listens."""

import asyncio
import base64
import contextlib
from typing import Annotated

from fastapi import Path, Request
from starlette.exceptions import HTTPException

from mezzotint.serve.hub import Hub, Unavailable
from mezzotint.serve.ids import ID_PATTERN
from mezzotint.serve.job import Job

Id = Annotated[str, Path(pattern=ID_PATTERN)]
SSE = {"x-accel-buffering": "no", "cache-control": "no-store"}  # headers of a stream of events


def hub_of(request: Request) -> Hub:
    """The middle of this server."""
    return request.app.state.hub


def client_of(request: Request) -> str:
    """Who asks, for a fair share: the address."""
    return request.client.host if request.client else "?"


async def body_bytes(request: Request) -> bytes:
    """The raw body of a picture. Raises: HTTPException if it is something else or there is none."""
    if not request.headers.get("content-type", "").startswith(("image/", "application/octet-stream")):
        raise HTTPException(415, "send the bytes of a picture, with its image/* type")
    data = await request.body()
    if not data:
        raise HTTPException(400, "the body is empty; send the bytes of a picture")
    return data


def decoded(text: str, name: str) -> bytes:
    """The bytes of base64 text, with or without `data:` in front. Raises: HTTPException; addresses are not fetched."""
    if text.startswith(("http://", "https://", "file:", "ftp:")):
        raise HTTPException(400, f"{name}: addresses are not fetched; send the picture itself in base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=False)
    except ValueError:
        raise HTTPException(400, f"{name}: this is not base64") from None


async def ended(request: Request, job: Job, *, may_be_partial: bool = False) -> None:
    """Wait until the job has ended; if the client goes away before, cancel it within one step.

    Raises: HTTPException if the job failed, or was cancelled by somebody else unless the caller takes what there is;
        Unavailable if the server was ended first.
    """
    hub = hub_of(request)
    waiting = asyncio.create_task(job.ended.wait())
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not job.ended.is_set():
            await hub.cancel(job)
            raise HTTPException(499, "the client has gone")
    finally:
        for task in (waiting, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if not job.ended.is_set():
            await hub.cancel(job)
    if job.state == "cancelled" and not may_be_partial:
        raise HTTPException(409, "the job was cancelled")
    if job.error is not None:
        code, detail = job.error["code"], job.error["detail"]
        if code == "interrupted":
            raise Unavailable("draining", detail, 30)
        if code == "engine_restarted":
            raise Unavailable("loading", detail, 5)
        raise HTTPException(400 if code == "wrong_request" else 500, detail)


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection; the body has been read before."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


_cancelling: set[asyncio.Task[None]] = set()


def cancel_later(hub: Hub, job: Job) -> None:
    """Cancel a job that nobody listens to any more, from a place where nothing can be waited for."""
    if not job.ended.is_set():
        task = asyncio.create_task(hub.cancel(job))
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)
