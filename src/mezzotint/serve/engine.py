"""The process with torch: told over stdin what to make, it tells over stdout how it goes. Nothing else is shared.

Every running job gets turns of one network evaluation (or one band of decoding); between two turns commands are read,
so that a cancelled job stops within one step. Which job is next, the batcher decides. A job that fails takes nothing
with it.

    python -m mezzotint.serve.engine

Commands: load, make, cancel, skip. Answers: hello, loading, loaded, unloadable, started, progress, preview, partial,
picture, telling, story, warning, done, failed, cancelled.
"""

import io
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import torch
from PIL import Image
from torch import Tensor

from mezzotint.diffusion.sampling import Row, Rows
from mezzotint.errors import MezzotintError, RequestError
from mezzotint.images import to_image
from mezzotint.kernels.autoencoder import Bands
from mezzotint.pipeline.making import Making, Picture
from mezzotint.pipeline.merge import Asked, can_merge, kind, merged
from mezzotint.pipeline.request import ImageRef, Request
from mezzotint.pipeline.system import System, load
from mezzotint.serve.batcher import Batcher
from mezzotint.serve.wire import Frame, packed, read_frame

if TYPE_CHECKING:
    from mezzotint.explain.blocks import Telling
    from mezzotint.explain.story import Story
    from mezzotint.explain.watch import Watching

PREVIEW_EVERY_S = 0.2
PICTURES = ("image", "mask", "reference")
SHOWN_PLACES = 65536  # a preview has no more pixels
STORY_BYTES = 8_000_000

log = logging.getLogger(__name__)

Say = Callable[..., None]


@dataclass
class Job:
    """A list of requests at work: one picture at a time, each a trajectory that waits for the answer to its rows."""

    id: str
    makings: list[Making]
    wants_preview: bool
    partials: int
    began: float
    busy: float = 0.0  # seconds of turns that it had
    ending: str | None = None  # said at the end of the turn
    request: int = 0
    image: int = -1
    number: int = -1
    step: int = 0
    shown: float = 0.0
    rows: Rows | None = None
    asked: list[Row] | None = None  # None: the latent is done
    latent: Tensor | None = None
    bands: Bands[Picture] | None = None  # the pixels, while they are decoded
    watching: "Watching | None" = None  # what is seen of a picture that is explained
    telling: "Telling[Story] | None" = None  # its story, while it is told
    is_skipped: bool = False  # the picture that is under way is not wanted any more

    @property
    def total(self) -> int:
        """Pictures of the whole job."""
        return sum(len(making.seeds) for making in self.makings)

    @property
    def making(self) -> Making:
        """The request that is at work."""
        return self.makings[self.request]

    def place(self) -> dict[str, object]:
        """Which picture is being made."""
        return {"job": self.id, "request": self.request, "image": self.image, "number": self.number}


