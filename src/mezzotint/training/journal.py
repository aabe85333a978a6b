"""The log of a run: one JSON object a line, and the same numbers for TensorBoard if it is installed.

Lines after the step that a run continues from are dropped first, so that every step is told once. What a full disk
refuses is kept and written later.
"""

import json
import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

log = logging.getLogger(__name__)

TRIED_SIDE, TRIES = 512, 5  # matrices that the machine's rate is measured with


class Journal:
    """Appends to `log.jsonl` in a run's folder."""

    def __init__(self, folder: Path, *, keep_until: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        kept = [line for line in self._lines() if _step(line) <= keep_until]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept), "utf-8")
        partial.replace(self.path)
        self._told = {(int(record["step"]), str(record["what"])) for record in map(json.loads, kept)}
        self._size, self._unwritten = self.path.stat().st_size, ""
        self._board = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)

    def _lines(self) -> list[str]:
        return self.path.read_text("utf-8").splitlines(keepends=True) if self.path.exists() else []

    def has(self, step: int, what: str) -> bool:
        """Whether there is a record of this kind at this step."""
        return (step, what) in self._told

    def add(self, step: int, what: str, values: Mapping[str, float], pace: Mapping[str, float]) -> None:
        """One record. `values` are the same whenever the run is repeated; `pace` is not."""
        record = (
            {"step": step, "what": what, **values, "pace": pace} if pace else {"step": step, "what": what, **values}
        )
        self._told.add((step, what))
        self._unwritten += json.dumps(record) + "\n"
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._size)  # what an earlier attempt wrote of its line
                file.seek(self._size)
                file.write(self._unwritten.encode())
        except OSError as error:
            log.error("%s: %s; what it lacks is written later", self.path, error.strerror)
        else:
            self._size += len(self._unwritten.encode())
            self._unwritten = ""
        if self._board is not None:
            for name, value in {**values, **pace}.items():
                self._board.add_scalar(f"{what}/{name}", value, step)  # pyright: ignore[reportUnknownMemberType]  # untyped
            self._board.flush()


def _step(line: str) -> float:
    """Step of a line; infinity for one that was cut off in writing."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


class Pace:
    """How fast a run goes. Only steps count, neither validation nor saving."""

    def __init__(self, samples: int, dtype: torch.dtype) -> None:
        self.samples = samples  # of a step
        self.peak = matrix_rate(dtype)
        self.steps, self.seconds = 0, 0.0

    @contextmanager
    def step(self) -> Generator[None]:
        """Time one step."""
        begun = time.monotonic()
        yield
        self.steps, self.seconds = self.steps + 1, self.seconds + time.monotonic() - begun

    def told(self, steps_left: int, flops: float) -> dict[str, float]:
        """Mean pace; `flops` are the model's operations in a step, of one process. `utilisation` is their share of what
        this machine reaches in large matrix products, measured when the run began.
        """
        step = self.seconds / self.steps
        return {
            "samples_per_second": self.samples / step,
            "minutes_left": step * steps_left / 60,
            "teraflops": flops / step / 1e12,
            "utilisation": flops / step / self.peak,
        }


def matrix_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of large square matrices, the best of a few tries."""
    matrix = torch.ones(TRIED_SIDE, TRIED_SIDE, dtype=dtype)
    times: list[float] = []
    for _ in range(TRIES):
        begun = time.monotonic()
        _ = matrix @ matrix
        times.append(time.monotonic() - begun)
    return 2 * TRIED_SIDE**3 / min(times)
