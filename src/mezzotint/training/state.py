"""Checkpoints of a run: a folder that exists completely or not at all, and the newest one that verifies.

`step-00001000/` holds `state.safetensors` (weights, optimiser, averages, random states; no pickle) and `manifest.json`
with the hash and size of every file. It is written under a temporary name, synced, renamed, and only then are older
ones removed: whatever moment the process is killed at, the newest complete checkpoint is intact.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mezzotint.checkpoints.files import read_json, read_state, sha256_of, write_json, write_state
from mezzotint.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 2
STATE, MANIFEST = "state.safetensors", "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint read back."""

    step: int
    tensors: dict[str, Tensor]
    about: Mapping[str, Any]  # Any: JSON of the manifest


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], about: Mapping[str, Any], *, keep: int) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; its folder.

    Raises: CheckpointError if the disk has less than twice the space it needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = 2 * sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise CheckpointError(f"{folder}: {free >> 20} MB free → {needed >> 20} MB needed to save step {step}")
    for orphan in folder.glob(".partial-*"):
        shutil.rmtree(orphan)
    partial = folder / f".partial-{step:08d}"
    partial.mkdir()
    write_state(partial / STATE, tensors)
    files = {STATE: sha256_of(partial / STATE)}
    write_json(partial / MANIFEST, {**about, "format": FORMAT, "step": step, "sha256": files})
    target = folder / f"step-{step:08d}"
    if target.exists():  # damaged: the run continued from an older one
        shutil.rmtree(target)
    partial.rename(target)
    _sync(folder)
    for old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def complete(folder: Path) -> list[Path]:
    """Folders of finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).exists())


def newest(folder: Path) -> Saved | None:
    """The newest checkpoint that verifies; None if there is none. Damaged ones are passed over with a warning."""
    for path in reversed(complete(folder)):
        try:
            return load(path)
        except (CheckpointError, OSError) as error:
            log.warning("%s is passed over: %s", path, error)
    return None


def load(path: Path) -> Saved:
    """The checkpoint in a folder, after verifying every file.

    Raises: CheckpointError if a file is not what the manifest says, or the format is another.
    """
    about: dict[str, Any] = read_json(path / MANIFEST)
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {about.get('format')} → {FORMAT} expected")
    for name, expected in about["sha256"].items():
        if sha256_of(path / name) != expected:
            raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not that of the manifest)")
    # Copies: tensors of a memory-mapped file would keep it on disk after it is pruned.
    tensors = {name: tensor.clone() for name, tensor in read_state(path / STATE).items()}
    return Saved(step=about["step"], tensors=tensors, about=about)


def _sync(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
