"""What this processor reaches in the operations that a U-Net and an autoencoder are made of.

Measures, in bfloat16 and float32: matrix products as torch runs them and with weights packed once for oneDNN, 3x3
convolutions channels last (torch's own call packs the weights every time) against packed ones, both as products of
bytes (w8a8, with the rounding of the input), torch's attention in
cycles per score, GroupNorm with SiLU in both layouts against the time that memory needs for two passes, and copying.
Median of the calls that fit into a short time after one warm-up.
What would make the numbers lie: another busy process (see load), a processor that changes its clock, two logical
processors of one core counted as two.

    python benchmarks/cpu_rates.py [--threads 2] [--clock-ghz 2.6]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/cpu_rates-THREADS.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from mezzotint.kernels.int8 import W8A8Convolution, W8A8Linear
from mezzotint.kernels.packed import Weights

RESULTS = Path(__file__).parent / "results"
PATIENCE_S = 0.25
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LINEAR = [
    (8192, 320, 2560),
    (8192, 320, 320),
    (2048, 640, 5120),
    (2048, 1280, 640),
    (512, 1280, 10240),
    (154, 768, 320),
]
CONV = [(2, 320, 320, 64), (2, 640, 640, 32), (2, 1280, 1280, 16), (2, 1280, 1280, 8), (2, 960, 320, 64)]
CONV += [(1, 512, 512, 64), (1, 128, 128, 512)]
ATTENTION = [(2, 8, 4096, 40), (2, 10, 4096, 64), (2, 8, 1024, 80), (2, 8, 256, 160), (1, 1, 4096, 512)]
NORM = [(2, 320, 64), (1, 128, 512)]


def seconds(call: Callable[[], object]) -> float:
    """Median of the calls that fit into PATIENCE_S, at least 3, after one that does not count."""
    call()
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < 3 or time.perf_counter() - begun < PATIENCE_S:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def matrix_product(n: int, dtype: torch.dtype) -> float:
    """T/s of a square product."""
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n**3 / seconds(lambda: a @ b) / 1e12


def linear(m: int, k: int, n: int, dtype: torch.dtype) -> dict[str, float]:
    """T/s of `F.linear`, of the packed call and of bytes."""
    x, w, bias = torch.randn(1, m, k).to(dtype), torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(w, m)
    work = 2 * m * k * n / 1e12
    rounded = W8A8Linear(lambda: Weights(w, bias), [])
    return {
        "w8a8": work / seconds(lambda: rounded(x)),
        "eager": work / seconds(lambda: F.linear(x, w, bias)),
        "packed": work / seconds(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")),
    }


def convolution(b: int, c: int, o: int, side: int, dtype: torch.dtype) -> dict[str, float]:
    """T/s of a 3x3 convolution, channels last."""
    x = torch.randn(b, c, side, side).to(dtype, memory_format=torch.channels_last)
    w, bias = torch.randn(o, c, 3, 3).to(dtype, memory_format=torch.channels_last), torch.randn(o).to(dtype)
    ones = [1, 1]
    packed = torch.ops.mkldnn._reorder_convolution_weight(w, ones, ones, ones, 1, list(x.shape))
    work = 2 * b * c * o * 9 * side * side / 1e12
    rounded = W8A8Convolution(lambda: Weights(w, bias), [], (1, 1), (1, 1))
    return {
        "w8a8": work / seconds(lambda: rounded(x)),
        "eager": work / seconds(lambda: F.conv2d(x, w, bias, padding=1)),
        "packed": work
        / seconds(
            lambda: torch.ops.mkldnn._convolution_pointwise(x, packed, bias, ones, ones, ones, 1, "none", [], "")
        ),
    }


def attention(b: int, heads: int, positions: int, d: int, dtype: torch.dtype, clock: float) -> dict[str, float]:
    """Milliseconds, and clock cycles per score and core."""
    q, k, v = (torch.randn(b, positions, heads, d).to(dtype).transpose(1, 2) for _ in range(3))
    taken = seconds(lambda: F.scaled_dot_product_attention(q, k, v))
    return {"ms": taken * 1e3, "cycles": taken * clock * 1e9 * torch.get_num_threads() / (b * heads * positions**2)}


def norm(b: int, c: int, side: int, dtype: torch.dtype, copied: float) -> dict[str, float]:
    """Milliseconds of GroupNorm and SiLU; `floor` is reading twice and writing once at the rate of a copy."""
    x = torch.randn(b, c, side, side).to(dtype)
    last = x.to(memory_format=torch.channels_last)
    scale, shift = torch.ones(c).to(dtype), torch.zeros(c).to(dtype)
    return {
        "contiguous": 1e3 * seconds(lambda: F.silu(F.group_norm(x, 32, scale, shift))),
        "channels_last": 1e3 * seconds(lambda: F.silu(F.group_norm(last, 32, scale, shift))),
        "floor": 1e3 * 3 * x.numel() * x.element_size() / (copied * 1e9),
    }


@torch.no_grad()
def measure(clock: float) -> dict[str, object]:
    """All of it with the threads that torch has now."""
    source = torch.randn(2**26)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source)) / 1e9
    rows: dict[str, object] = {"copy GB/s": copied}
    for name, dtype in DTYPES.items():
        rows[f"matmul 4096 {name} T/s"] = matrix_product(4096, dtype)
        for shape in LINEAR:
            rows[f"linear {shape} {name} T/s"] = linear(*shape, dtype)
        for shape in CONV:
            rows[f"conv3x3 {shape} {name} T/s"] = convolution(*shape, dtype)
        for shape in ATTENTION:
            rows[f"attention {shape} {name}"] = attention(*shape, dtype, clock)
        for shape in NORM:
            rows[f"GroupNorm SiLU {shape} {name} ms"] = norm(*shape, dtype, copied)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock-ghz", type=float, default=2.6, help="of one core; only for cycles")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    table: dict[str, object] = {
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": asked.threads,
        "clock_ghz": asked.clock_ghz,
        "rows": measure(asked.clock_ghz),
        "load": os.getloadavg()[0],
    }
    text = json.dumps(table, default=float, indent=1)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_rates-{asked.threads}.json").write_text(text + "\n")
    for name, row in table["rows"].items():  # type: ignore[attr-defined]  # the dict above
        print(name, {k: round(v, 3) for k, v in row.items()} if isinstance(row, dict) else round(row, 3))
    print(json.dumps(table))


if __name__ == "__main__":
    main()
