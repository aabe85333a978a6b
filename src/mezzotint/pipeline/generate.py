"""Pictures from a request: all at once, as they are made, or again from a finished file."""

import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple  # Any: the fields of Request, which validates them

from mezzotint.errors import RequestError
from mezzotint.images import open_image
from mezzotint.pipeline.drive import drive
from mezzotint.pipeline.making import Making, Picture
from mezzotint.pipeline.request import Progress, Request
from mezzotint.pipeline.result import (
    Expectation,
    Result,
    compare,
    largest_difference,
    recorded_request,
)

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

__all__ = [
    "Expectation",
    "Recorded",
    "Replay",
    "Result",
    "Stream",
    "expect",
    "generate",
    "recorded_source",
    "replay",
    "stream",
    "watched",
]


class Stream(Iterator[Progress]):
    """Progress after every evaluation; `result` when it has ended. Closing it stops before the next evaluation."""

    def __init__(self, running: Generator[Progress, None, Result]) -> None:
        self._running = running
        self._result: Result | None = None

    def __next__(self) -> Progress:
        try:
            return next(self._running)
        except StopIteration as finished:
            self._result = finished.value or self._result
            raise StopIteration from None

    def close(self) -> None:
        """Cancel; nothing is kept."""
        self._running.close()

    @property
    def result(self) -> Result:
        """The pictures. Raises RuntimeError before the stream has ended or if it was closed."""
        if self._result is None:
            raise RuntimeError("the stream has not ended: iterate over all of it before asking for its result")
        return self._result


def stream(system: "System", request: Request | None = None, /, **fields: Any) -> Stream:
    """Pictures while they are made, for a request or its fields. Wrong requests are refused here, before any work.

    Raises: RequestError.
    """
    asked = _asked(request, fields)
    return Stream(_run(Making(system, asked)))


def generate(system: "System", request: Request | None = None, /, **fields: Any) -> Result:
    """The pictures of a request or of its fields. Raises: RequestError."""
    running = stream(system, request, **fields)
    for _ in running:
        pass
    return running.result


def watched(making: Making) -> Stream:
    """`stream` of a request that is set up already, with whoever looks on; the pictures are the same, bit for bit."""
    return Stream(_run(making))


class Replay(NamedTuple):
    """A picture made again; `difference` is the largest of any channel, None if the size differs."""

    result: Result
    difference: int | None


def expect(source: str | Path | bytes, system: "System") -> Expectation:
    """Whether `replay` with this system can be expected to give equal bits, and if not, why. Hashes the model.

    Raises: RequestError if the file has no record of ours.
    """
    _, found = recorded_request(_source(source))
    return compare(found, system.identity(), system.execution())


class Recorded(NamedTuple):
    """Which model a picture says it was made with, as it was named then, the dtype and the kernels."""

    path: str
    dtype: str
    kernels: str | dict[str, Any] = "auto"  # Any: checked by `load`


def recorded_source(source: str | Path | bytes) -> Recorded:
    """What to load for `replay`. Raises: RequestError if the file has no record of ours."""
    _, found = recorded_request(_source(source))
    execution = found["execution"]
    return Recorded(str(found["model"]["unet"]["source"]), str(execution["dtype"]), execution.get("kernels", "torch"))


def replay(source: str | Path | bytes, system: "System", **changes: Any) -> Replay:
    """The picture of a file made again; `changes` replace fields, for given pictures that have moved.

    Raises: RequestError if the file has no record of ours, or a picture that it was made from is not here.
    """
    source = _source(source)
    request, _ = recorded_request(source, **changes)
    result = generate(system, request)
    return Replay(result, largest_difference(result.images[0], open_image(source)))


def _source(source: str | Path | bytes) -> Path | bytes:
    return Path(source) if isinstance(source, str) else source


def _asked(request: Request | None, fields: dict[str, Any]) -> Request:
    if request is None:
        return Request(**fields)
    if fields:
        raise RequestError(f"give a Request or its fields, not both (fields: {', '.join(fields)})")
    return request


def _run(making: Making) -> Generator[Progress, None, Result]:
    system, steps = making.system, making.steps
    pictures: list[Picture] = []
    _ = making.warnings  # a strict request is refused before the clock starts
    clock = _Clock(making.evaluations)
    for i in range(len(making.seeds)):
        running = drive(making.rows(i), making.predict)
        step = 0
        while True:
            try:
                evaluation = next(running)
            except StopIteration as finished:
                pictures.append(making.finished(i, finished.value))
                break
            row = evaluation.rows[0]
            done, left = clock.tick()
            system.start_hashing()  # not before the first evaluation: nobody should wait for it
            step = making.step(row.sigma, step)
            yield Progress(
                image=i,
                step=step,
                steps=steps,
                evaluation=done,
                evaluations=clock.total,
                sigma=row.sigma,
                seconds_left=left,
                preview=partial(system.preview, evaluation.x0[0]),
            )
    return Result(
        images=[picture.image for picture in pictures],
        seeds=making.seeds,
        warnings=making.warnings,
        metadata=[picture.record for picture in pictures],
        infotexts=[picture.infotext for picture in pictures],
    )


class _Clock:
    """Counts evaluations and foretells the time of the rest from the mean of those that were."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._done = 0
        self._started = time.monotonic()

    def tick(self) -> tuple[int, float]:
        self._done += 1
        spent = time.monotonic() - self._started
        return self._done, spent / self._done * max(0, self.total - self._done)
