"""Checkpoints of a run: a folder that exists completely or not at all, and the newest one that verifies.

`step-00001000/` holds `state.safetensors` (weights, optimiser, averages; no pickle) and `manifest.json` with the hash
of every file. It is written under a temporary name, synced, renamed, and only then are older ones removed: whatever
moment the process is killed at, the newest complete checkpoint is intact.

Several processes write a file each: their rows of tensors that are sharded, and their turn of the others. Rows in the
order of the files are the tensor again, so that any number of processes can continue.
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mezzotint.checkpoints.files import read_json, read_state, sha256_of, write_json, write_state
from mezzotint.errors import CheckpointError
from mezzotint.training.processes import ALONE, Processes

log = logging.getLogger(__name__)

FORMAT = 2
STATE, MANIFEST = "state.safetensors", "manifest.json"


class Pieces(Mapping[str, Tensor]):
    """Tensors by name, memory-mapped; one that several files hold rows of is put together when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self._rows: dict[str, list[Tensor]] = defaultdict(list)
        for file in files:
            for name, tensor in read_state(file).items():
                self._rows[name].append(tensor)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._rows:
            raise KeyError(name)
        rows = self._rows[name]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint read back. Forget it when all is copied: what it maps stays on disk until then."""

    step: int
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]  # Any: JSON of the manifest


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    *,
    keep: int,
    together: Processes = ALONE,
) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`; its folder. All processes take part.

    Raises: CheckpointError or OSError, in every process, if the disk has less than twice the space that it needs or
        cannot be written. Older checkpoints are as they were.
    """
    partial, target = folder / f".partial-{step:08d}", folder / f"step-{step:08d}"
    mine = _own(tensors, together)
    name = STATE if together.count == 1 else f"state-{together.rank + 1:05d}-of-{together.count:05d}.safetensors"
    needed = 2 * sum(together.gathered(sum(tensor.nbytes for tensor in mine.values())))
    with together.agreed():
        if together.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            for orphan in folder.glob(".partial-*"):
                shutil.rmtree(orphan)
            if (free := shutil.disk_usage(folder).free) < needed:
                raise CheckpointError(f"{folder}: {free >> 20} MB free → {needed >> 20} MB needed to save step {step}")
            partial.mkdir()
    with together.agreed():
        write_state(partial / name, mine)
    hashes = dict(together.gathered((name, sha256_of(partial / name))))
    with together.agreed():
        if together.is_first:
            write_json(partial / MANIFEST, {**about, "format": FORMAT, "step": step, "sha256": hashes})
            if target.exists():  # damaged: the run continued from an older one
                shutil.rmtree(target)
            partial.rename(target)
            _sync(folder)
            for old in complete(folder)[:-keep]:
                shutil.rmtree(old)
    return target


def _own(tensors: Mapping[str, Tensor], together: Processes) -> dict[str, Tensor]:
    """What this process writes."""
    mine: dict[str, Tensor] = {}
    for turn, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, DTensor):
            mine[name] = tensor.to_local()
        elif turn % together.count == together.rank:
            mine[name] = tensor
    return mine


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
    return Saved(step=about["step"], tensors=Pieces([path / name for name in sorted(about["sha256"])]), about=about)


def _sync(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
