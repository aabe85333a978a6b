"""What looking at attention costs: time of a U-Net evaluation with and without capture, and memory.

Measures, SD 1.5 at 512 px with random bfloat16 weights, guidance on (two rows), all cross-attention layers: evaluations
with and without capture in turn, median of each, and their ratio, by the clock and by processor time; peak resident
memory after the plain ones and after the captured ones; bytes of maps held after every captured step. The output of
both must be equal bit for bit.
Not measured: text, decoder, the page. Maps by step grow with the steps that the page shows, 24 at most; everything
else that is kept does not grow, so that 20 steps hold what is extrapolated.
What would make the numbers lie: another busy process (see load); processor time suffers less from it.

    python benchmarks/explain.py [--pairs 4] [--weights FOLDER]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/explain.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

from full_size import build

RESULTS = Path(__file__).parent / "results" / "explain.json"
PROMPT = "a red fox in the snow at night, oil painting"
STEPS = 20  # that memory is extrapolated to


def measure(folder: Path, pairs: int) -> dict[str, object]:
    """Evaluations of one picture, plain and captured in turn."""
    import torch

    import mezzotint
    from mezzotint.diffusion.sampling import Row
    from mezzotint.explain.attention import Maps, Shape
    from mezzotint.explain.watch import ATTENTION, Watching
    from mezzotint.explain.words import read
    from mezzotint.pipeline.condition import told
    from mezzotint.pipeline.drive import Predictor
    from mezzotint.pipeline.request import Request
    from mezzotint.pipeline.resolve import resolve

    system = mezzotint.load(folder, dtype="bfloat16")
    request = resolve(system, Request(prompt=PROMPT, steps=STEPS, seed=1)).request
    sides = told(system, request)
    groups = read(PROMPT, system.tokenizers[0], 77).groups
    maps = Maps(groups=groups, latent=Shape(64, 64), steps=frozenset(range(STEPS)))
    watching = Watching(steps=frozenset(), maps=maps, activations_at=-1)
    predict = Predictor({"base": system.network}, watching)
    sigma, t = 3.0, 600.0
    x = sigma * torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))

    def rows(wants: frozenset[str]) -> list[Row]:
        both = (("conditional", sides.conditional), ("unconditional", sides.unconditional))
        return [Row(x, sigma, t, side, slot=slot, wants=wants) for slot, side in both]

    def timed(wants: frozenset[str]) -> tuple[float, float, list[torch.Tensor]]:
        asked, begun, worked = rows(wants), time.perf_counter(), time.process_time()
        x0 = predict(asked)
        return time.perf_counter() - begun, time.process_time() - worked, x0

    def peak() -> float:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)

    for _ in range(2):  # warm up
        timed(frozenset())
    plain_peak = peak()
    plain: list[float] = []
    captured: list[float] = []
    worked: dict[str, list[float]] = {"plain": [], "captured": []}
    held: list[int] = []
    for step in range(pairs):
        seconds, cpu, without = timed(frozenset())
        plain.append(seconds)
        worked["plain"].append(cpu)
        watching._step = step
        seconds, cpu, seen = timed(frozenset({ATTENTION}))
        captured.append(seconds)
        worked["captured"].append(cpu)
        assert all(torch.equal(a, b) for a, b in zip(without, seen, strict=True)), "looking changed the answer"
        means = [*maps.by_step.values(), *maps.by_layer.values(), *maps.by_head.values()]
        held.append(sum(mean.value.numel() * 4 for mean in means))
    growth = held[-1] - held[-2]
    return {
        "preset": "sd15",
        "size": 512,
        "layers": len(maps.by_layer),
        "groups": len(groups.names),
        "plain_s": round(statistics.median(plain), 3),
        "captured_s": round(statistics.median(captured), 3),
        "ratio": round(statistics.median(captured) / statistics.median(plain), 3),
        "ratio_cpu": round(statistics.median(worked["captured"]) / statistics.median(worked["plain"]), 3),
        "of_which_maps": round(maps.seconds / sum(captured), 3),
        "plain_peak_gib": plain_peak,
        "captured_peak_gib": peak(),
        "held_mib": [round(value / 2**20, 2) for value in held],
        f"held_mib_at_{STEPS}_steps": round((held[-1] + growth * (STEPS - pairs)) / 2**20, 2),
        "spread_plain": [round(value, 3) for value in plain],
        "spread_captured": [round(value, 3) for value in captured],
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Build the model if it is missing, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--weights", type=Path, help="where the random model is kept; default: a temporary folder")
    asked = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.weights or Path(temporary)) / "sd15"
        if not folder.exists():
            build("sd15", folder)
        row = measure(folder, asked.pairs)
    table = {"torch": torch.__version__, "platform": platform.platform(), **row}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