class Engine:
    """The loaded model, the jobs that run on it, and turns."""

    def __init__(self, say: Say, *, merge_rows: int = 0) -> None:
        self.say, self.merge_rows = say, merge_rows
        self.system: System | None = None
        self.jobs: dict[str, Job] = {}
        self.batcher = Batcher()

    def obey(self, frame: Frame) -> None:
        """Carry out one command."""
        head = frame.head
        match head["do"]:
            case "load":
                self._load(head)
            case "make":
                self._make(head, frame.parts)
            case "cancel":
                if (job := self.jobs.get(head["job"])) is not None:
                    self._end(job, "cancelled")
            case "skip":
                if (job := self.jobs.get(head["job"])) is not None:
                    job.is_skipped = True  # its next turn goes on; what could fail there fails as in any turn
            case other:
                log.error("unknown command %r", other)

    def turn(self) -> None:
        """One evaluation, one band of decoding or one piece of a story, of the job that is next."""
        name = self.batcher.turn()
        if name is None:
            return
        began = time.monotonic()
        jobs = [self.jobs[name]]
        try:
            is_small = 0 < self._rows(name) <= self.merge_rows
            if is_small and not jobs[0].is_skipped and can_merge(self._asked(jobs[0])):
                jobs = [self.jobs[name] for name in self.batcher.group(self._kind, self._rows, self.merge_rows)]
                self._merged(jobs)
            else:
                self._alone(jobs[0])
        except Exception as error:
            for job in jobs:
                self._fail(job, error)
        seconds = time.monotonic() - began
        self.batcher.charge([job.id for job in jobs], seconds)
        for job in jobs:
            job.busy += seconds / len(jobs)
            if job.ending is not None:
                self._end(job, job.ending)

    # what a turn does

    def _alone(self, job: Job) -> None:
        if job.image < 0:
            self._begin(job)
        elif job.is_skipped:
            job.is_skipped = False
            self._advance(job)
        elif job.telling is not None:
            self._tell(job)
        elif job.asked is None:
            self._finish(job)
        else:
            self._answer(job, job.making.predict(job.asked))

    def _merged(self, jobs: list[Job]) -> None:
        asked = [self._asked(job) for job in jobs]
        for job, x0 in zip(jobs, merged(asked, self.merge_rows), strict=True):
            try:
                self._answer(job, x0)
            except Exception as error:  # of this job alone: the others have been asked, and are answered
                self._fail(job, error)

    def _begin(self, job: Job) -> None:
        """Read the prompts of the next request, and draw the first noise."""
        for warning in job.making.warnings:
            self.say({"is": "warning", "job": job.id, "detail": warning})
        self._next_image(job)

    def _next_image(self, job: Job) -> None:
        job.image, job.number, job.step = job.image + 1, job.number + 1, 0
        job.rows, job.latent, job.bands = job.making.rows(job.image), None, None
        job.asked = next(job.rows)

    def _answer(self, job: Job, x0: list[Tensor]) -> None:
        """Tell the trajectory what its rows came to, and the world how far it is."""
        assert job.rows is not None
        assert job.asked is not None
        making, sigma = job.making, job.asked[0].sigma
        before, job.step = job.step, making.step(sigma, job.step)
        try:
            job.asked = job.rows.send(x0)
        except StopIteration as finished:
            job.asked, job.latent = None, finished.value
        at = {**job.place(), "step": job.step, "steps": making.steps, "total": job.total}
        self.say({"is": "progress", **at, "sigma": sigma})
        now = time.monotonic()
        if job.wants_preview and job.asked is not None and now - job.shown >= PREVIEW_EVERY_S:
            job.shown = now
            self.say({"is": "preview", **at}, _png(_small(making.system.preview(x0[0]))))
        if job.step != before and job.step in _partial_steps(job.partials, making.steps):
            index = _partial_steps(job.partials, making.steps).index(job.step)
            image = to_image(making.system.decode(x0[0])[0].numpy())
            self.say({"is": "partial", **at, "index": index}, _png(image))

    def _finish(self, job: Job) -> None:
        """Pixels from the latent, and on to the next picture."""
        assert job.latent is not None
        if job.bands is None:
            job.bands = job.making.finishing(job.image, job.latent)
        try:
            next(job.bands)
            return  # a band of the pixels is one turn
        except StopIteration as ended:
            picture, job.bands = ended.value, None
        size = {"width": picture.image.width, "height": picture.image.height}
        self.say({"is": "picture", **job.place(), "seed": picture.seed, **size}, picture.png())
        if job.watching is None:
            self._advance(job)
            return
        from mezzotint.explain.story import Scene, telling

        ms = 1000 * job.busy
        job.telling = telling(Scene(making=job.making, watching=job.watching, image=picture.image, ms=ms))
        self.say({"is": "telling", "job": job.id})

    def _tell(self, job: Job) -> None:
        """A piece of the story; all of it when it is told."""
        assert job.telling is not None
        try:
            next(job.telling)
            return
        except StopIteration as ended:
            story = json.dumps(ended.value.to_json()).encode()
        if len(story) > STORY_BYTES:
            raise MezzotintError(f"the story has more than {STORY_BYTES} bytes: take fewer steps or a smaller picture")
        self.say({"is": "story", "job": job.id}, story)
        self._advance(job)

    def _advance(self, job: Job) -> None:
        """The next picture of the request, else the next request, else the end."""
        if job.rows is not None:
            job.rows.close()
        if job.image + 1 < len(job.making.seeds):
            self._next_image(job)
            return
        job.making.forget()
        job.rows, job.asked, job.latent, job.bands, job.telling = None, None, None, None, None
        job.request, job.image = job.request + 1, -1
        job.number = sum(len(making.seeds) for making in job.makings[: job.request]) - 1
        if job.request == len(job.makings):
            job.ending = "done"

    # beginnings and ends

    def _load(self, head: dict[str, Any]) -> None:  # Any: JSON
        """Load a model in place of the one before; jobs that still run on that one keep it."""
        self.say({"is": "loading", "model": head["model"]})
        self.system = None
        try:
            self._loaded(head)
        except Exception as error:
            is_told = isinstance(error, MezzotintError)
            log.error("model %s cannot be loaded: %s", head["path"], error, exc_info=not is_told)
            detail = str(error) if is_told else "the file cannot be loaded"
            self.system = None
            self.say({"is": "unloadable", "model": head["model"], "detail": detail})

    def _loaded(self, head: dict[str, Any]) -> None:  # Any: JSON
        kernels = head.get("kernels") or "auto"  # as before the engine broke down: never timed twice
        system = load(head["path"], kernels=kernels, **head.get("how", {}))
        system.place = system.place._replace(source=head["name"], name=head["name"])  # no path of ours in pictures
        system.start_hashing()
        self.system = system
        defaults = system.defaults
        self.say(
            {
                "is": "loaded",
                "model": head["model"],
                "preset": system.preset,
                "title": defaults.title,
                "dtype": str(system.dtype).removeprefix("torch."),
                "device": str(system.device),
                "needs": _needs(system),
                "defaults": {
                    "width": system.size[0],
                    "height": system.size[1],
                    "steps": defaults.steps,
                    "guidance": defaults.guidance,
                    "sampler": _sampler(system),
                    "spacing": _spacing(system),
                },
                "room": min(tower.config.positions for tower in system.text) - 2,
                "kernels": system.kernels.kernels.recorded(),
                "threads": torch.get_num_threads(),
            }
        )

    def _make(self, head: dict[str, Any], parts: tuple[bytes, ...]) -> None:  # Any: JSON
        """Take up a job; all its requests are checked before any is begun."""
        now = time.monotonic()
        job = Job(head["job"], [], bool(head.get("preview")), int(head.get("partials", 0)), now)
        try:
            if self.system is None:
                raise RequestError("no model is loaded")
            pictures = dict(zip(head.get("pictures", ()), parts, strict=True))
            requests = [_request(fields, pictures) for fields in head["requests"]]
            if head.get("explain"):
                from mezzotint.explain.story import looked_at  # with much that other jobs do without

                making, job.watching = looked_at(self.system, requests[0])
                job.makings = [making]
            else:
                job.makings = [Making(self.system, request) for request in requests]
        except Exception as error:
            self._fail(job, error)
            return
        self.jobs[job.id] = job
        self.batcher.add(job.id)
        self.say({"is": "started", "job": job.id, "total": job.total})

    def _fail(self, job: Job, error: Exception) -> None:
        """Tell that a job has failed: with our own words where they are for users, else with none of the error's."""
        code, detail = "failed", "the picture could not be made; the server's log says why"
        if isinstance(error, RequestError):
            code, detail = "wrong_request", str(error)
        elif isinstance(error, MezzotintError):
            detail = str(error)
        elif isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            code, detail = "out_of_memory", "not enough memory for this size; try a smaller one"
        if not isinstance(error, MezzotintError):
            log.error("job %s failed", job.id, exc_info=error)
        self._end(job, "failed", code=code, detail=detail)

    def _end(self, job: Job, how: str, **told: object) -> None:
        for running in (job.rows, job.bands, job.telling):
            if running is not None:
                running.close()
        self.batcher.remove(job.id)
        if self.jobs.pop(job.id, None) is None and job.ending is not None:
            return  # said already
        self.say({"is": how, "job": job.id, "seconds": time.monotonic() - job.began, "busy": job.busy, **told})

    def _kind(self, name: str) -> object:
        job = self.jobs[name]
        return object() if job.asked is None else kind(self._asked(job))

    def _asked(self, job: Job) -> Asked:
        return Asked(job.making.predict, job.asked or [])

    def _rows(self, name: str) -> int:
        return len(self.jobs[name].asked or ())


