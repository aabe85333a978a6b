"""The middle of the server: what clients of any dialect do with jobs, models and news.

Everything here happens in one thread, the event loop's; only files and the index are touched in another.
"""

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any  # Any: JSON

from mezzotint.errors import RequestError
from mezzotint.pipeline.request import Request
from mezzotint.serve.ids import new_id
from mezzotint.serve.inspecting import Inspector
from mezzotint.serve.job import ENDED, Job, Keep, Made
from mezzotint.serve.models import Shelf
from mezzotint.serve.queue import Full, cost
from mezzotint.serve.store import JOBS_S, Store
from mezzotint.serve.wish import check, fingerprint, told
from mezzotint.serve.works import Settings, Works, links, story_of

NEWS_EVERY_S = 0.5
EXPIRE_EVERY_S = 60.0


log = logging.getLogger(__name__)


class Unavailable(Exception):
    """No job is taken now; `code` says why, `retry_after` when to come back."""

    def __init__(self, code: str, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retry_after = code, detail, retry_after


class KeyReused(Exception):
    """An idempotency key came back with another body."""


class Hub(Works):
    """What handlers of requests see of the server."""

    def __init__(self, store: Store, shelf: Shelf, settings: Settings) -> None:
        super().__init__(store, shelf, settings)
        self.inspect = Inspector()
        self._tasks: list[asyncio.Task[None]] = []
        self._keys = asyncio.Lock()

    # life

    def open(self) -> None:
        """Start the engine and load the first model."""
        self.link.open()
        self._tasks = [asyncio.create_task(self._tend(), name="tend")]

    async def drain(self, grace: float) -> None:
        """Take no more jobs, and wait for those that were taken; what is not done after `grace` seconds fails."""
        self._turn("draining")
        try:
            async with asyncio.timeout(grace):
                for job in list(self.jobs.values()):
                    await job.ended.wait()
        except TimeoutError:
            for job in [job for job in self.jobs.values() if job.state not in ENDED]:
                await self.link.tell({"do": "cancel", "job": job.id})
                await self._end(job, "failed", code="interrupted", detail="the server is being shut down", again=True)

    async def close(self) -> None:
        """End engine and index."""
        self._turn("draining")
        for task in self._tasks:
            task.cancel()
        await self.link.close()
        self._disk.shutdown()
        self.store.close()

    # what clients do

    async def submit(
        self,
        requests: Sequence[Request],
        *,
        client: str,
        dialect: str,
        shown: Sequence[Mapping[str, Any]] = (),
        model: str | None = None,
        keep: Keep = "gallery",
        wants_preview: bool = True,
        partials: int = 0,
        is_explained: bool = False,
        key: str | None = None,
        body: object = None,
    ) -> Job:
        """Take a job.

        Raises: RequestError if it is wrong, Full if it does not fit, Unavailable if none is taken now, KeyReused.
        """
        self._available()
        if not 0 < len(requests) <= self.limits.requests:
            raise RequestError(f"{len(requests)} requests: a job has 1 to {self.limits.requests}")
        for request in requests:
            check(request, self.limits, self.defaults)
        entry = self.entry if model is None else self.shelf.find(model)
        if entry is None:
            raise RequestError(f"there is no model {model!r}")
        if self.settings.is_everything_kept and keep == "memory":
            keep = "gallery"
        job = Job(
            id=new_id("j"),
            requests=list(requests),
            shown=[dict(one) for one in shown] or [told(request)[0] for request in requests],
            client=client,
            dialect=dialect,
            model=entry.id,
            keep=keep,
            wants_preview=wants_preview,
            partials=partials,
            is_explained=is_explained,
            cost=sum(cost(request, self.defaults, is_explained=is_explained) for request in requests),
        )
        try:
            self.queue.offer(job.id, job.cost, client, time.monotonic())
        except Full:
            self.metrics.refused(dialect)
            raise
        self.jobs[job.id] = job
        try:
            if keep != "memory" or key is not None:
                await self.on_disk(lambda: self.store.add_job(job.id, job.shown, key=key, body=fingerprint(body)))
        except Exception:
            self.queue.leave(job.id)
            del self.jobs[job.id]
            raise
        self.metrics.accepted(dialect)
        self._say_places()
        await self._dispatch()
        return job

    async def submit_once(
        self, key: str, body: object, submit: Callable[[], Awaitable[Job]]
    ) -> dict[str, Any] | None:  # Any: JSON
        """The job that was taken with this key before, else the one that `submit` makes. Raises: KeyReused."""
        async with self._keys:
            row = await self.on_disk(lambda: self.store.job_with_key(key))
            if row is not None and row["body"] != fingerprint(body):
                raise KeyReused
            return await self.look(str(row["id"]) if row is not None else (await submit()).id)

    async def png(self, made: Made) -> bytes:
        """The file of a picture, wherever it is kept. Raises: RequestError if it was deleted."""
        name = made.id
        found = made.png if name is None else await self.on_disk(lambda: self.store.picture_bytes(name))
        if found is None:
            raise RequestError("the picture was deleted")
        return found

    async def look(self, name: str) -> dict[str, Any] | None:  # Any: JSON
        """A job as clients see it, also one of an earlier life of the server."""
        job = self.jobs.get(name)
        if job is not None:
            return job.told(*self.place(job))
        row = await self.on_disk(lambda: self.store.job(name))
        return None if row is None else await self.on_disk(lambda: self._remembered(row))

    def place(self, job: Job) -> tuple[int | None, float | None]:
        """Where a job is in the queue, and how long it will take from now."""
        if job.state in ENDED:
            return None, None
        position, seconds = self.queue.place(job.id, {j.id: j.fraction for j in self._running()})
        return (position if job.state == "queued" else None), seconds

    async def cancel(self, job: Job) -> None:
        """Stop one job, within one step; others do not notice."""
        if job.state not in ENDED:
            await self.link.tell({"do": "cancel", "job": job.id})
            await self._end(job, "cancelled")

    async def skip(self, job: Job) -> None:
        """Go on with the next picture of a job."""
        if job.state == "running":
            await self.link.tell({"do": "skip", "job": job.id})

    async def switch(self, name: str) -> None:
        """Make another model the one that jobs get which ask for none, and load it.

        Raises: RequestError if there is none of that name; Unavailable while another one is being loaded, or the
        server is being shut down.
        """
        entry = self.shelf.find(name)
        if entry is None:
            raise RequestError(f"there is no model {name!r}")
        if self.state == "draining":
            raise Unavailable("draining", "the server is being shut down", 30)
        if self._loading is not None:
            raise Unavailable("busy", "another model is being loaded", 5)
        self.entry = entry
        if not self.has(entry.id):
            self._turn("loading")
            await self._dispatch()

    def server(self) -> dict[str, Any]:  # Any: JSON
        """State, model and queue."""
        held = sum(job.cost * (1 - job.fraction) for job in self.jobs.values() if job.state not in ENDED)
        return {
            "state": self.state,
            "detail": self.detail,
            "model": self.model,
            "queue": {
                "waiting": len(self.queue.waiting),
                "running": len(self.queue.running),
                "seconds": round(held * (self.queue.seconds_per_cost or 0), 1),
            },
        }

    async def news(self) -> AsyncIterator[dict[str, Any] | None]:  # Any: JSON
        """`server()` now and whenever it changes; None when nothing did for a while."""
        said: dict[str, Any] | None = None  # Any: JSON
        while True:
            news = self._news
            if (now := self.server()) != said:
                said = now
                yield now
                await asyncio.sleep(NEWS_EVERY_S)
                continue
            try:
                async with asyncio.timeout(15):
                    await news.wait()
            except TimeoutError:
                yield None

    def _available(self) -> None:
        if self.state == "draining":
            raise Unavailable("draining", "the server is being shut down", 30)
        if self.state == "loading":
            raise Unavailable("loading", "the model is being loaded", 2)
        if self.state == "failed":
            raise Unavailable("loading", self.detail, 60)

    def _remembered(self, row: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        """A job of which only index and files are left."""
        entries = [
            {
                "id": p["id"],
                "seed": p["seed"],
                "width": p["width"],
                "height": p["height"],
                "number": i,
                **links(p["id"]),
            }
            for i, p in enumerate(self.store.pictures_of(row["id"]))
        ]
        return {
            "id": row["id"],
            "state": row["state"],
            "position": None,
            "seconds_left": None,
            "created": row["created"],
            "requests": json.loads(row["requests"]),
            "total": len(entries),
            "images": entries,
            "story": None if (size := self.store.story_size(row["id"])) is None else story_of(row["id"], size),
            "progress": None,
            "warnings": [],
            "error": json.loads(row["error"]) if row["error"] else None,
        }

    async def _tend(self) -> None:
        """Forget what is to be kept only for a while."""
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            old = time.time() - JOBS_S
            for job in [job for job in self.jobs.values() if job.finished is not None and job.finished < old]:
                self.jobs.pop(job.id, None)
            try:
                await self.on_disk(self.store.expire)
            except (OSError, sqlite3.Error):
                log.exception("what is too old could not be deleted; it is tried again")
