"""What sharing the engine costs: sixteen mixed jobs at once against the sum of their solo times.

Measures: the engine in this process, without pipes: seconds until all sixteen jobs are done when they take turns, and
when each has the engine for itself; both in one run, alternating, median of the rounds. The pictures of the two are
compared bit for bit. What would make the number lie: other work on the machine (rounds alternate), a first round that
allocates (one of each is thrown away), jobs of one size (they are of six). Not measured: HTTP, previews (off).
Last line of stdout: the result as one JSON object, also written to results/serving.json.

    python benchmarks/serving.py MODEL [ROUNDS]
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System, load
from mezzotint.serve.engine import Engine
from mezzotint.serve.wire import Frame
from mezzotint.serve.wish import told

SIZES = ((64, 64), (96, 64), (64, 96), (128, 64), (48, 48), (96, 96))
SAMPLERS = ("dpmpp_2m", "euler", "euler_ancestral", "heun")


def jobs() -> dict[str, Request]:
    """Sixteen requests of several sizes, lengths and samplers."""
    found: dict[str, Request] = {}
    for i in range(16):
        width, height = SIZES[i % len(SIZES)]
        found[f"job {i}"] = Request(
            prompt=f"a red heart {i}",
            seed=i,
            width=width,
            height=height,
            steps=4 + 3 * (i % 5),
            sampler=SAMPLERS[i % len(SAMPLERS)],
            guidance=1.0 if i % 7 == 6 else 7.5,
        )
    return found


def run(system: System, wanted: dict[str, Request]) -> tuple[float, dict[str, bytes]]:
    """Seconds until all of these are done, and their files."""
    pictures: dict[str, bytes] = {}

    def say(head: dict[str, Any], *parts: bytes) -> None:  # Any: JSON
        if head["is"] == "picture":
            pictures[head["job"]] = parts[0]

    engine = Engine(say)
    engine.system = system
    began = time.perf_counter()
    for name, request in wanted.items():
        engine.obey(Frame({"do": "make", "job": name, "requests": [told(request)[0]], "pictures": []}))
    while engine.jobs:
        engine.turn()
    return time.perf_counter() - began, pictures


def main(model: str, rounds: int) -> None:
    """Measure, print, write the result."""
    system, wanted = load(model), jobs()
    system.identity()  # hashes, before the clock
    together, alone = list[float](), list[float]()
    for round_ in range(rounds + 1):
        seconds, shared = run(system, wanted)
        solo_seconds, solo = 0.0, dict[str, bytes]()
        for name, request in wanted.items():
            spent, picture = run(system, {name: request})
            solo_seconds += spent
            solo |= picture
        assert shared == solo, "a picture differs from its solo run"
        if round_:  # the first one warms up
            together.append(seconds)
            alone.append(solo_seconds)
    ratios = [a / b for a, b in zip(together, alone, strict=True)]
    result = {
        "jobs": len(wanted),
        "rounds": rounds,
        "together_s": round(statistics.median(together), 3),
        "sum_of_solo_s": round(statistics.median(alone), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "bit_equal": True,
        "model": system.name,
        "dtype": str(system.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
    }
    place = Path(__file__).parent / "results" / "serving.json"
    place.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5)
