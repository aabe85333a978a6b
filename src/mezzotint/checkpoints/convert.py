"""Any model to a diffusers folder or a single file: layout, precision, averaged weights, pruned to what is used."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from mezzotint.checkpoints.checkpoint import read
from mezzotint.checkpoints.component import STEMS, TOKENIZERS, Checkpoint
from mezzotint.checkpoints.ldm import EMA, ema_map
from mezzotint.checkpoints.save import Report, save_file, save_folder
from mezzotint.checkpoints.translate import apply, shapes_of
from mezzotint.errors import CheckpointError, unknown
from mezzotint.models.unet import UNetConfig

Layout = Literal["diffusers", "ldm"]

READ = {*STEMS, *TOKENIZERS.values(), "scheduler"} | {
    "feature_extractor",
    "image_noising_scheduler",
    "low_res_scheduler",
}
"""Folders of a model whose content is read, or written anew because it is the same everywhere."""

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: Layout | None = None,
    dtype: str | None = None,
    ema: bool = False,
    shard_bytes: int | None = None,
    keep_extra: bool = False,
    preset: str | None = None,
    objective: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
) -> Report:
    """Read `source` as `read` does (with its last four arguments) and write it as a folder or a single file.

    `to` None decides by the target's name: `….safetensors` is a single file. Without `dtype` every tensor that both
    layouts have keeps its bytes. `ema` takes the averaged U-Net instead of the trained one. What a picture does not
    need (averages, schedules, other layers) is left out and listed, unless `keep_extra` keeps it for the way back.

    Raises: CheckpointError as `read`, `save_folder` and `save_file`, or if there is no averaged U-Net.
    """
    if dtype is not None and dtype not in PRECISIONS:
        raise CheckpointError(unknown("dtype", dtype, PRECISIONS))
    found = read(source, preset=preset, objective=objective, variant=variant, vae=vae)
    found = averaged(found) if ema else found
    precision = PRECISIONS[dtype] if dtype else None
    report = _written(found, Path(target), to, precision, shard_bytes, keep_extra=keep_extra)
    return replace(report, notes=report.notes + _left_out(Path(source)))


def _written(
    found: Checkpoint,
    target: Path,
    to: Layout | None,
    precision: torch.dtype | None,
    shard_bytes: int | None,
    *,
    keep_extra: bool,
) -> Report:
    if (to or ("ldm" if target.suffix == ".safetensors" else "diffusers")) == "diffusers":
        return save_folder(found, target, dtype=precision, shard_bytes=shard_bytes, keep_extra=keep_extra)
    if shard_bytes:
        raise CheckpointError(f"{target}: a single file cannot be split; convert to a folder, or leave out shards")
    return save_file(found, target, dtype=precision, keep_extra=keep_extra)


def _left_out(source: Path) -> tuple[str, ...]:
    """Folders of a model that are not read: the safety checker, the depth estimator of SD 2."""
    folders = sorted(entry.name for entry in source.iterdir() if entry.is_dir()) if source.is_dir() else []
    is_whole = (source / "model_index.json").is_file()
    return tuple(f"{name}/: not converted" for name in folders if is_whole and name not in READ)


def averaged(found: Checkpoint) -> Checkpoint:
    """The model with the exponential moving average of its U-Net in place of the weights that were trained last.

    Raises: CheckpointError if the file has no average, or only a part of one.
    """
    unet = found.unet
    where = str(found.detection.path) if found.detection else "the model"
    if unet is None or not isinstance(unet.config, UNetConfig) or not any(key.startswith(EMA) for key in found.extras):
        raise CheckpointError(f"{where}: no averaged weights ({EMA}…) in it; convert without ema")
    state = apply(ema_map(unet.config), found.extras, shapes_of(unet.config), where=where)
    extras = {key: tensor for key, tensor in found.extras.items() if not key.startswith(EMA)}
    return replace(found, unet=replace(unet, state=state), extras=extras)
