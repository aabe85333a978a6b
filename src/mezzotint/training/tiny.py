"""Any recipe of the lineage in small: the same code on shrunken networks and drawn pictures, in seconds.

Sides are divided by 16, widths of towers by 64; a U-Net keeps its levels and loses width and depth. What the real
recipe takes from others (autoencoder, text towers) is trained here first, on the same pictures. A tiny run shows that
the chain of recipes holds together, nothing about quality.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from mezzotint.checkpoints.component import text_roles
from mezzotint.data.order import keyed
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.presets import Preset
from mezzotint.models.unet import Level
from mezzotint.models.vae import VAEConfig
from mezzotint.training.config import DataConfig, EmaConfig, TrainConfig
from mezzotint.training.inherited import TOWERS

SIDE, WIDTH, CHANNELS, HEADS = 16, 64, 16, 2  # sides and widths are divided; channels of the first level; heads
VOCABULARY = 530  # the least that any caption can be spelt with, and some words
COLORS = {"red": (225, 40, 35), "green": (40, 160, 70), "blue": (40, 70, 220), "black": (20, 20, 20)}
SHAPES = ("disc", "square", "bar", "ring")
COPIES = 3
DRAWN = 160  # longest side in pixels
STEPS = 10_000  # of the real recipe for one of the tiny one, which has at least LEAST
LEAST = 6
BATCH = 4
MICRO = 2  # micro-batches of a step, so that one or two processes can share it
PROMPT = "a red disc"


def shrunk(preset: Preset) -> Preset:
    """The preset with narrow networks of the same form."""
    first = preset.unet.levels[0].channels

    def level(real: Level) -> Level:
        assert isinstance(real.depth, int)
        channels = CHANNELS * real.channels // first
        return replace(real, channels=channels, depth=min(real.depth, 2), heads=HEADS if real.depth else 1)

    def text(real: TextConfig) -> TextConfig:
        return replace(
            real, width=real.width // WIDTH, layers=2, heads=HEADS, mlp=real.mlp // WIDTH, vocabulary=VOCABULARY,
            projection=real.projection and real.projection // WIDTH, bos=VOCABULARY - 2, eos=VOCABULARY - 1,
            pad=VOCABULARY - 1,
        )  # fmt: skip

    image = preset.image and image_tower(preset.image.projection // WIDTH)
    unet, vector = preset.unet, preset.unet.vector
    if vector and image:
        vector = 2 * image.projection
    elif vector:
        pooled = preset.text[-1].projection or 0
        vector += pooled // WIDTH - pooled
    return replace(
        preset,
        unet=replace(
            unet, levels=tuple(map(level, unet.levels)), middle=unet.middle and level(unet.middle), norm_groups=8,
            context=unet.context and unet.context // WIDTH, vector=vector,
        ),
        vae=VAEConfig(channels=(8, 16), blocks=1, norm_groups=4, scaling=1.0),
        text=tuple(map(text, preset.text)),
        image=image,
    )  # fmt: skip


def scaled(config: TrainConfig, needs: Mapping[str, str]) -> TrainConfig:
    """A stage of the lineage at tiny scale: small networks, sides and steps; the objective and the data rule stay."""
    data, filters = config.data, config.data.filters
    if filters is not None and filters.size is not None and filters.size.at_least is not None:
        filters = replace(filters, size=replace(filters.size, at_least=filters.size.at_least // SIDE))
    steps = max(LEAST, config.max_train_steps // STEPS)
    return replace(
        config,
        data=replace(data, resolution=data.resolution // SIDE, filters=filters, bucket_step=8 * bool(data.bucket_step)),
        settings={**config.settings, "scale": "tiny", "gradient_checkpointing": False},
        max_train_steps=steps, train_batch_size=BATCH // MICRO, gradient_accumulation_steps=MICRO, learning_rate=1e-3,
        lr_warmup_steps=0, mixed_precision="no", logging_steps=1, checkpointing_steps=steps, validation_steps=steps,
        validation_prompts=(PROMPT,), needs=needs,
    )  # fmt: skip


def write_pictures(folder: Path) -> None:
    """Shapes in colours, of several sizes and aspects, with the columns that data rules of the lineage look at."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for color, ink in COLORS.items():
        for shape in SHAPES:
            for copy in range(COPIES):
                name = f"{color}-{shape}-{copy}.png"
                draws = torch.rand(4, generator=keyed("shapes", name))
                _drawn(shape, ink, draws).save(folder / name)
                scores = [float(score) for score in torch.rand(3, generator=keyed("scores", name))]
                rows.append({
                    "file_name": name, "captions": [f"a {color} {shape}", f"{shape}, {color}"],
                    "aesthetic": 4 + 3 * scores[0], "pwatermark": 0.6 * scores[1], "punsafe": 0.12 * scores[2],
                })  # fmt: skip
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _drawn(shape: str, ink: tuple[int, int, int], draws: torch.Tensor) -> Image.Image:
    width, height = (int(DRAWN * (0.6 + 0.4 * float(draw))) for draw in draws[:2])
    left, top = (int(DRAWN * 0.1 * (1 + float(draw))) for draw in draws[2:])
    box = (left, top, width - left, height - top)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    if shape in {"disc", "ring"}:
        draw.ellipse(box, fill=ink if shape == "disc" else "white", outline=ink, width=DRAWN // 12)
    else:
        draw.rectangle((box[0], box[1], box[2], box[3] if shape == "square" else (box[1] + box[3]) // 2), fill=ink)
    return picture


def image_tower(width: int) -> ImageConfig:
    """The picture half of a tiny CLIP whose embeddings have this width."""
    return ImageConfig(
        width=width, layers=1, heads=HEADS, mlp=2 * width, activation="gelu", projection=width, patch=8, size=2 * SIDE
    )


def requirements(preset: Preset) -> Mapping[str, tuple[str, TrainConfig]]:
    """What a tiny run of a preset needs trained before it: a folder's name and a recipe for each role in `needs`."""
    small = shrunk(preset)
    roles = [role for role, component in TOWERS.items() if component in text_roles(preset.text)]
    found = {"autoencoder": ("autoencoder", _recipe("autoencoder", {"model": asdict(small.vae), "half_size": 0.0}, 24))}
    for role, text in zip(roles, small.text, strict=True):
        towers = {"text": asdict(replace(text, projection=text.width)), "image": asdict(image_tower(text.width))}
        found[role] = (f"clip-{text.width}", _recipe("clip", towers, 8))
    return {**found, "image": found["clip"]} if small.image else found


def _recipe(part: str, settings: Mapping[str, Any], steps: int) -> TrainConfig:
    return TrainConfig(
        part=part, data=DataConfig(resolution=2 * SIDE), settings=settings, max_train_steps=steps, train_batch_size=16,
        learning_rate=3e-3, mixed_precision="no", ema=(EmaConfig(kind="power", value=0.1),), checkpointing_steps=steps,
        validation_steps=steps,
    )  # fmt: skip
