"""What bfloat16 costs in a picture, here and in diffusers: dB between each program's bfloat16 and its own float32.

The packaged model (trained weights), its 24 prompts, 20 steps, guidance 3, one seed: the picture of float32 is the
same in both programs (`agreement`), so the two losses are comparable. A bfloat16 picture is a slightly different
picture, not a worse one; the number says how different.
What would make the numbers lie: nothing that another program does. They depend on the processor's bfloat16.

    python benchmarks/precision.py [--kernels auto] [--steps 20]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/precision.json.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL.Image import Image

import mezzotint
from mezzotint.pipeline.bench import psnr
from mezzotint.storage import asset

RESULTS = Path(__file__).parent / "results"
SEED, GUIDANCE, SIZE = 1, 3.0, 64


def ours(prompts: list[str], dtype: str, steps: int, kernels: str) -> tuple[list[Image], dict[str, Any]]:
    """Pictures of this package, and what it ran them with."""
    system = mezzotint.load(dtype=dtype, kernels=kernels)
    made = [
        mezzotint.generate(system, prompt=prompt, steps=steps, seed=SEED, guidance=GUIDANCE).images[0]
        for prompt in prompts
    ]
    return made, system.execution()


def theirs(prompts: list[str], dtype: torch.dtype, steps: int) -> list[Image]:
    """Pictures of diffusers."""
    pipe = DiffusionPipeline.from_pretrained(str(asset("icons")), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "width": SIZE, "height": SIZE}
    seeds = [torch.Generator().manual_seed(SEED) for _ in prompts]
    return [pipe(prompt, generator=seed, **options).images[0] for prompt, seed in zip(prompts, seeds, strict=True)]


def spread(pairs: tuple[list[Image], list[Image]]) -> dict[str, float]:
    """Median, least and most dB over the pictures."""
    found = [psnr(one, other) for one, other in zip(*pairs, strict=True)]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    prompts = asset("prompts/icons.txt").read_text(encoding="utf-8").splitlines()
    exact, _ = ours(prompts, "float32", asked.steps, asked.kernels)
    rough, execution = ours(prompts, "bfloat16", asked.steps, asked.kernels)
    their_exact, their_rough = (theirs(prompts, dtype, asked.steps) for dtype in (torch.float32, torch.bfloat16))
    table = {
        "execution": execution,
        "prompts": len(prompts),
        "steps": asked.steps,
        "ours bfloat16 / ours float32": spread((rough, exact)),
        "diffusers bfloat16 / diffusers float32": spread((their_rough, their_exact)),
        "agreement": spread((exact, their_exact)),
    }
    (RESULTS / "precision.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
