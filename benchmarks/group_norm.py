"""How fast GroupNorm and SiLU are on channels_last maps in bfloat16, compiled and by torch.

Measures, at each shape: seconds of one call, contenders in random order within a round, the median over rounds of the
ratio of two times of one round, with the smallest and the largest; the error of each against float64. `in place` writes
into memory that exists, as the autoencoder does: at 67 MB a large part of every other time is the system handing out
pages.
What would make the numbers lie: other work (load is recorded).

    mezzotint doctor --build && python benchmarks/group_norm.py [--threads 2] [--rounds 15]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/group_norm-THREADS.json.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from turns import begun, error, faster, milliseconds, report, turns

from mezzotint.kernels import native

SHAPES = {"SD 1 320@64²": (2, 320, 64), "SD 1 2560@8²": (2, 2560, 8), "autoencoder 128@512²": (1, 128, 512)}


def main() -> None:
    """Measure, print, write."""
    asked = begun(__doc__, rounds=15)
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
        times = turns(runs, asked.rounds)
        best = [min(pair) for pair in zip(times["torch channels_last"], times["torch contiguous"], strict=True)]
        rows.append(
            {
                "shape": name,
                "b c side": [b, c, side],
                "times faster than torch's better layout": {
                    kind: faster(best, times[kind]) for kind in ("compiled", "in place")
                },
                "milliseconds": milliseconds(times),
                "error": {kind: error(run(), expected) for kind, run in runs.items()},
            }
        )
        print(name, rows[-1]["times faster than torch's better layout"])
    report("group_norm", asked, rows)


if __name__ == "__main__":
    main()
