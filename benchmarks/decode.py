"""How fast and in how much memory the autoencoder decodes, in bands against all at once.

Measures, at 512 and 1024 pixels: seconds of a decode in bands (this package), by this package's own modules, and by
diffusers in bfloat16 in both memory layouts, in one process with the same seeded random weights, in random order within
a round; medians of the ratios of one round, smallest and largest; the difference of each from float32.
Measures, at 512 pixels: of every kind of convolution the seconds, with what normalises and measures its maps; the rate
of the products that are done, and of those that its definition has; beside the best rate of a packed product.
Measures, in a fresh process each: the most anonymous memory (RssAnon, sampled every 20 ms) beyond what there was before
the decode, and how far the picture is from that of the same case decoded whole, where there is one.
What would make the numbers lie: other work (load is recorded); a scratch folder in memory (its kind is recorded).

    mezzotint doctor --build && python benchmarks/decode.py [--threads 2] [--rounds 3] [--parts speed,layers,memory]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/decode.json.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.autoencoder import BandedAutoencoder, Bands
from mezzotint.kernels.choices import NATIVE, PACKED, KernelSet
from mezzotint.kernels.convolution import Winograd
from mezzotint.kernels.map import Map
from mezzotint.kernels.packed import PackedLinear, Weights
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from mezzotint.storage import cache_folder

RESULTS = Path(__file__).parent / "results" / "decode.json"


def ours(dtype: torch.dtype) -> AutoencoderKL:
    """Stable Diffusion 1's autoencoder with random weights that keep activations at unit size."""
    generator = torch.Generator().manual_seed(0)
    network = AutoencoderKL(VAEConfig()).eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return network.to(dtype)


def theirs() -> Any:
    """diffusers' autoencoder with the same weights, bfloat16."""
    from diffusers import AutoencoderKL as Theirs

    from mezzotint.checkpoints.diffusers import vae_map
    from mezzotint.checkpoints.translate import invert

    state = invert(vae_map(VAEConfig()), ours(torch.float32).state_dict())
    network = Theirs(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    network.load_state_dict(state)
    return network.to(torch.bfloat16).eval().requires_grad_(False)


def kernels() -> KernelSet:
    """Compiled ones if they are built."""
    return NATIVE if native.available() else PACKED


def latent(side: int) -> Tensor:
    """A random one for a square picture of this side."""
    return torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(1))


