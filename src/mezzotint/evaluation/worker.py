"""A worker of `evaluate`: a process that computes the chunks that it is told, and dies when its leader does.

It reads lines on stdin, first the spec as JSON, then jobs as `[set, chunk]`, and answers with JSON lines: `units` for
every picture, `done`, `broken` with a chunk's unreadable pictures, or `error`. When stdin ends it ends at once; files
appear whole or not at all, so nothing is lost but the picture or the chunk that it was at.

    python -m mezzotint.evaluation.worker
"""

import json
import os
import queue
import signal
import sys
import threading
from typing import Any, TextIO

from mezzotint.errors import MezzotintError
from mezzotint.evaluation.bench import Bench, Job, threads
from mezzotint.evaluation.spec import EvaluationSpec
from mezzotint.evaluation.work import BrokenPictures


def main() -> None:
    """Work until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the leader decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    sys.stdout = sys.stderr  # whatever prints must not disturb the answers
    bench = Bench(EvaluationSpec(**json.loads(sys.stdin.readline())))
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    with threads(bench.spec.threads):
        while True:
            job = jobs.get()
            try:
                work = bench.sets[job.place]
                work.compute(
                    bench.extractors(work),
                    job.chunk,
                    skips_broken=bench.spec.skip_broken,
                    told=lambda count: _answer(answers, {"units": count}),
                )
                _answer(answers, {"done": list(job)})
            except BrokenPictures as error:
                _answer(answers, {"broken": [list(problem) for problem in error.problems]})
            except (MezzotintError, OSError) as error:
                _answer(answers, {"error": str(error), "kind": type(error).__name__})


def _listen(jobs: "queue.Queue[Job]") -> None:
    for line in sys.stdin:
        jobs.put(Job(*json.loads(line)))
    os._exit(0)


def _answer(answers: TextIO, said: dict[str, Any]) -> None:  # Any: JSON
    answers.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
