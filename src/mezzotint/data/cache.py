"""Tensors computed once and kept on disk under a key that covers everything they depend on.

A cache is one safetensors file per shard; each appears complete or not at all, so an interrupted computation continues
at the first missing shard.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mezzotint.checkpoints.files import read_state, write_state

log = logging.getLogger(__name__)

SHARD = 4096


def digest_of(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cached(folder: Path, depends_on: Mapping[str, object], count: int, compute: Callable[[range], Tensor]) -> Tensor:
    """Rows 0 … count - 1 of what `compute` gives for ranges of rows, from disk where they are there already.

    `depends_on` is everything that decides the values, as JSON; it is stored in every shard.
    """
    said = json.dumps({**depends_on, "count": count, "shard": SHARD}, sort_keys=True)
    place = folder / hashlib.sha256(said.encode()).hexdigest()[:32]
    place.mkdir(parents=True, exist_ok=True)
    shards: list[Tensor] = []
    for start in range(0, count, SHARD):
        path = place / f"{start // SHARD:05d}.safetensors"
        if not path.exists():
            rows = range(start, min(start + SHARD, count))
            log.info("computing %s rows %d to %d of %d", depends_on.get("what", "cache"), rows.start, rows.stop, count)
            write_state(path, {"rows": compute(rows)}, {"depends_on": said})
        shards.append(read_state(path)["rows"])
    return torch.cat(shards)