def distance(image: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((image.float() - expected).norm() / expected.norm())


@torch.inference_mode()
def speed(side: int, rounds: int) -> dict[str, Any]:
    """The contenders at one size, bfloat16."""
    z = latent(side)
    exact = BandedAutoencoder(ours(torch.float32), kernels()).decode(z)
    network = ours(torch.bfloat16)
    banded = BandedAutoencoder(network, kernels())
    without = BandedAutoencoder(network, PACKED)
    reference = theirs()
    last = theirs().to(memory_format=torch.channels_last)
    unscaled = (z / network.config.scaling).bfloat16()
    runs: dict[str, Callable[[], Tensor]] = {
        "bands": lambda: banded.decode(z),
        "bands, no compiler": lambda: without.decode(z),
        "own modules": lambda: network.decode(z.bfloat16()),
        "diffusers contiguous": lambda: reference.decode(unscaled).sample,
        "diffusers channels_last": lambda: last.decode(unscaled.to(memory_format=torch.channels_last)).sample,
    }
    differences = {name: distance(run(), exact) for name, run in runs.items()}  # also the warm-up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in random.sample(list(runs.items()), len(runs)):
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    best = [min(pair) for pair in zip(times["diffusers contiguous"], times["diffusers channels_last"], strict=True)]
    ratios = [slow / fast for slow, fast in zip(best, times["bands"], strict=True)]
    return {
        "side": side,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "times faster than diffusers' better layout": {
            "median": statistics.median(ratios),
            "smallest": min(ratios),
            "largest": max(ratios),
        },
        "difference from float32": differences,
        "rounds": rounds,
    }


class Timed(BandedAutoencoder):
    """Notes the seconds and the operations of every convolution to a map."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layers: dict[str, list[float]] = {}  # seconds, T operations as defined and as done, how often

    def _convolved(self, x: Map, conv: nn.Conv2d, out: Map, *rest: Any, **options: Any) -> Bands[None]:
        begun = time.perf_counter()
        yield from super()._convolved(x, conv, out, *rest, **options)
        seconds = time.perf_counter() - begun
        _, channels, rows, columns = out.data.shape
        side = conv.kernel_size[0]
        is_doubled = rows > x.rows
        defined = 2e-12 * channels * rows * columns * conv.in_channels * side**2
        is_compiled = isinstance(self._convolutions[id(conv)], Winograd)
        share = (9 if is_compiled else 16) / 36 if is_doubled else 16 / 36 if is_compiled else 1
        name = f"{side}x{side} {conv.in_channels} to {channels} at {rows}{', doubled' if is_doubled else ''}"
        noted = self.layers.setdefault(name, [0.0] * 4)
        self.layers[name] = [a + b for a, b in zip(noted, (seconds, defined, share * defined, 1), strict=True)]


@torch.inference_mode()
def layers(rounds: int) -> dict[str, Any]:
    """The least of each over some decodes at 512 pixels, and what all of it takes."""
    a, b = (torch.randn(8192, 1280).bfloat16() for _ in range(2))
    product = PackedLinear(lambda: Weights(b[:1280], None), [])
    z, network, least, whole, best = (
        latent(512),
        ours(torch.bfloat16),
        dict[str, list[float]](),
        float("inf"),
        float("inf"),
    )
    for _ in range(rounds + 1):
        banded = Timed(network, kernels())
        banded.decode(latent(64))
        banded.layers.clear()
        begun = time.perf_counter()
        banded.decode(z)
        whole = min(whole, time.perf_counter() - begun)
        for name, noted in banded.layers.items():
            least[name] = min(noted, least.get(name, noted))
        for _ in range(8):
            begun = time.perf_counter()
            product(a)
            best = min(best, time.perf_counter() - begun)
    rows = {
        name: {"count": count, "seconds": seconds, "T/s as defined": defined / seconds, "T/s as done": done / seconds}
        for name, (seconds, defined, done, count) in least.items()
    }
    return {
        "layers": rows,
        "seconds": whole,
        "seconds outside these": whole - sum(row["seconds"] for row in rows.values()),
        "T as defined": sum(defined for _, defined, _, _ in least.values()),
        "T as done": sum(done for _, _, done, _ in least.values()),
        "T/s of a packed product": 2e-12 * 8192 * 1280 * 1280 / best,
    }


def anonymous() -> int:
    """Bytes of this process's memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@torch.inference_mode()
def memory(side: int, dtype: str, how: str, keep: Path) -> dict[str, Any]:
    """One decode in this process, which should be fresh; packing the weights is not counted.

    `how`: "bands", large maps in files; "memory", all maps in memory; "whole", by the modules themselves.
    """
    network = ours(getattr(torch, dtype))
    banded = BandedAutoencoder(network, kernels())
    if how == "memory":
        banded.max_bytes = 2**63
    run: Callable[[Tensor], Tensor] = banded.decode
    if how == "whole":
        run = lambda z: network.decode(z.to(network.decoder.conv_in.weight.dtype))  # noqa: E731
    run(latent(64))
    before, most, is_over = anonymous(), 0, False

    def watch() -> None:
        nonlocal most
        while not is_over:
            most = max(most, anonymous())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    image = run(latent(side))
    seconds = time.perf_counter() - begun
    is_over = True
    watcher.join()
    torch.save(image, keep)
    return {
        "side": side,
        "dtype": dtype,
        "how": how,
        "seconds": seconds,
        "anonymous bytes beyond weights": most - before,
    }


def fresh(case: str, folder: Path) -> dict[str, Any]:
    """`memory` in a fresh process, and the difference from a whole decode that went before."""
    command = [sys.executable, __file__, "--case", *case.split(), str(folder / f"{case}.pt")]
    command += ["--threads", str(torch.get_num_threads())]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    whole = folder / f"{case.rpartition(' ')[0]} whole.pt"
    if not case.endswith("whole") and whole.exists():
        row["difference from whole"] = distance(torch.load(folder / f"{case}.pt"), torch.load(whole).float())
    return row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", default="speed,layers,memory")
    parser.add_argument("--sides", default="512")
    parser.add_argument(
        "--cases", default="1024 float32 whole,1024 float32 bands,2048 bfloat16 memory,2048 bfloat16 bands"
    )
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.case:
        print(json.dumps(memory(int(asked.case[0]), asked.case[1], asked.case[2], Path(asked.case[3]))))
        return
    report: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    report["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "instructions": sorted(native.instructions()),
        "torch": torch.__version__,
        "threads": asked.threads,
        "load": os.getloadavg()[0],
        "scratch": subprocess.run(
            ["stat", "-f", "-c", "%T", str(cache_folder().parent)], capture_output=True, text=True, check=False
        ).stdout.strip(),
    }
    if "speed" in asked.parts:
        for side in map(int, asked.sides.split(",")):
            report[f"speed {side}"] = row = speed(side, asked.rounds)
            print(json.dumps(row))
    if "layers" in asked.parts:
        report["layers 512"] = row = layers(asked.rounds)
        print(json.dumps(row))
    if "memory" in asked.parts:
        with tempfile.TemporaryDirectory() as folder:
            for case in asked.cases.split(","):
                report[f"memory {case}"] = row = fresh(case, Path(folder))
                print(json.dumps(row), flush=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
