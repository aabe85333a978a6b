"""Jobs shared out to processes: in this one, or in workers that each take the next job when they have done one.

Which worker does what changes nothing: a chunk is a function of the spec. What is broken does not stop the rest; a
worker that dies does, with everything that was done kept.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from mezzotint import errors
from mezzotint.errors import MezzotintError
from mezzotint.evaluation.bench import Bench, Job
from mezzotint.evaluation.pictures import Problem
from mezzotint.evaluation.spec import EvaluationSpec
from mezzotint.evaluation.work import BrokenPictures

QUICK = 200  # given pictures

Told = Callable[[int, int], None]
"""Called with units done and units in all."""


def count_workers(spec: EvaluationSpec, jobs: int, units: int) -> int:
    """Processes: as asked, else one for each core that a worker's threads leave; never more than jobs.

    Few given pictures are looked at in less time than a process takes to start.
    """
    is_quick = spec.model is None and units < QUICK
    own = 1 if is_quick else max(1, (os.cpu_count() or 1) // spec.threads)
    return max(1, min(spec.workers or own, jobs))


def carry_out(bench: Bench, jobs: Sequence[Job], told: Told = lambda done, total: None) -> None:
    """Do all jobs. Raises: BrokenPictures at the end, if some could not be read; MezzotintError if a worker died."""
    if not jobs:
        return
    total = sum(len(bench.sets[job.place].units(job.chunk)) for job in jobs)
    done = 0

    def count(units: int) -> None:
        nonlocal done
        done += units
        told(done, total)

    told(0, total)
    workers = count_workers(bench.spec, len(jobs), total)
    problems = _here(bench, jobs, count) if workers == 1 else _apart(bench.spec, jobs, workers, count)
    if problems:
        raise BrokenPictures(problems)


def _here(bench: Bench, jobs: Sequence[Job], count: Callable[[int], None]) -> list[Problem]:
    problems: list[Problem] = []
    for job in jobs:
        work = bench.sets[job.place]
        try:
            work.compute(bench.extractors(work), job.chunk, skips_broken=bench.spec.skip_broken, told=count)
        except BrokenPictures as error:
            problems += error.problems
    return problems


def _apart(spec: EvaluationSpec, jobs: Sequence[Job], workers: int, count: Callable[[int], None]) -> list[Problem]:
    heard: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()  # Any: JSON
    processes: list[subprocess.Popen[str]] = []
    waiting, running = list(reversed(jobs)), 0
    problems: list[Problem] = []
    try:
        for place in range(workers):
            processes.append(_started(spec, place, heard))
            _say(processes[place], json.dumps(waiting.pop()))
            running += 1
        while running:
            place, said = heard.get()
            if said is None:
                code = processes[place].wait()
                raise MezzotintError(
                    f"a worker ended unexpectedly ({f'signal {-code}' if code < 0 else f'code {code}'}); what was done "
                    "is kept and the same command continues; if memory ran out, give a smaller --workers"
                )
            if "units" in said:
                count(said["units"])
                continue
            running -= 1
            if "error" in said:
                raise _again(said)
            problems += [Problem(*problem) for problem in said.get("broken", [])]
            if waiting:
                _say(processes[place], json.dumps(waiting.pop()))
                running += 1
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _closed(pipe)
    return problems


def _started(
    spec: EvaluationSpec, place: int, heard: "queue.Queue[tuple[int, dict[str, Any] | None]]"
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(spec.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "mezzotint.evaluation.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    _say(process, spec.model_dump_json())
    threading.Thread(target=_hear, args=(process, place, heard), daemon=True).start()
    return process


def _hear(process: subprocess.Popen[str], place: int, heard: "queue.Queue[tuple[int, dict[str, Any] | None]]") -> None:
    assert process.stdout is not None
    try:
        for line in process.stdout:
            heard.put((place, json.loads(line)))
    except ValueError:  # closed under our hands, or a line that was cut off
        pass
    heard.put((place, None))


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died; its reader says so
        process.stdin.write(line + "\n")
        process.stdin.flush()


def _closed(pipe: Any) -> None:  # Any: text streams of a process
    with contextlib.suppress(OSError):
        pipe.close()


def _again(said: dict[str, Any]) -> MezzotintError:
    """The error that a worker told, of its own class."""
    kind = getattr(errors, said["kind"], MezzotintError)
    is_ours = isinstance(kind, type) and issubclass(kind, MezzotintError)
    return (kind if is_ours else MezzotintError)(said["error"])
