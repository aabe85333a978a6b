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

import statistics
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import begun, error, faster, milliseconds, report, turns

from mezzotint.kernels import native

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


CONTENDERS = {"compiled": native.attention, "by tiles": by_tiles, "torch": torch_}


def main() -> None:
    """Measure, print, write."""
    asked = begun(__doc__, rounds=7)
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(1024, 1024, generator=generator).bfloat16()
    rows: list[dict[str, Any]] = []
    for name, (b, l, n, heads, d) in SHAPES.items():  # noqa: E741
        fused = torch.randn(b, max(l, n), 3, heads, d, generator=generator).bfloat16()
        q, k, v = fused.unbind(2)
        q, k, v = q[:, :l], k[:, :n], v[:, :n]
        expected = torch_(q[:, :SAMPLE].double(), k.double(), v.double())
        runs = {kind: partial(run, q, k, v) for kind, run in CONTENDERS.items()}
        times = turns({**runs, "product": partial(torch.matmul, square, square)}, asked.rounds)
        rate = 4 * b * l * n * heads * d / statistics.median(times["compiled"])
        peak = 2 * 1024**3 / statistics.median(times["product"])
        rows.append(
            {
                "shape": name,
                "b l n heads d": [b, l, n, heads, d],
                "times faster than torch": faster(times["torch"], times["compiled"]),
                "milliseconds": milliseconds(times),
                "share of the matrix product's rate": rate / peak,
                "error": {kind: error(run()[:, :SAMPLE], expected) for kind, run in runs.items()},
            }
        )
        print(name, rows[-1]["times faster than torch"])
    report("attention", asked, rows)


if __name__ == "__main__":
    main()
