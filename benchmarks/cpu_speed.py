"""How fast a U-Net step, a decode and a whole picture are here, against every other program that runs on processors.

Contenders (benchmarks/contenders.py says what each is) run one at a time in processes of their own, in random order in
every round, with the same weights (seeded random ones at full size), text, latents and sigmas. Before anything is
timed, the output of each is compared with that of diffusers in float32. A claim is the median over rounds of the ratio
of two times of one round, with the smallest and the largest; the times themselves say little on a busy machine. There,
with one thread, the seconds that the processor spent are the better measure: they are reported beside.

Parts: `unet`, one guided step; `decode`; `picture`, from a prompt to a PNG; `cold`, from the start of a process to the
start of the first step beyond a bare `import torch`, and to the PNG of a picture of one step, page cache warm.
Utilisation is the rate of operations over the best rate that a product or a convolution reaches in the same run.
What would make the numbers lie: other work (load and stolen time are recorded), a cold page cache (there is a warm-up),
a contender at a weak setting. Not measured here: pictures worth looking at. Random weights make none.

    python benchmarks/cpu_speed.py [--preset sd15] [--parts unet,decode,picture,cold] [--contenders "ours,diffusers …"]
        [--threads 2] [--rounds 5] [--pictures 2] [--steps 20] [--size 512] [--batch 1] [--isa avx2]
        [--weights FOLDER] [--name NAME]
        [--openvino ENVIRONMENT] [--sdcpp ENVIRONMENT]        (made by benchmarks/peers/openvino.sh and sdcpp.sh)
    sh benchmarks/cpu_speed.sh TABLE …                        (what the documentation quotes)

Last line of stdout: the same as one JSON object; also written to benchmarks/results/cpu_speed-NAME.json.
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
from typing import Any, NamedTuple

import numpy as np
from contenders import SIZES
from resident import Resident

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PLAN = ("preset", "threads", "rounds", "pictures", "steps", "size", "batch", "isa")
CHECKED_STEPS = 2  # of the pictures that are compared
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


class Contender(NamedTuple):
    """A program and its setting."""

    kind: str
    dtype: str
    variables: tuple[tuple[str, str], ...] = ()
    flags: str = ""  # of stable-diffusion.cpp; our weights
    limit: float = 3e-2  # relative difference of the output from the reference's


CONTENDERS = {
    "diffusers float32": Contender("diffusers", "float32", limit=2e-5),
    "diffusers bfloat16": Contender("diffusers", "bfloat16"),
    "diffusers compiled": Contender("compiled", "bfloat16"),
    "OpenVINO": Contender("openvino", "bfloat16", limit=0.1),
    "stable-diffusion.cpp": Contender("sdcpp", "f16"),
    "ours float32": Contender("ours", "float32", limit=2e-5),
    "ours": Contender("ours", "bfloat16"),
    "ours w8a8": Contender("ours", "bfloat16", flags="w8a8", limit=0.1),
    "ours without compiler": Contender("ours", "bfloat16", (("MEZZOTINT_KERNELS", "packed"),)),
    "ours plain": Contender("ours", "bfloat16", (("MEZZOTINT_KERNELS", "torch"),)),
}
REFERENCE = "diffusers float32"
ENOUGH_DB = 60.0  # for a picture; less is asked of those that may differ more


class Worker:
    """A contender in a process of its own."""

    def __init__(self, name: str, asked: argparse.Namespace) -> None:
        self.kind, dtype, variables, flags, _ = CONTENDERS[name]
        home = {"openvino": asked.openvino, "sdcpp": asked.sdcpp}.get(self.kind)
        command = [home / "bin" / "python" if home else sys.executable, HERE / "contenders.py", self.kind, dtype]
        command += [asked.folder, "--preset", asked.preset, "--parts", ",".join(asked.parts), "--flags", flags]
        for option in ("threads", "size", "batch"):
            command += [f"--{option}", str(getattr(asked, option))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), **dict(variables)}
        environment |= AVX2 if asked.isa == "avx2" else {}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": None if asked.loud else -3}
        self.begins_s, self.begun = 0.0, time.perf_counter()
        self.process = subprocess.Popen([*map(str, command)], env=environment, text=True, **pipes)
        self.resident = Resident(self.process.pid)
        self.answer()

    def answer(self) -> dict[str, float]:
        """What it answers; what other programs print is skipped."""
        while line := self.process.stdout.readline():
            if line == "begins\n":
                self.begins_s = time.perf_counter() - self.begun
            elif line.startswith("{"):
                return json.loads(line)
            elif line == "ready\n":
                return {}
        raise RuntimeError(f"a contender ended ({self.kind}); --loud shows why")

    def ask(self, what: str) -> dict[str, float]:
        """Its answer to one command."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.answer()

    def output(self, what: str) -> np.ndarray:
        """What a part computes."""
        self.ask(what)
        with tempfile.TemporaryDirectory() as folder:
            self.ask(f"save {folder}/output.npy")
            return np.load(f"{folder}/output.npy")

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


