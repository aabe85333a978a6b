"""Every network of the family at full size, next to diffusers or transformers with the very same float32 tensors.

    python tests/parity_full.py [--only WORD] [--out FILE]

Prints a table, writes it as JSON, and exits with 1 unless ‖ours − theirs‖ / ‖theirs‖ ≤ 1e-4 everywhere. Weights are
random, scaled by fan-in so that activations neither vanish nor explode: that is asserted, because an error relative to
an output near 0 or infinity says nothing. One model is in memory at a time, once for both; the largest takes 11 GB.
"""

import argparse
import gc
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.presets import CLIP_BIGG, CLIP_H, CLIP_L, IMAGE_H, IMAGE_L, PRESETS
from mezzotint.models.unet import Conditioning, sized_vector
from models.oracles import image_pair, relative, text_pair, unet_pair, vae_pair

TOLERANCE = 1e-4
SCALE = (0.1, 10.0)  # root mean square of an output
OUT = Path(__file__).parent.parent / "benchmarks" / "results" / "parity.json"
SIZES = {6: (1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0), 5: (1024.0, 1024.0, 0.0, 0.0, 6.0)}  # base and refiner


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison."""

    network: str
    output: str
    parameters: int
    relative: float
    scale: float
    seconds: float


Outputs = Iterator[tuple[str, Tensor, Tensor]]  # name, ours, theirs
Case = Callable[[torch.Generator], tuple[nn.Module, Outputs]]


def unet(preset: str, size: tuple[int, int], generator: torch.Generator) -> tuple[nn.Module, Outputs]:
    """One evaluation of a preset's U-Net on latents of `size` rows and columns."""
    config = PRESETS[preset].unet
    is_unclip = PRESETS[preset].image is not None
    ours, theirs = unet_pair(config, generator, vector="projection" if is_unclip else "text_time")

    def outputs() -> Outputs:
        x = torch.randn(1, config.in_channels, *size, generator=generator)
        t, context = torch.tensor([601.0]), torch.randn(1, 77, config.context or 0, generator=generator)
        vector, label, given = None, None, dict[str, Any]()
        if is_unclip:
            given["class_labels"] = vector = torch.randn(1, config.vector, generator=generator)
        elif config.vector:
            ids = torch.tensor([SIZES[(config.vector - 1280) // 256]])
            pooled = torch.randn(1, 1280, generator=generator)
            vector = sized_vector(pooled, ids)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        if config.labels:
            given["class_labels"] = label = torch.tensor([20])
        prepared = ours.prepare(Conditioning(context, vector=vector, label=label))
        yield "x {}x{}".format(*size), ours(x, t, prepared), theirs(x, t, context, **given).sample

    return ours, outputs()


def vae(preset: str, generator: torch.Generator) -> tuple[nn.Module, Outputs]:
    """Encoder and decoder of a preset's autoencoder, on 16x16 latents."""
    config = PRESETS[preset].vae
    ours, theirs = vae_pair(config, generator)

    def outputs() -> Outputs:
        side = 16 * config.factor
        image = torch.rand(1, 3, side, side, generator=generator) * 2 - 1
        yield "moments", ours.moments(image), theirs.encode(image).latent_dist.parameters
        z = torch.randn(1, 4, 16, 16, generator=generator)
        yield "image", ours.decode(z * config.scaling), theirs.decode(z).sample

    return ours, outputs()


def text(config: TextConfig, generator: torch.Generator) -> tuple[nn.Module, Outputs]:
    """A text tower on one prompt of 20 tokens and its padding."""
    ours, theirs = text_pair(config, generator)

    def outputs() -> Outputs:
        ids = torch.full((1, config.positions), config.pad)
        ids[0, 0], ids[0, 21] = config.bos, config.eos
        ids[0, 1:21] = torch.randint(1, config.bos, (20,), generator=generator)
        actual, expected = ours(ids), theirs(ids, output_hidden_states=True)
        yield "state -2", actual.states[-2], expected.hidden_states[-2]
        yield "state -1, normed", ours.final_norm(actual.states[-1]), expected.last_hidden_state
        yield "pooled", actual.pooled, expected.text_embeds if config.projection else expected.pooler_output

    return ours, outputs()


def image(config: ImageConfig, generator: torch.Generator) -> tuple[nn.Module, Outputs]:
    """An image tower on one image."""
    ours, theirs = image_pair(config, generator)

    def outputs() -> Outputs:
        pixels = torch.randn(1, 3, config.size, config.size, generator=generator)
        actual, expected = ours(pixels), theirs(pixels, output_hidden_states=True)
        yield "state -2", actual.states[-2], expected.hidden_states[-2]
        yield "embedding", actual.embedding, expected.image_embeds

    return ours, outputs()


CASES: dict[str, Case] = {
    "unet sd15": partial(unet, "sd15", (16, 16)),
    "unet sd15 520x456": partial(unet, "sd15", (57, 65)),  # odd at every level
    "unet sd2-v": partial(unet, "sd2-v", (16, 16)),
    "unet sd2-unclip-h": partial(unet, "sd2-unclip-h", (16, 16)),
    "unet x4-upscaler": partial(unet, "x4-upscaler", (16, 16)),
    "unet sdxl": partial(unet, "sdxl", (16, 16)),
    "unet sdxl-refiner": partial(unet, "sdxl-refiner", (16, 16)),
    "vae sd15": partial(vae, "sd15"),
    "vae sdxl": partial(vae, "sdxl"),
    "vae x4-upscaler": partial(vae, "x4-upscaler"),
    "text L": partial(text, CLIP_L),
    "text H": partial(text, CLIP_H),
    "text bigG": partial(text, CLIP_BIGG),
    "image L": partial(image, IMAGE_L),
    "image H": partial(image, IMAGE_H),
}


def compared(name: str, case: Case) -> Iterator[Row]:
    """The rows of one case; its model is freed when the iterator is."""
    start = time.perf_counter()
    ours, outputs = case(torch.Generator().manual_seed(0))
    parameters = sum(parameter.numel() for parameter in ours.parameters())
    for output, actual, expected in outputs:
        yield Row(
            network=name,
            output=output,
            parameters=parameters,
            relative=relative(actual, expected),
            scale=math.sqrt(float(expected.double().square().mean())),
            seconds=round(time.perf_counter() - start, 1),
        )


def main() -> int:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only networks whose name contains this")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    rows: list[Row] = []
    print(f"{'network':20} {'output':17} {'parameters':>13} {'relative':>9} {'scale':>6} {'s':>6}")
    with torch.inference_mode():
        for name, case in CASES.items():
            if asked.only not in name:
                continue
            for row in compared(name, case):
                rows.append(row)
                values = f"{row.parameters:13,} {row.relative:9.1e} {row.scale:6.2f} {row.seconds:6.1f}"
                print(f"{row.network:20} {row.output:17} {values}", flush=True)
            gc.collect()
    environment = {package: version(package) for package in ("torch", "diffusers", "transformers")}
    result = {
        "tolerance": TOLERANCE,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "environment": environment,
        "rows": [asdict(row) for row in rows],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1) + "\n")
    wrong = [row for row in rows if not (row.relative <= TOLERANCE and SCALE[0] <= row.scale <= SCALE[1])]
    for row in wrong:
        print(f"wrong: {row.network}, {row.output}: relative {row.relative:.1e}, scale {row.scale:.2f}")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    raise SystemExit(main())
