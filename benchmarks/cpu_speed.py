"""How fast a U-Net step, a decode and a whole picture are here, against diffusers at its best settings on processors.

Contenders run one at a time in processes of their own, in random order in every round, with the same weights (a folder
of seeded random SD 1.5 weights at full size), the same text embeddings, the same latent and the same sigmas. Before
anything is timed, the output of each is compared with diffusers' in float32. A claim is the median over rounds of the
ratio of two times of one round, with the smallest and the largest; the times themselves say little on a busy machine.
There, with one thread, the seconds that the processor spent are the better measure: they are reported beside.
What would make the numbers lie: other work (load and stolen time are recorded), a cold page cache (there is a warm-up),
a contender at a weak setting (diffusers bfloat16 runs channels last with fused projections).
Not measured here: pictures worth looking at. Random weights make none.

    python benchmarks/cpu_speed.py [--threads 2] [--rounds 5] [--parts unet,decode,picture] [--steps 20] [--size 512]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/cpu_speed-THREADS.json.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
CONTENDERS = {
    "diffusers float32": ("diffusers", "float32", {}),
    "diffusers bfloat16": ("diffusers", "bfloat16", {}),
    "ours float32": ("ours", "float32", {}),
    "ours": ("ours", "bfloat16", {}),
    "ours, no compiler": ("ours", "bfloat16", {"MEZZOTINT_KERNELS": "packed"}),
    "ours, plain": ("ours", "bfloat16", {"MEZZOTINT_KERNELS": "torch"}),
}
REFERENCE = "diffusers float32"
LIMITS = {"float32": 2e-5, "bfloat16": 3e-2}  # relative difference of the output from the reference's


class Diffusers:
    """diffusers as its own guides set it up for processors."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch
        from diffusers import StableDiffusionPipeline

        self.torch, self.dtype = torch, getattr(torch, dtype)
        self.pipe = StableDiffusionPipeline.from_pretrained(str(folder), dtype=self.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        if dtype == "bfloat16":
            self.pipe.unet.to(memory_format=torch.channels_last)
            self.pipe.vae.to(memory_format=torch.channels_last)
            self.pipe.fuse_qkv_projections()

    def unet(self, x: Any, t: float, context: Any) -> Any:
        """The U-Net's output for two rows."""
        x, context = x.to(self.dtype), context.to(self.dtype)
        return self.pipe.unet(x, t, encoder_hidden_states=context, return_dict=False)[0].float()

    def decode(self, latent: Any) -> Any:
        """The image of a latent."""
        vae = self.pipe.vae
        return vae.decode(latent.to(self.dtype) / vae.config.scaling_factor, return_dict=False)[0].float()

    def picture(self, steps: int, size: int) -> Any:
        """From a prompt to pixels."""
        generator = self.torch.Generator("cpu").manual_seed(0)
        return self.pipe(
            "a red fox", num_inference_steps=steps, guidance_scale=7.5, height=size, width=size, generator=generator
        ).images[0]


class Ours:
    """This package as it is, or with kernels forced by MEZZOTINT_KERNELS."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import torch

        import mezzotint
        from mezzotint.models.unet import Conditioning

        self.torch, self.dtype, self.conditioning = torch, getattr(torch, dtype), Conditioning
        self.mezzotint, self.system = mezzotint, mezzotint.load(folder, dtype=dtype)
        self.prepared: Any = None

    def unet(self, x: Any, t: float, context: Any) -> Any:
        """The U-Net's output for two rows; what depends on the prompt alone was computed before, as in a picture."""
        network = self.system.network.run
        if self.prepared is None:
            self.prepared = network.prepare(self.conditioning(context.to(self.dtype)))
        return network(x.to(self.dtype), self.torch.full((len(x),), t), self.prepared).float()

    def decode(self, latent: Any) -> Any:
        """The image of a latent."""
        return self.system.decode(latent)

    def picture(self, steps: int, size: int) -> Any:
        """From a prompt to pixels."""
        options = {"steps": steps, "guidance": 7.5, "width": size, "height": size, "seed": 0}
        return self.mezzotint.generate(self.system, prompt="a red fox", **options).images[0]


def work(kind: str, folder: Path, dtype: str, threads: int, size: int) -> None:
    """A contender: reads the name of a part from stdin, runs it, answers with seconds; `save NAME` keeps its output."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(1)
    side = size // 8
    x = torch.randn(1, 4, side, side, generator=generator).repeat(2, 1, 1, 1)
    context = torch.randn(2, 77, 768, generator=generator)
    latent = torch.randn(1, 4, side, side, generator=generator)
    with torch.inference_mode():
        contender = (Diffusers if kind == "diffusers" else Ours)(folder, dtype)
        print("ready", flush=True)
        for line in sys.stdin:
            part, _, argument = line.strip().partition(" ")
            begun, spent = time.perf_counter(), time.process_time()
            if part == "unet":
                output: Any = contender.unet(x, 500.0, context)
            elif part == "decode":
                output = contender.decode(latent)
            elif part == "picture":
                output = contender.picture(int(argument), size)
            else:
                np.save(argument, np.asarray(output, dtype=np.float32))
            print(time.perf_counter() - begun, time.process_time() - spent, flush=True)


class Worker:
    """A contender in a process of its own."""

    def __init__(self, name: str, folder: Path, threads: int, size: int) -> None:
        kind, dtype, variables = CONTENDERS[name]
        command = [sys.executable, __file__, "--work", kind, dtype, str(folder)]
        command += ["--threads", str(threads), "--size", str(size)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.answer()

    def answer(self) -> str:
        """The next line that it writes, skipping what is no answer."""
        while line := self.process.stdout.readline():
            if line.strip() == "ready" or line[0].isdigit():
                return line.strip()
        raise RuntimeError("a contender ended; run its --work command by hand to see why")

    def ask(self, what: str) -> tuple[float, float]:
        """Seconds that this took, on the wall and of processors."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        wall, spent = self.answer().split()
        return float(wall), float(spent)

    def peak_gib(self) -> float:
        """Most memory that it ever had resident."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return round(int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 2**20, 2)

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


def stolen() -> int:
    """Ticks that the host took away from this machine so far."""
    return int(Path("/proc/stat").read_text().split()[8])


def compared(workers: dict[str, Worker], part: str, folder: Path) -> dict[str, float]:
    """Relative difference of each contender's output from the reference's. Raises: AssertionError beyond its limit."""
    import numpy as np

    outputs: dict[str, Any] = {}
    for name, worker in workers.items():
        worker.ask(part)
        worker.ask(f"save {folder / 'output.npy'}")
        outputs[name] = np.load(folder / "output.npy")
    exact = outputs[REFERENCE]
    scale = math.sqrt(float((exact**2).mean()))
    differences = {name: math.sqrt(float(((own - exact) ** 2).mean())) / scale for name, own in outputs.items()}
    for name, difference in differences.items():
        limit = LIMITS[CONTENDERS[name][1]]
        assert difference <= limit, f"{name}: {part} differs by {difference:.1e} from {REFERENCE}, limit {limit}"
    return differences


def main() -> None:
    """Start the contenders, compare what they compute, let them take turns, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="unet,decode")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--contenders", default=",".join(CONTENDERS).replace(", ", "; "))
    parser.add_argument("--weights", type=Path, help="a folder with SD 1.5 weights; default: random ones")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        kind, dtype, folder = asked.work
        work(kind, Path(folder), dtype, asked.threads, asked.size)
        return
    names = [name.replace("; ", ", ") for name in asked.contenders.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.weights or Path(temporary) / "sd15"
        if not folder.exists():
            sys.path.insert(0, str(Path(__file__).parent))
            from full_size import build

            build("sd15", folder)
        workers = {name: Worker(name, folder, asked.threads, asked.size) for name in names}
        table: dict[str, Any] = {
            "platform": platform.platform(),
            "threads": asked.threads,
            "rounds": asked.rounds,
            "size": asked.size,
            "steps": asked.steps,
            "parts": {},
        }
        before, begun = stolen(), time.time()
        for part in asked.parts.split(","):
            table["parts"][part] = measured(workers, part, asked.rounds, asked.steps, Path(temporary))
            print(part, json.dumps(table["parts"][part], indent=1), file=sys.stderr, flush=True)
        table["peak_gib"] = {name: worker.peak_gib() for name, worker in workers.items()}
        table["load"] = os.getloadavg()[0]
        table["stolen_share"] = (stolen() - before) / 100 / (time.time() - begun) / (os.cpu_count() or 1)
        for worker in workers.values():
            worker.close()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_speed-{asked.threads}.json").write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))


def measured(workers: dict[str, Worker], part: str, rounds: int, steps: int, folder: Path) -> dict[str, Any]:
    """Times by contender and round, and how often faster than each diffusers the others are."""
    differences = {} if part == "picture" else compared(workers, part, folder)
    if part == "picture":
        for worker in workers.values():
            worker.ask("picture 1")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    order = list(workers)
    for number in range(rounds):
        random.Random(number).shuffle(order)
        for name in order:
            times[name].append(workers[name].ask(f"picture {steps}" if part == "picture" else part))
    table: dict[str, Any] = {"differences": differences}
    for kind, place in (("wall", 0), ("processor", 1)):
        found = {name: [both[place] for both in rounds_of] for name, rounds_of in times.items()}
        table[kind] = {
            "median_s": {name: round(statistics.median(values), 3) for name, values in found.items()},
            "least_s": {name: round(min(values), 3) for name, values in found.items()},
            "ratios": {
                f"{name} / {own}": [round(value, 2) for value in (statistics.median(each), min(each), max(each))]
                for name in workers
                if name.startswith("diffusers")
                for own in workers
                if not own.startswith("diffusers")
                for each in [[a / b for a, b in zip(found[name], found[own], strict=True)]]
            },
        }
    return table


if __name__ == "__main__":
    main()