def able(name: str, part: str) -> bool:
    """Whether a contender has this part."""
    return CONTENDERS[name].kind != "sdcpp" or part == "picture"


def expected(asked: argparse.Namespace) -> dict[str, np.ndarray]:
    """What diffusers computes in float32; it is kept beside the weights, because it takes a while."""
    kept = asked.folder / "expected"
    kept.mkdir(exist_ok=True)
    files = {part: kept / f"{part}-{asked.size}-{asked.batch}.npy" for part in asked.parts if part != "cold"}
    if missing := [part for part, file in files.items() if not file.exists()]:
        worker = Worker(REFERENCE, asked)
        for part in missing:
            np.save(files[part], worker.output(checked(part)))
        worker.close()
    return {part: np.load(file) for part, file in files.items()}


def checked(part: str) -> str:
    """The command whose output is compared."""
    return f"picture {CHECKED_STEPS}" if part == "picture" else part


def compared(name: str, part: str, own: np.ndarray, exact: np.ndarray) -> float:
    """dB of a picture, else the relative difference, to the reference. Raises: AssertionError beyond the limit."""
    limit, error = CONTENDERS[name].limit, math.sqrt(float(((own - exact) ** 2).mean()))
    if part == "picture":
        decibels, least = 20 * math.log10(255 / max(error, 1e-4)), min(ENOUGH_DB, -20 * math.log10(limit) - 2)
        assert decibels >= least, f"{name}: {decibels:.1f} dB to the picture of {REFERENCE}, least {least:.1f}"
        return round(decibels, 1)
    difference = error / math.sqrt(float((exact**2).mean()))
    assert difference <= limit, f"{name}: {part} differs by {difference:.1e} from {REFERENCE}, limit {limit}"
    return difference


