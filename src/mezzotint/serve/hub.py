"""The middle of the server: jobs come in from any dialect, wait, go to the engine, and end; each says how it goes.

Everything here happens in one thread, the event loop's; only files and the index are touched in another. The engine may
die at any time: jobs that ran then fail and say so, jobs that wait do not notice.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar  # Any: JSON

from mezzotint.errors import RequestError
from mezzotint.pipeline.request import Request
from mezzotint.serve.ids import new_id
from mezzotint.serve.inspecting import Inspector
from mezzotint.serve.job import ENDED, Job, Keep, Made
from mezzotint.serve.link import ENGINE, Link
from mezzotint.serve.metrics import Metrics
from mezzotint.serve.models import Entry, Shelf
from mezzotint.serve.queue import Defaults, Queue, cost
from mezzotint.serve.store import JOBS_S, Store
from mezzotint.serve.wire import Frame
from mezzotint.serve.wish import Limits, check, fingerprint, told

DEFAULT_JOBS = 64  # of the default kind are as much as the queue holds
NEWS_EVERY_S = 0.5
EXPIRE_EVERY_S = 60.0
REMEMBERED = 100  # jobs that have ended
OUT_OF_MEMORY = 2  # times in a row, and the engine is started again

log = logging.getLogger(__name__)
T = TypeVar("T")


class Unavailable(Exception):
    """No job is taken now; `code` says why, `retry_after` when to come back."""

    def __init__(self, code: str, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retry_after = code, detail, retry_after


class KeyReused(Exception):
    """An idempotency key came back with another body."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the hub works; the command line fills it in."""

    dtype: str = "auto"
    device: str = "auto"
    places: int = 4
    queue: int = DEFAULT_JOBS
    merge_rows: int = 0
    is_everything_kept: bool = False
    limits: Limits = field(default_factory=Limits)
    engine: tuple[str, ...] = ENGINE


