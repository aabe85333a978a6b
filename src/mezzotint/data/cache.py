"""Tensors computed once and kept on disk under a key that covers everything they depend on.

A cache file is one safetensors file per shard, written to a temporary name and renamed, so that a half-written one is
never read and an interrupted computation continues at the first missing shard.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file({"rows": compute(rows).contiguous()}, partial, metadata={"depends_on": said})
            partial.replace(path)
        shards.append(load_file(path)["rows"])
    return torch.cat(shards)
