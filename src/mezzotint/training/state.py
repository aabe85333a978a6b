"""Checkpoints of a run: a folder that exists completely or not at all, and the newest one that verifies.

`step-00001000/` holds `state.safetensors` (weights, optimiser, averages, random states; no pickle) and `manifest.json`
with the hash and size of every file. It is written under a temporary name, synced, renamed, and only then are older
ones removed: whatever moment the process is killed at, the newest complete checkpoint is intact.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mezzotint.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT = 1
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
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial / STATE)
    files = {STATE: {"sha256": _sha256(partial / STATE), "size": (partial / STATE).stat().st_size}}
    manifest = {"format": FORMAT, "step": step, "files": files, **about}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    for path in (partial / STATE, partial / MANIFEST, partial):
        _sync(path)
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
        except (CheckpointError, OSError, ValueError) as error:
            log.warning("%s is passed over: %s", path, error)
    return None


def load(path: Path) -> Saved:
    """The checkpoint in a folder, after verifying every file.

    Raises: CheckpointError if a file is not what the manifest says, or the format is newer.
    """
    about = json.loads((path / MANIFEST).read_text("utf-8"))
    if about["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {about['format']} → {FORMAT} expected")
    for name, file in about["files"].items():
        if _sha256(path / name) != file["sha256"]:
            raise CheckpointError(f"{path / name}: damaged (its SHA-256 is not that of the manifest)")
    return Saved(step=about["step"], tensors=load_file(path / STATE), about=about)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
