"""How many pictures a second go through Inception, next to torch-fidelity; and what bfloat16 does to a distance.

Measures: 8-bit pictures of 299 x 299 in memory to 2,048 features, by the extractor that `mezzotint evaluate` uses
(protocol tf1, micro-batches of 16) in float32 and in bfloat16, and by torch-fidelity's in float32 with its default
batch of 64. Each runs in a process of its own; they take turns, one working while the others wait, so that all see the
same machine. Numbers are medians over turns, ratios medians of the turns' ratios. On a machine with other work, compare
the processor's seconds, and with OMP_NUM_THREADS=1: waiting threads count as working. `--whole N` then sends N pictures
through bfloat16 in one go. The distance is that of two sets of pictures in float32, in bfloat16, and of one set with
itself across both.
Not measured: decoding. Weights are drawn: speed does not depend on them, and the distance is no FID.
What would make the numbers lie: other work on the machine that comes and goes (see load and spread), denormal numbers
(the weights are scaled so that none arise).

    sh benchmarks/peers/fid.sh peers-fid
    python benchmarks/inception.py --peers peers-fid [--turns 7] [--whole 10000]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/inception.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "inception.json"
PICTURES = 64  # a turn, and torch-fidelity's batch
CONTENDERS = ("float32", "bfloat16", "torch-fidelity")
SET = 48  # pictures of each of the two sets whose distance is measured

sys.path.insert(0, str(ROOT / "tests"))
from golden.inception import drawn, import_torchvision, picture  # noqa: E402  # shared with the peers' environment


def ours(dtype: str) -> Any:  # Any: imported here, because the peers' environment does not have this package
    """The extractor of the package on drawn weights."""
    features = import_module("mezzotint.evaluation.features")
    inception = import_module("mezzotint.evaluation.inception")
    protocols = import_module("mezzotint.evaluation.protocols")
    state = {name: drawn(name, shape) for name, shape in inception.shapes().items()}
    network = inception.Inception(state, features.DTYPES[dtype])
    return features.Extractor(
        name="inception", weights="drawn", protocol=protocols.inception_protocol("tf1"), dim=2048, dtype=dtype,
        network=lambda x: features.Output(*network(x)),
    )  # fmt: skip


def theirs() -> Callable[[Tensor], Tensor]:
    """torch-fidelity's extractor on drawn weights."""
    import_torchvision()
    module = import_module("torch_fidelity.feature_extractor_inceptionv3")
    shapes: dict[str, tuple[int, ...]] = {}
    file = Path(tempfile.gettempdir()) / f"mezzotint-bench-{os.getpid()}.pth"
    load = torch.nn.Module.load_state_dict
    torch.save({}, file)
    try:
        torch.nn.Module.load_state_dict = lambda self, *_, **__: shapes.update(  # type: ignore[method-assign]
            {name: tuple(t.shape) for name, t in self.state_dict().items() if not name.endswith("tracked")}
        )
        network = module.FeatureExtractorInceptionV3("peer", ["2048"], feature_extractor_weights_path=str(file))
    finally:
        torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]
        file.unlink()
    network.load_state_dict({name: drawn(name, shape) for name, shape in shapes.items()})
    return lambda pixels: network(pixels)[0]


