"""What benchmarks of one operation share: contenders take turns, ratios are of one round, the machine is named."""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from mezzotint.kernels import native

RESULTS = Path(__file__).parent / "results"

Run = Callable[[], object]


def begun(doc: str | None, rounds: int) -> argparse.Namespace:
    """`threads` and `rounds` as asked for; the threads are set, and the compiled kernels are there."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=rounds)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not native.available():
        raise SystemExit("the compiled kernels are not built: mezzotint doctor --build")
    return asked


def timed(run: Run) -> float:
    """Seconds of the second of two calls."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def turns(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender in every round, in random order within a round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            times[name].append(timed(runs[name]))
    return times


def faster(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times, within one round: median, smallest, largest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios)}


def milliseconds(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to what float64 gives."""
    return float((found.double() - expected).norm() / expected.norm())


def report(name: str, asked: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows beside what they were measured on, and print the same as the last line."""
    machine = {
        "processor": platform.processor() or platform.machine(),
        "instructions": sorted(native.instructions()),
        "torch": torch.__version__,
        "threads": asked.threads,
        "load": os.getloadavg()[0],
    }
    table = {"machine": machine, "rounds": asked.rounds, "rows": rows}
    (RESULTS / f"{name}-{asked.threads}.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(table))