def _request(fields: dict[str, Any], pictures: dict[str, bytes]) -> Request:  # Any: JSON of Request
    """The request with the bytes of its pictures, which are named by their sha256."""
    given: dict[str, Any] = {  # Any: each field has its own type
        key: ImageRef(data=pictures[fields[key]["sha256"]], sha256=fields[key]["sha256"])
        for key in PICTURES
        if fields.get(key)
    }
    return Request(**{**fields, **given})


def _needs(system: System) -> list[str]:
    """Fields without which this model makes nothing."""
    if system.image_tower is not None:
        return ["reference"]
    return ["image", "mask"] if system.unet.config.in_channels > system.vae.config.latent_channels else []


def _sampler(system: System) -> str:
    return _planned(system).resolved.plan.sampler


def _spacing(system: System) -> str:
    return str(_planned(system).resolved.request.spacing)


def _planned(system: System) -> Making:
    """A request that says nothing, to see what the model makes of it."""
    grey = ImageRef(data=_png(Image.new("RGB", system.size, "grey")))
    needed: dict[str, Any] = dict.fromkeys(_needs(system), grey)  # Any: fields that are pictures
    return Making(system, Request(seed=0, **needed))


def _partial_steps(partials: int, steps: int) -> list[int]:
    """After which steps a half-done picture is decoded: spread evenly, never the last step."""
    return sorted({step for k in range(partials) if 0 < (step := round((k + 1) * steps / (partials + 1))) < steps})


