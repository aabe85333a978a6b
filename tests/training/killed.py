"""`mezzotint train`, to be killed: a program that takes the command's arguments and dies where it was told to.

MEZZOTINT_DEATH: "save:7" at the seventh dangerous point inside saves (before and after every sync to disk, rename and
removal), "after:0.4" 0.4 seconds after the first step began, wherever that is; without it, it lives. Where it died is
appended to the file MEZZOTINT_DEATHS. MEZZOTINT_BUG plants one of BUGS in what is restored.
"""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.cli.main import run
from mezzotint.training import journal, loop, state, step, unet
from mezzotint.training.run import Run

doing = ["between"]  # what the process is in the middle of, innermost last
points = 0


def die() -> None:
    """Say where, then stop as `kill -9` stops."""
    handle = os.open(os.environ["MEZZOTINT_DEATHS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{doing[-1]}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def within(what: str, action: Callable[..., Any]) -> Callable[..., Any]:
    """The action; while it lasts, `doing` says so."""

    def done(*args: Any, **kwargs: Any) -> Any:
        doing.append(what)
        try:
            return action(*args, **kwargs)
        finally:
            doing.pop()

    return done


def dangerous(action: Callable[..., Any], die_at: int) -> Callable[..., Any]:
    """The action, inside a save two points to die at."""

    def pass_a_point() -> None:
        global points
        points += "save" in doing
        if "save" in doing and points == die_at:
            die()

    def done(*args: Any, **kwargs: Any) -> Any:
        pass_a_point()
        result = action(*args, **kwargs)
        pass_a_point()
        return result

    return done


def before_first_step(action: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The action; when it begins for the first time, so does a clock that ends the process."""
    clock = threading.Thread(target=lambda: (time.sleep(seconds), die()), daemon=True)

    def done(*args: Any, **kwargs: Any) -> Any:
        if not clock.ident:
            clock.start()
        return action(*args, **kwargs)

    return done


def forget_averages(run: Run) -> None:
    """EMA is rebuilt from the weights."""
    run.averages = {name: [w.clone() for w in run.weights()] for name in run.averages}


def draw_anew(run: Run) -> None:
    """Random numbers come from a generator that begins with the process."""
    generator = torch.Generator().manual_seed(0)
    for module in (step, unet):
        module.keyed = lambda *parts: generator  # pyright: ignore


def skip_a_batch(run: Run) -> None:
    """The position in the data is off by one micro-batch."""
    samples = run.order.samples
    run.order.samples = lambda start, count: samples(start + count, count)


BUGS: dict[str, Callable[[Run], None]] = {bug.__name__: bug for bug in (forget_averages, draw_anew, skip_a_batch)}


def plant(bug: Callable[[Run], None]) -> None:
    """Make restoring wrong."""
    fill = Run._fill  # pyright: ignore[reportPrivateUsage]

    def broken(self: Run, held: Mapping[str, Tensor]) -> None:
        fill(self, held)
        bug(self)

    Run._fill = broken  # pyright: ignore[reportPrivateUsage]


def main() -> None:
    """Set up the death and the bug, then run the command."""
    journal.find_spec = lambda name: None  # pyright: ignore  # leave TensorBoard's seconds out of every life
    death, _, when = os.environ.get("MEZZOTINT_DEATH", "").partition(":")
    for owner, name, what in (
        (Run, "take_step", "step"), (Run, "validate", "held-out"), (loop, "export", "export"), (state, "save", "save"),
    ):  # fmt: skip
        setattr(owner, name, within(what, getattr(owner, name)))
    if death == "save":
        for owner, name in ((os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            setattr(owner, name, dangerous(getattr(owner, name), int(when)))
    elif death == "after":
        Run.take_step = before_first_step(Run.take_step, float(when))
    if bug := os.environ.get("MEZZOTINT_BUG"):
        plant(BUGS[bug])
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