def work(contender: str) -> None:
    """The child process: each line of stdin is a number of pictures, answered by the seconds that they took."""
    pixels = torch.stack([picture(299, 299, seed) for seed in range(PICTURES)])
    if contender == "torch-fidelity":
        network = theirs()

        def run(count: int) -> None:
            with torch.inference_mode():
                for start in range(0, count, PICTURES):
                    network(pixels[: min(PICTURES, count - start)])
    else:
        extract = ours(contender)

        def run(count: int) -> None:
            for _ in extract.batches(pixels[i % PICTURES] for i in range(count)):
                pass

    run(PICTURES // 4)
    print(PICTURES, PICTURES, flush=True)
    for line in sys.stdin:
        begun, worked = time.perf_counter(), time.process_time()
        run(int(line))
        print(time.perf_counter() - begun, time.process_time() - worked, flush=True)


def effect() -> dict[str, float]:
    """A distance in both precisions, and that of the same pictures across them."""
    frechet = import_module("mezzotint.evaluation.fid").frechet_of_features
    one = [picture(299, 299, seed) for seed in range(SET)]
    other = [(picture(299, 299, seed + SET).float() * 0.8 + 20).to(torch.uint8) for seed in range(SET)]
    found = {dtype: [ours(dtype).features(pictures) for pictures in (one, other)] for dtype in CONTENDERS[:2]}
    whole, half = found["float32"], found["bfloat16"]
    values = {
        "float32": frechet(*whole).value,
        "bfloat16": frechet(*half).value,
        "itself_across_precisions": frechet(whole[0], half[0]).value,
    }
    values["relative_change"] = values["bfloat16"] / values["float32"] - 1
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def main() -> None:
    """Let all take turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder that benchmarks/peers/fid.sh made")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--whole", type=int, default=0, help="pictures in one go, in bfloat16")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        return work(asked.contender)
    if asked.peers is None:
        parser.error("--peers FOLDER is needed")
    pythons = {name: sys.executable for name in CONTENDERS} | {"torch-fidelity": asked.peers / "bin" / "python"}
    children = {
        name: subprocess.Popen(
            [pythons[name], __file__, "--contender", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in CONTENDERS
    }  # fmt: skip

    def answer(name: str, count: int = 0) -> tuple[float, float]:
        child = children[name]
        assert child.stdin is not None
        assert child.stdout is not None
        if count:
            print(count, file=child.stdin, flush=True)
        wall, worked = child.stdout.readline().split()
        return float(wall), float(worked)

    for name in children:  # all have warmed up
        answer(name)
    load = os.getloadavg()[0]
    speeds: dict[str, list[float]] = {name: [] for name in children}
    costs: dict[str, list[float]] = {name: [] for name in children}
    for turn in range(asked.turns):
        for name in CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]:
            wall, worked = answer(name, PICTURES)
            speeds[name].append(PICTURES / wall)
            costs[name].append(worked / PICTURES)
        print({name: round(found[-1], 1) for name, found in speeds.items()}, file=sys.stderr)
    ratios = {
        name: [a / b for a, b in zip(speeds[name], speeds["torch-fidelity"], strict=True)] for name in CONTENDERS[:2]
    }
    cheaper = {
        name: [b / a for a, b in zip(costs[name], costs["torch-fidelity"], strict=True)] for name in CONTENDERS[:2]
    }
    table: dict[str, Any] = {  # Any: JSON
        "pictures_per_second": {name: round(statistics.median(found), 1) for name, found in speeds.items()},
        "ratio_to_torch_fidelity": {name: round(statistics.median(found), 2) for name, found in ratios.items()},
        "processor_seconds_a_picture": {name: round(statistics.median(found), 4) for name, found in costs.items()},
        "ratio_of_processor_seconds": {name: round(statistics.median(found), 2) for name, found in cheaper.items()},
        "spread": {
            **{f"processor seconds {name}": [round(min(f), 4), round(max(f), 4)] for name, f in costs.items()},
            **{name: [round(min(found), 1), round(max(found), 1)] for name, found in speeds.items()},
            **{f"ratio {name}": [round(min(found), 2), round(max(found), 2)] for name, found in ratios.items()},
        },
        "distance_of_drawn_weights": {"pictures": SET, **effect()},
        "pictures_a_turn": PICTURES, "turns": asked.turns, "threads": torch.get_num_threads(), "load": load,
        "torch": torch.__version__, "platform": platform.platform(),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    if asked.whole:
        seconds = answer("bfloat16", asked.whole)[0]
        per_second = round(asked.whole / seconds, 1)
        table["whole"] = {"pictures": asked.whole, "seconds": round(seconds, 1), "per_second": per_second}
        RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    for child in children.values():
        child.communicate()
    print(json.dumps(table))


if __name__ == "__main__":
    main()
