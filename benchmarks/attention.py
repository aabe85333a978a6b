"""How fast attention is in bfloat16, by the compiled kernel and by torch, at the shapes of the family.

Measures, at each shape: seconds of one call, contenders one after the other in random order within a round, the median
over rounds of the ratio of two times of one round, with the smallest and the largest; the error of each against float64
on part of the rows; clock-free: the rate of the compiled kernel against that of torch's matrix product in the same run.
`by tiles` is what runs on processors with AMX; elsewhere oneDNN does its products without tiles.
What would make the numbers lie: other work (load is recorded), one library's threads still spinning when the next
starts (each contender is called twice, the second call counts).

    mezzotint doctor --build && python benchmarks/attention.py [--threads 2] [--rounds 7]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/attention-THREADS.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.kernels import native

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # b, l, n, heads, d
    "SD 1 64², itself": (2, 4096, 4096, 8, 40),
    "SD 2 64², XL 64², itself": (2, 4096, 4096, 10, 64),
    "SD 1 32², itself": (2, 1024, 1024, 8, 80),
    "SD 1 16², itself": (2, 256, 256, 8, 160),
    "SD 1 64², text": (2, 4096, 77, 8, 40),
    "autoencoder 64²": (1, 4096, 4096, 1, 512),
}
SAMPLE = 256  # queries whose result is compared


def torch_(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own, of the same strided slices."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def by_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both products by oneDNN."""
    return torch.ops.mezzotint.attention_by_tiles(q, k, v, q.shape[-1] ** -0.5)


CONTENDERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "compiled": native.attention,
    "by tiles": by_tiles,
    "torch": torch_,
}


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
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not native.available():
        raise SystemExit("the compiled kernels are not built: mezzotint doctor --build")
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, (b, l, n, heads, d) in SHAPES.items():  # noqa: E741
        fused = torch.randn(b, max(l, n), 3, heads, d, generator=generator).bfloat16()
        q, k, v = fused.unbind(2)
        q, k, v = q[:, :l], k[:, :n], v[:, :n]
        expected = torch_(q[:, :SAMPLE].double(), k.double(), v.double())
        errors = {
            kind: float((run(q, k, v)[:, :SAMPLE].double() - expected).norm() / expected.norm())
            for kind, run in CONTENDERS.items()
        }
        square = torch.randn(1024, 1024, generator=generator).bfloat16()
        times: dict[str, list[float]] = {kind: [] for kind in (*CONTENDERS, "product")}
        for _ in range(asked.rounds):
            runs: list[tuple[str, Callable[[], object]]] = [
                (kind, partial(run, q, k, v)) for kind, run in CONTENDERS.items()
            ]
            runs.append(("product", partial(torch.matmul, square, square)))
            random.shuffle(runs)
            for kind, run in runs:
                times[kind].append(timed(run))
        ratios = [slow / fast for slow, fast in zip(times["torch"], times["compiled"], strict=True)]
        rate = 4 * b * l * n * heads * d / statistics.median(times["compiled"])
        peak = 2 * 1024**3 / statistics.median(times["product"])
        rows.append(
            {
                "shape": name,
                "b l n heads d": [b, l, n, heads, d],
                "times faster than torch": {
                    "median": statistics.median(ratios),
                    "smallest": min(ratios),
                    "largest": max(ratios),
                },
                "milliseconds": {kind: 1e3 * statistics.median(values) for kind, values in times.items()},
                "share of the matrix product's rate": rate / peak,
                "error": errors,
            }
        )
        print(
            f"{name:26} {statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times torch; ", end=""
        )
        print(", ".join(f"{kind} {1e3 * statistics.median(values):.2f} ms" for kind, values in times.items()))
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
    (RESULTS / f"attention-{asked.threads}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