class Hub:
    """Jobs, queue, engine and store."""

    def __init__(self, store: Store, shelf: Shelf, settings: Settings) -> None:
        self.store, self.shelf, self.settings = store, shelf, settings
        self.limits = settings.limits
        self.jobs: dict[str, Job] = {}
        self.state = "loading"
        self.detail = ""
        self.model: dict[str, Any] | None = None  # what the engine said of the one that is loaded
        self.entry: Entry = shelf.entries()[0]  # the model that jobs get which ask for none
        self.defaults = Defaults()
        self.queue = Queue(capacity=float("inf"), places=settings.places)
        self.metrics = Metrics()
        self.inspect = Inspector()
        environment = {"MEZZOTINT_MERGE_ROWS": str(settings.merge_rows)}
        self.link = Link(self._heard, self._began, self._died, settings.engine, environment)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-disk")
        self._tasks: list[asyncio.Task[None]] = []
        self._loading: str | None = None
        self._is_up = False  # whether the engine has said hello
        self._failures = 0
        self._news = asyncio.Event()
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
            cost=sum(cost(request, self.defaults) for request in requests),
        )
        self.queue.offer(job.id, job.cost, client, time.monotonic())
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

        Raises: RequestError if there is none of that name; Unavailable while another one is being loaded.
        """
        entry = self.shelf.find(name)
        if entry is None:
            raise RequestError(f"there is no model {name!r}")
        if self._loading is not None:
            raise Unavailable("busy", "another model is being loaded", 5)
        self.entry = entry
        if self.model is None or self.model["id"] != entry.id:
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

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do something with the store, in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    # what the engine does

    async def _began(self) -> None:
        self._is_up = False

    async def _died(self) -> None:
        """Jobs that ran are lost with the engine; the rest waits for the next one."""
        self._is_up, self._loading, self.model = False, None, None
        if self.state != "draining":
            self._turn("loading")
        self.metrics.engine_deaths.inc()
        for job in self._running():
            await self._end(
                job, "failed", code="engine_restarted", detail="the engine broke down; try again", again=True
            )

    async def _heard(self, frame: Frame) -> None:
        try:
            await self._hear(frame)
        except Exception:
            log.exception("a message of the engine could not be dealt with")
            if (job := self.jobs.get(str(frame.head.get("job")))) is not None and job.state not in ENDED:
                await self.link.tell({"do": "cancel", "job": job.id})
                await self._end(job, "failed", code="failed", detail="the picture could not be kept; see the log")

    async def _hear(self, frame: Frame) -> None:
        head = frame.head
        match head["is"]:
            case "hello":
                self._is_up = True
                await self._load(self.entry)
            case "loading":
                pass
            case "loaded":
                await self._loaded(head)
            case "unloadable":
                await self._unloadable(head)
            case _:
                job = self.jobs.get(head["job"])
                if job is not None and job.state not in ENDED:
                    await self._about(job, head, frame.parts)

    async def _about(self, job: Job, head: dict[str, Any], parts: tuple[bytes, ...]) -> None:  # Any: JSON
        place = {key: head[key] for key in ("request", "image", "number") if key in head}
        match head["is"]:
            case "started":
                job.log.add("started", {"total": job.total})
            case "progress":
                job.progress = self._progress(job, head, place)
                job.log.add("progress", job.progress)
                self.metrics.steps.inc()
            case "preview":
                width, height = _png_size(parts[0])
                data = {**place, "step": head["step"], "width": width, "height": height, "data": _data_url(parts[0])}
                job.log.add("preview", data)
            case "partial":
                job.log.add("partial", {**place, "index": head["index"], "data": _data_url(parts[0])})
            case "warning":
                job.warnings.append(head["detail"])
                job.log.add("warning", {"detail": head["detail"]})
            case "picture":
                await self._keep(job, head, place, parts[0])
            case "done" | "cancelled" | "failed" as how:
                self._failures = self._failures + 1 if head.get("code") == "out_of_memory" else 0
                if how == "done":
                    self.queue.learn(job.cost, head["busy"])
                detail = {"code": head["code"], "detail": head["detail"]} if how == "failed" else {}
                await self._end(job, how, **detail)
                if self._failures >= OUT_OF_MEMORY:
                    self._failures = 0
                    self.link.kill()
            case other:
                log.error("the engine said %r", other)

    async def _keep(self, job: Job, head: dict[str, Any], place: dict[str, Any], png: bytes) -> None:  # Any: JSON
        """Put a finished picture where it is wanted, then tell of it."""
        size = {"width": head["width"], "height": head["height"]}
        if job.keep == "memory":
            job.made.append(Made({**place, "seed": head["seed"], **size}, head["seed"], png, None))
        else:
            name = new_id("p")
            is_kept = job.keep == "gallery"
            await self.on_disk(lambda: self.store.add_picture(name, png, job=job.id, is_kept=is_kept))
            entry = {**place, "id": name, "seed": head["seed"], **size, **links(name)}
            job.made.append(Made(entry, head["seed"], None, name))
        job.log.add("image", job.made[-1].entry)
        self.metrics.pictures.inc()

    def _progress(self, job: Job, head: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
        fraction = (head["number"] + head["step"] / head["steps"]) / job.total
        left = job.cost * (1 - fraction) * self.queue.seconds_per_cost if self.queue.seconds_per_cost else None
        if left is None and job.began is not None and fraction > 0:
            left = (time.monotonic() - job.began) / fraction * (1 - fraction)
        return {
            **place,
            "total": job.total,
            "step": head["step"],
            "steps": head["steps"],
            "fraction": round(fraction, 4),
            "sigma": head["sigma"],
            "seconds_left": None if left is None else round(left, 1),
        }

    # order

    async def _dispatch(self) -> None:
        """Begin every job that may begin, loading the model that the next one wants once nothing runs."""
        while self._is_up and self._loading is None and self.state not in {"failed"}:
            order = self.queue.order()
            wanted = self.jobs[order[0].job].model if order else self.entry.id
            if self.model is None or self.model["id"] != wanted:
                if self.queue.running:
                    return
                entry = self.shelf.find(wanted)
                if entry is None:
                    await self._unloadable({"model": wanted, "detail": "the model is gone"})
                    continue
                await self._load(entry)
                return
            if self.state == "loading":
                self._turn("ready")
            name = self.queue.next(lambda job, wanted=wanted: self.jobs[job].model == wanted)
            if name is None:
                return
            await self._begin(self.jobs[name])

    async def _begin(self, job: Job) -> None:
        job.state, job.began = "running", time.monotonic()
        self.metrics.waited(time.time() - job.created)
        requests, pictures = [], dict[str, bytes]()
        for request in job.requests:
            fields, given = told(request)
            requests.append(fields)
            pictures |= given
        head = {
            "do": "make",
            "job": job.id,
            "requests": requests,
            "pictures": list(pictures),
            "preview": job.wants_preview,
            "partials": job.partials,
        }
        await self.link.tell(head, *pictures.values())
        self._say_places()

    async def _end(self, job: Job, how: str, *, code: str = "", detail: str = "", again: bool = False) -> None:
        if job.state in ENDED:
            return
        job.requests.clear()  # with the pictures that were given
        job.state = how  # pyright: ignore[reportAttributeAccessIssue]  # one of State, from a message
        job.finished = time.time()
        self.queue.leave(job.id)
        images = [made.id for made in job.made if made.id is not None]
        if how == "failed":
            job.error = {"code": code, "detail": detail, "retryable": again}
            job.log.add("failed", {**job.error, "images": images})
        else:
            job.log.add(how, {"images": images, "seconds": round(job.finished - job.created, 3)})
        job.ended.set()
        self.metrics.ended(job.dialect, how, job.finished - job.created)
        if job.keep == "memory":
            self.jobs.pop(job.id, None)
        else:
            await self.on_disk(lambda: self.store.end_job(job.id, how, job.error))
            self._forget()
        self._say_places()
        await self._dispatch()

    async def _load(self, entry: Entry) -> None:
        self._loading = entry.id
        if self.state != "draining":
            self._turn("loading")
        head = {"do": "load", "model": entry.id, "path": entry.path, "name": entry.name}
        await self.link.tell({**head, "dtype": self.settings.dtype, "device": self.settings.device})

    async def _loaded(self, head: dict[str, Any]) -> None:  # Any: JSON
        self._loading = None
        entry = self.shelf.find(head["model"])
        told = {key: head[key] for key in ("preset", "title", "dtype", "device", "needs", "defaults", "room")}
        self.model = {"id": head["model"], "name": entry.name if entry else "?", **told}
        self.defaults = Defaults(**{key: value for key, value in head["defaults"].items() if key != "spacing"})
        self.queue.capacity = self.settings.queue * cost(Request(), self.defaults)
        self.metrics.loaded(self.model)
        if self.state != "draining":
            self._turn("ready")
        await self._dispatch()

    async def _unloadable(self, head: dict[str, Any]) -> None:  # Any: JSON
        """The jobs that wanted this model fail; the server stays with the model before, or without any."""
        self._loading, self.model = None, None
        for job in [job for job in self.jobs.values() if job.state not in ENDED and job.model == head["model"]]:
            self.queue.leave(job.id)
            await self._end(job, "failed", code="unloadable", detail="the model cannot be loaded; see the server's log")
        if self.entry.id == head["model"]:
            first = self.shelf.entries()[0]
            if first.id == head["model"]:
                self.detail = "the model cannot be loaded; see the server's log"
                self._turn("failed")
                return
            self.entry = first
        await self._dispatch()

    def _forget(self) -> None:
        """Of jobs that have ended only the latest stay in memory; of others the index knows."""
        ended = [name for name, job in self.jobs.items() if job.state in ENDED]
        for name in ended[:-REMEMBERED]:
            del self.jobs[name]

    def _running(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "running"]

    def _available(self) -> None:
        if self.state == "draining":
            raise Unavailable("draining", "the server is being shut down", 30)
        if self.state == "loading":
            raise Unavailable("loading", "the model is being loaded", 2)
        if self.state == "failed":
            raise Unavailable("loading", self.detail, 60)

    def _turn(self, state: str) -> None:
        self.state = state
        self._tell()

    def _say_places(self) -> None:
        """Tell every job that waits where it is now."""
        done = {job.id: job.fraction for job in self._running()}
        for ticket in self.queue.order():
            position, seconds = self.queue.place(ticket.job, done)
            data = {"position": position, "seconds_left": seconds}
            log_ = self.jobs[ticket.job].log
            if (log_.latest("queued") or {}).get("position") != position:
                log_.add("queued", data)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
        self.metrics.queued(len(self.queue.waiting), len(self.queue.running))

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
            await self.on_disk(self.store.expire)


def links(name: str) -> dict[str, str]:
    """Where a picture's file and thumbnail are."""
    return {"url": f"/api/v1/images/{name}/file", "thumb": f"/api/v1/images/{name}/thumb"}


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png_size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
