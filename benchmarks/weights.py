"""What weights in 8 bits save and cost at full size: a guided U-Net step with each kind, taking turns.

Measures, with seeded random weights in bfloat16 and the same input: seconds of a step (the second of two in its turn),
the ratio of packed bfloat16's time to each kind's in every round (median, smallest, largest), memory that a kind's
weights take beside the model's, and the relative difference of the output from packed bfloat16's.
What would make the numbers lie: other work (the load is recorded). Random weights have no outliers: what 8 bits cost a
trained model is what `mezzotint bench --levels` measures.

    python benchmarks/weights.py [--preset sd15] [--size 512] [--threads 2] [--rounds 5]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/weights-PRESET-THREADS.json.
"""

import argparse
import gc
import json
import os
import platform
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from turns import RESULTS, error, faster, turns

from mezzotint.kernels import policy
from mezzotint.kernels.execution import Execution
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet

KINDS = ("packed", "int8", "w8a8")


def drawn(name: str) -> UNet:
    """A U-Net of this preset whose random weights keep activations at their size."""
    with torch.device("meta"):
        unet = UNet(PRESETS[name].unet).to(torch.bfloat16)
    unet.to_empty(device="cpu").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in unet.named_parameters():
        if "norm" in key and key.endswith("weight"):
            parameter.fill_(1)
        else:
            width = (3 / max(1, parameter[0].numel() if parameter.ndim > 1 else 10**4)) ** 0.5
            parameter.uniform_(-width, width, generator=generator)
    return unet


def resident() -> int:
    """Bytes of memory that this process has."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.inference_mode()
def measure(name: str, size: int, rounds: int) -> dict[str, object]:
    """All kinds in turn."""
    unet = drawn(name)
    config, chosen = unet.config, policy.chosen(torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config.in_channels, size // 8, size // 8, generator=generator).bfloat16().repeat(2, 1, 1, 1)
    conditioning = Conditioning(
        context=torch.randn(2, 77, config.context or 0, generator=generator).bfloat16(),
        vector=torch.randn(2, config.vector, generator=generator).bfloat16() if config.vector else None,
    )
    t = torch.full((2,), 500.0)
    calls, taken, outputs = {}, {}, {}
    for kind in KINDS:
        before = resident()
        network = Execution(replace(chosen, weights=kind)).unet(unet)
        prepared = network.prepare(conditioning)
        calls[kind] = lambda network=network, prepared=prepared: network(x, t, prepared)
        outputs[kind] = calls[kind]().float()
        taken[kind] = resident() - before
    seconds = turns(calls, rounds)
    exact = outputs["packed"].double()
    return {
        kind: {
            "seconds": round(statistics.median(seconds[kind]), 3),
            "ratio": [round(value, 2) for value in faster(seconds["packed"], seconds[kind]).values()],
            "gib": round(taken[kind] / 2**30, 2),
            "difference": float(f"{error(outputs[kind], exact):.2e}"),
        }
        for kind in KINDS
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="sd15")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure(asked.preset, asked.size, asked.rounds)
    table = {**vars(asked), "torch": torch.__version__, "platform": platform.platform(), "rows": rows}
    table["load"] = os.getloadavg()[0]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"weights-{asked.preset}-{asked.threads}.json"
    path.write_text(json.dumps(table, indent=2) + "\n")
    for kind, row in rows.items():
        print(kind, row)
    print(json.dumps(table))


if __name__ == "__main__":
    main()