def _small(image: Image.Image) -> Image.Image:
    if image.width * image.height > SHOWN_PLACES:
        image.thumbnail((256, 256))
    return image


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def serve(source: BinaryIO, sink: BinaryIO, engine: Callable[[Say], Engine]) -> None:
    """Obey the commands that come from `source`, answer into `sink`, until `source` ends."""
    commands: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while (frame := read_frame(source)) is not None:
                commands.put(frame)
        except ValueError:
            log.exception("the other side sent no message")
        commands.put(None)

    def say(head: dict[str, object], *parts: bytes) -> None:
        sink.write(packed(head, *parts))
        sink.flush()

    threading.Thread(target=listen, daemon=True, name="mezzotint-commands").start()
    working = engine(say)
    say({"is": "hello", "pid": os.getpid(), "torch": torch.__version__, "threads": torch.get_num_threads()})
    while True:
        while working.jobs and commands.empty():
            working.turn()
        frame = commands.get()
        if frame is None:
            return
        working.obey(frame)


def main() -> NoReturn:
    """The process: keeps stdout for messages, so that nothing that prints can break them."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if threads := os.environ.get("MEZZOTINT_THREADS"):
        torch.set_num_threads(int(threads))
    merge_rows = int(os.environ.get("MEZZOTINT_MERGE_ROWS", "0"))
    try:
        serve(sys.stdin.buffer, sink, lambda say: Engine(say, merge_rows=merge_rows))
    except BrokenPipeError:  # the server is gone: nobody is left to tell
        os._exit(1)
    os._exit(0)  # without waiting for a hash that is being computed


if __name__ == "__main__":
    main()
