"""How fast attention is in bfloat16, by the compiled kernel and by torch, at the shapes of the family, and trained.

Measures, at each shape: seconds of one call, contenders one after the other in random order within a round, the median
over rounds of the ratio of two times of one round, with the smallest and the largest; the error of each against float64
on part of the rows; clock-free: the rate of the compiled kernel against that of torch's matrix product in the same run.
`by tiles` is what runs on processors with AMX; elsewhere oneDNN does its products without tiles. Then forward and
backward together, at those shapes and at the ones that the icon model trains on; where positions are few also written
out as two products, which keeps the scores for the gradient and is what training does where nothing is compiled. The
error is then that of the worst of three gradients, of the first head.
What would make the numbers lie: other work (load is recorded), one library's threads still spinning when the next
starts (each contender is called twice, the second call counts).

    mezzotint doctor --build && python benchmarks/attention.py [--threads 2] [--rounds 7]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/attention-THREADS.json.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import begun, error, faster, milliseconds, report, turns

from mezzotint.kernels import native
from mezzotint.kernels.gradients import attention
from mezzotint.training.precision import SHORT, explicit_attention

SHAPES = {  # b, l, n, heads, d
    "SD 1 64², itself": (2, 4096, 4096, 8, 40),
    "SD 2 64², XL 64², itself": (2, 4096, 4096, 10, 64),
    "SD 1 32², itself": (2, 1024, 1024, 8, 80),
    "SD 1 16², itself": (2, 256, 256, 8, 160),
    "SD 1 64², text": (2, 4096, 77, 8, 40),
    "autoencoder 64²": (1, 4096, 4096, 1, 512),
}
TRAINED = {
    **SHAPES,
    "icons 8², itself": (64, 64, 64, 6, 32),
    "icons 8², text": (64, 64, 77, 6, 32),
    "icons 4², itself": (64, 16, 16, 5, 48),
    "icons 4², text": (64, 16, 77, 5, 48),
}
SAMPLE = 256  # queries whose result is compared


def torch_(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's own, of the same strided slices."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def by_tiles(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Both products by oneDNN."""
    return torch.ops.mezzotint.attention_by_tiles(q, k, v, q.shape[-1] ** -0.5)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two products, as training does it where nothing is compiled."""
    return explicit_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


CONTENDERS = {"compiled": native.attention, "by tiles": by_tiles, "torch": torch_}
LEARNERS = {"compiled": attention, "torch": torch_, "written out": written_out}


def drawn(shape: tuple[int, int, int, int, int], generator: torch.Generator) -> list[Tensor]:
    """Queries, keys and values as slices of one fused product."""
    b, l, n, heads, d = shape  # noqa: E741
    fused = torch.randn(b, max(l, n), 3, heads, d, generator=generator).bfloat16()
    q, k, v = fused.unbind(2)
    return [q[:, :l], k[:, :n], v[:, :n]]


def learnt(run: Callable[..., Tensor], parts: list[Tensor], above: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: the gradients."""
    own = [part.detach().requires_grad_() for part in parts]
    return torch.autograd.grad(run(*own), own, above.to(own[0].dtype))


def affordable(times: dict[str, list[float]]) -> float:
    """Operations of torch's matrix product in the time that the compiled kernel takes."""
    return 2 * 1024**3 * statistics.median(times["compiled"]) / statistics.median(times["product"])


def main() -> None:
    """Measure, print, write."""
    asked = begun(__doc__, rounds=7)
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(1024, 1024, generator=generator).bfloat16()
    product = partial(torch.matmul, square, square)
    rows: list[dict[str, Any]] = []
    for name, shape in SHAPES.items():
        q, k, v = drawn(shape, generator)
        expected = torch_(q[:, :SAMPLE].double(), k.double(), v.double())
        runs = {kind: partial(run, q, k, v) for kind, run in CONTENDERS.items()}
        times = turns({**runs, "product": product}, asked.rounds)
        rows.append(
            {
                "shape": name,
                "b l n heads d": shape,
                "times faster than torch": faster(times["torch"], times["compiled"]),
                "milliseconds": milliseconds(times),
                "share of the matrix product's rate": 4 * math.prod(shape) / affordable(times),
                "error": {kind: error(run()[:, :SAMPLE], expected) for kind, run in runs.items()},
            }
        )
        print(name, rows[-1]["times faster than torch"])
    for name, shape in TRAINED.items():
        parts = drawn(shape, generator)
        above = torch.randn(parts[0].shape, generator=generator).bfloat16()
        expected = learnt(torch_, [part[:1, :, :1].double() for part in parts], above[:1, :, :1])
        is_short = max(shape[1:3]) <= SHORT
        learners = {kind: run for kind, run in LEARNERS.items() if kind != "written out" or is_short}
        steps = {kind: partial(learnt, run, parts, above) for kind, run in learners.items()}
        times = turns({**steps, "product": product}, asked.rounds)
        others = {f"times faster than {kind}": faster(times[kind], times["compiled"]) for kind in list(steps)[1:]}
        rows.append(
            {
                "shape": f"{name}, forward and backward",
                "b l n heads d": shape,
                **others,
                "milliseconds": milliseconds(times),
                "share of the matrix product's rate": 14 * math.prod(shape) / affordable(times),
                "error": {
                    kind: max(error(a[:1, :, :1], b) for a, b in zip(run(), expected, strict=True))
                    for kind, run in steps.items()
                },
            }
        )
        print(rows[-1]["shape"], others)
    report("attention", asked, rows)


if __name__ == "__main__":
    main()
