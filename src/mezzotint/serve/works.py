"""What is done with the engine: jobs wait, begin, say how they go, and end; models come and go.

The engine may die at any time: jobs that ran then fail and say so, jobs that wait do not notice.
"""

import asyncio
import base64
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar  # Any: JSON

from mezzotint.pipeline.request import Request
from mezzotint.pipeline.source import Source
from mezzotint.serve.ids import new_id
from mezzotint.serve.job import ENDED, Job, Made
from mezzotint.serve.link import ENGINE, Link
from mezzotint.serve.metrics import Metrics
from mezzotint.serve.models import Entry, Shelf
from mezzotint.serve.queue import Defaults, Queue, cost
from mezzotint.serve.store import Store
from mezzotint.serve.wire import Frame
from mezzotint.serve.wish import Limits, told

DEFAULT_JOBS = 64  # of the default kind are as much as the queue holds
REMEMBERED = 100  # jobs that have ended
OF_ALL = ("dtype", "device", "weights")  # what of a source is said of every model
OF_FIRST = ("preset", "objective", "vae", "unclip_stats")  # and what of the one that it names alone
OUT_OF_MEMORY = 2  # times in a row, and the engine is started again

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the hub works; the command line fills it in."""

    source: Source = field(default_factory=Source)
    places: int = 4
    queue: int = DEFAULT_JOBS
    merge_rows: int = 0
    is_everything_kept: bool = False
    limits: Limits = field(default_factory=Limits)
    engine: tuple[str, ...] = ENGINE


class Works:
    """Jobs, queue, engine and store, without the clients."""

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
        environment = {"MEZZOTINT_MERGE_ROWS": str(settings.merge_rows)}
        self.link = Link(self._heard, self._began, self._died, settings.engine, environment)
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-disk")
        self._loading: str | None = None
        self._is_up = False  # whether the engine has said hello
        self._failures = 0
        self._fatal: str | None = None  # the model that was being loaded when the engine ended last
        self._kernels: dict[str, object] = {}  # by model: what was chosen when it was loaded first
        self._news = asyncio.Event()

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Do something with the store, in the thread for that."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    def has(self, model: str) -> bool:
        """Whether the model of this id is the one that is loaded."""
        return self.model is not None and self.model["id"] == model

    # what the engine does

    async def _began(self) -> None:
        self._is_up = False

    async def _died(self) -> None:
        """Jobs that ran are lost with the engine; the rest waits for the next one."""
        loading, self._loading = self._loading, None
        self._is_up, self.model = False, None
        self._turn("loading")
        self.metrics.engine_deaths.inc()
        if loading is not None and loading == self._fatal:  # twice in a row: it is not tried again by itself
            log.error("model %s ended the engine twice while it was loaded", loading)
            await self._unloadable({"model": loading})
        self._fatal = loading
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
                if self.state != "failed":  # else it waits for another model
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
            case "telling":
                job.log.add("telling", {})
            case "story":
                await self.on_disk(lambda: self.store.add_story(job.id, parts[0]))
                job.story = story_of(job.id, len(parts[0]))
                job.log.add("story", job.story)
            case "done" | "cancelled" | "failed" as how:
                self._failures = self._failures + 1 if head.get("code") == "out_of_memory" else 0
                if how == "done" and not job.is_explained:
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
            if not self.has(wanted):
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
        requests, pictures = list[dict[str, Any]](), dict[str, bytes]()  # Any: JSON
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
            "explain": job.is_explained,
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
            try:
                await self.on_disk(lambda: self.store.end_job(job.id, how, job.error))
            except (OSError, sqlite3.Error):  # the disk is full: the job has ended all the same
                log.exception("the end of job %s could not be written down", job.id)
            self._forget()
        self._say_places()
        await self._dispatch()

    async def _load(self, entry: Entry) -> None:
        self._loading = entry.id
        self._turn("loading")
        head: dict[str, object] = {"do": "load", "model": entry.id, "path": entry.path, "name": entry.name}
        is_first = entry.id == self.shelf.entries()[0].id
        found = {name: getattr(self.settings.source, name) for name in (*OF_ALL, *(OF_FIRST if is_first else ()))}
        how = {name: str(value) for name, value in found.items() if value is not None}
        await self.link.tell({**head, "kernels": self._kernels.get(entry.id), "how": how})

    async def _loaded(self, head: dict[str, Any]) -> None:  # Any: JSON
        self._loading = self._fatal = None
        entry = self.shelf.find(head["model"])
        told = {key: head[key] for key in ("preset", "title", "dtype", "device", "needs", "defaults", "room")}
        self.model = {"id": head["model"], "name": entry.name if entry else "?", **told}
        self._kernels[head["model"]] = head.get("kernels")
        self.defaults = Defaults(**{key: value for key, value in head["defaults"].items() if key != "spacing"})
        self.queue.capacity = self.settings.queue * cost(Request(), self.defaults)
        self.metrics.loaded(self.model)
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

    def _turn(self, state: str) -> None:
        """Be in another state; a server that is being shut down stays in that."""
        if self.state != "draining":
            self.state = state
        self._tell()

    def _say_places(self) -> None:
        """Tell every job that waits where it is now."""
        done = {job.id: job.fraction for job in self._running()}
        for name, (position, seconds) in self.queue.places_of(done).items():
            data = {"position": position, "seconds_left": seconds}
            log_ = self.jobs[name].log
            if (log_.latest("queued") or {}).get("position") != position:
                log_.add("queued", data)
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
        self.metrics.queued(len(self.queue.waiting), len(self.queue.running))


def links(name: str) -> dict[str, str]:
    """Where a picture's file and thumbnail are."""
    return {"url": f"/api/v1/images/{name}/file", "thumb": f"/api/v1/images/{name}/thumb"}


def story_of(job: str, size: int) -> dict[str, Any]:  # Any: JSON
    """Where the story of a job is, and how large."""
    return {"url": f"/api/v1/jobs/{job}/story", "bytes": size}


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png_size(png: bytes) -> tuple[int, int]:
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