def measured(workers: dict[str, Worker], part: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Times by contender over the rounds, and how many times faster ours is than each of the others."""
    command = f"picture {asked.steps}" if part == "picture" else part
    times: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for number in range(asked.pictures if part == "picture" else asked.rounds):
        for name in random.Random(number).sample(list(workers), len(workers)):
            times[name].append(workers[name].ask(command))
    return {
        kind: summary({name: [each[kind] for each in rounds] for name, rounds in times.items()})
        for kind in ("wall", "processor")
    }


def cold(names: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of a process, in as many processes as there are rounds."""
    first: dict[str, list[float]] = {name: [] for name in names}
    whole: dict[str, list[float]] = {name: [] for name in names}
    bare: list[float] = []
    for number in range(asked.rounds):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        bare.append(time.perf_counter() - begun)
        for name in random.Random(number).sample(names, len(names)):
            worker = Worker(name, asked)
            worker.ask("picture 1")
            whole[name].append(time.perf_counter() - worker.begun)
            first[name].append(worker.begins_s - bare[-1])
            worker.close()
    known = {name: values for name, values in first.items() if CONTENDERS[name].kind != "sdcpp"}
    return {
        "import torch": statistics.median(bare),
        "first step begins, beyond import torch": summary(known),
        "picture of one step": summary(whole),
    }


def summary(found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and least of seconds, and ratios: median, smallest, largest of those within one round."""
    ratios = {
        f"{name} / {own}": [a / b for a, b in zip(found[name], found[own], strict=True)]
        for name in found
        if not name.startswith("ours")
        for own in found
        if own.startswith("ours")
    }
    return {
        "median_s": {name: round(statistics.median(values), 3) for name, values in found.items()},
        "least_s": {name: round(min(values), 3) for name, values in found.items()},
        "ratios": {
            names: [round(value, 2) for value in (statistics.median(each), min(each), max(each))]
            for names, each in ratios.items()
        },
    }


def utilisation(table: dict[str, Any], worker: Worker) -> dict[str, Any]:
    """Rates in T/s, and each contender's share of the best that its dtype reaches here."""
    best, work = worker.ask("rates"), worker.ask("work")
    shares = {
        part: {
            name: round(work[part] / seconds / best[CONTENDERS[name].dtype], 3)
            for name, seconds in table[part]["wall"]["median_s"].items()
        }
        for part in work
        if part in table
    }
    return {"best rate": best, "operations": work, "share": shares}


def stolen() -> int:
    """Ticks that the host took away from this machine so far."""
    return int(Path("/proc/stat").read_text().split()[8])


def prepare(names: list[str], asked: argparse.Namespace) -> None:
    """Write what is missing: random weights, a single file of them, OpenVINO's form of them."""
    if not asked.folder.exists():
        from full_size import build

        build(asked.preset, asked.folder)
    kinds = {CONTENDERS[name].kind for name in names}
    if "sdcpp" in kinds and not (file := asked.folder.with_suffix(".safetensors")).exists():
        from mezzotint.checkpoints.convert import convert

        convert(asked.folder, file)
    if "openvino" in kinds:
        Worker("OpenVINO", asked).close()


def compete(names: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """The parts of one run; contenders stay alive from part to part."""
    table: dict[str, Any] = {}
    if "cold" in asked.parts:
        table["cold"] = cold(names, asked)
    parts = [part for part in asked.parts if part != "cold"]
    exact = expected(asked) if parts else {}
    workers = {name: Worker(name, asked) for name in (names if parts else [])}
    for part in parts:
        taking_part = {name: worker for name, worker in workers.items() if able(name, part)}
        differences = {
            name: compared(name, part, worker.output(checked(part)), exact[part])
            for name, worker in taking_part.items()
        }
        table[part] = {"to the reference": differences, **measured(taking_part, part, asked)}
        print(part, json.dumps(table[part], indent=1), file=sys.stderr, flush=True)
    table["peak_gib"] = {name: worker.resident.peak_gib() for name, worker in workers.items()}
    if own := next((worker for worker in workers.values() if worker.kind == "ours"), None):
        table["utilisation"] = utilisation(table, own)
    for worker in workers.values():
        worker.close()
    return table


def main() -> None:
    """Prepare, let the contenders take turns, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sd15", choices=list(SIZES))
    parser.add_argument("--parts", default="unet,decode")
    parser.add_argument("--contenders", help="names, with commas; default: all that can run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=2, help="rounds of `picture`")
    parser.add_argument("--size", type=int, help="default: the model's own")
    parser.add_argument("--batch", type=int, default=1, help="pictures at once in `unet`")
    parser.add_argument("--isa", choices=["all", "avx2"], default="all")
    parser.add_argument("--weights", type=Path, help="where random weights are kept; default: a temporary folder")
    parser.add_argument("--openvino", type=Path, help="environment with OpenVINO")
    parser.add_argument("--sdcpp", type=Path, help="environment with stable-diffusion.cpp")
    parser.add_argument("--name", help="of the table; default: what was measured")
    parser.add_argument("--loud", action="store_true", help="show what contenders write to stderr")
    asked = parser.parse_args()
    asked.size, asked.parts = asked.size or SIZES[asked.preset], asked.parts.split(",")
    names = [name for name, (kind, *_) in CONTENDERS.items() if getattr(asked, kind, True)]
    names = asked.contenders.split(",") if asked.contenders else names
    with tempfile.TemporaryDirectory() as temporary:
        asked.folder = (asked.weights or Path(temporary)) / asked.preset
        prepare(names, asked)
        before, begun = stolen(), time.time()
        table: dict[str, Any] = {
            "platform": platform.platform(),
            **{key: getattr(asked, key) for key in PLAN},
            **compete(names, asked),
            "load": os.getloadavg()[0],
        }
        table["stolen_share"] = (stolen() - before) / 100 / (time.time() - begun) / (os.cpu_count() or 1)
    name = asked.name or "-".join(map(str, (asked.preset, asked.size, asked.threads, *asked.parts)))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"cpu_speed-{name}.json").write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
