"""How fast GroupNorm and SiLU are on channels_last maps in bfloat16, compiled and by torch.

Measures, at each shape: seconds of one call, contenders in random order within a round, the median over rounds of the
ratio of two times of one round, with the smallest and the largest; the error of each against float64. `in place` writes
into memory that exists, as the autoencoder does: at 67 MB a large part of every other time is the system handing out
pages.
What would make the numbers lie: other work (load is recorded).

    mezzotint doctor --build && python benchmarks/group_norm.py [--threads 2] [--rounds 15]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/group_norm-THREADS.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels import native

RESULTS = Path(__file__).parent / "results"
SHAPES = {"SD 1 320@64²": (2, 320, 64), "SD 1 2560@8²": (2, 2560, 8), "autoencoder 128@512²": (1, 128, 512)}


def timed(run: Callable[[], object]) -> float:
    """Seconds of the second of two calls."""
    run()
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not native.available():
        raise SystemExit("the compiled kernels are not built: mezzotint doctor --build")
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, (b, c, side) in SHAPES.items():
        x = torch.randn(b, c, side, side, generator=generator).bfloat16().to(memory_format=torch.channels_last)
        contiguous = x.contiguous()
        weight, bias = torch.randn(2, c, generator=generator).bfloat16()
        out = torch.empty_like(x)

        def compiled(x: Tensor = x, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            return native.group_norm(x, 32, w, b, 1e-5, silu=True)

        def in_place(x: Tensor = x, out: Tensor = out, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            mean, squares = native.moments(x).view(2, len(x), 32, -1).unbind()
            centre = mean.mean(2, keepdim=True)
            variance = squares.mean(2, keepdim=True) / (x.shape[2] * x.shape[3])
            variance = variance + (mean - centre).square().mean(2, keepdim=True)
            scale = (variance + 1e-5).rsqrt().expand_as(mean).flatten(1) * w.double()
            offset = b.double() - centre.expand_as(mean).flatten(1) * scale
            native.scale_into(out, x, scale.float(), offset.float(), silu=True)
            return out

        def by_torch(x: Tensor, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            return F.silu(F.group_norm(x, 32, w, b, 1e-5))

        runs: dict[str, Callable[[], Tensor]] = {
            "compiled": compiled,
            "in place": in_place,
            "torch channels_last": lambda x=x: by_torch(x),
            "torch contiguous": lambda x=contiguous: by_torch(x),
        }
        expected = F.silu(F.group_norm(x.double(), 32, weight.double(), bias.double(), 1e-5))
        errors = {kind: float((run().double() - expected).norm() / expected.norm()) for kind, run in runs.items()}
        times: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(asked.rounds):
            for kind, run in random.sample(list(runs.items()), len(runs)):
                times[kind].append(timed(run))
        best = [min(pair) for pair in zip(times["torch channels_last"], times["torch contiguous"], strict=True)]
        ratios = {
            kind: [slow / fast for slow, fast in zip(best, times[kind], strict=True)]
            for kind in ("compiled", "in place")
        }
        rows.append(
            {
                "shape": name,
                "b c side": [b, c, side],
                "times faster than torch's better layout": {
                    kind: {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}
                    for kind, values in ratios.items()
                },
                "milliseconds": {kind: 1e3 * statistics.median(values) for kind, values in times.items()},
                "error": errors,
            }
        )
        print(f"{name:22}", ", ".join(f"{kind} {statistics.median(values):.2f}x" for kind, values in ratios.items()))
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "instructions": sorted(native.instructions()),
            "torch": torch.__version__,
            "threads": asked.threads,
            "load": os.getloadavg()[0],
        },
        "rounds": asked.rounds,
        "rows": rows,
    }
    (RESULTS / f"group_norm-{asked.threads}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
