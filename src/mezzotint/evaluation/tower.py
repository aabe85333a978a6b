"""Image towers of CLIP files: ours, transformers' and OpenCLIP's layouts, and the evaluator inside this package."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from mezzotint.checkpoints.clip import read_clip
from mezzotint.checkpoints.files import sha256_of
from mezzotint.evaluation.protocols import Channels
from mezzotint.models.clip import CLIP_MEAN, CLIP_STD, ImageTower
from mezzotint.storage import asset

PACKAGED = "package:"  # begins the name of a folder among this package's assets
EVALUATOR = f"{PACKAGED}icons-parts/evaluator"


class Read(NamedTuple):
    """An image tower in float32, the SHA-256 of its weights' files, and what its pictures are normalised by."""

    tower: ImageTower
    sha256: str
    mean: Channels
    std: Channels


def read_tower(path: str | Path) -> Read:
    """The image tower of a CLIP: a folder of ours or of transformers, an OpenCLIP folder or file; or `package:NAME`.

    The hash is that of the file; of several shards, that of their hashes.
    Raises: CheckpointError if nothing is there, or its tensors do not fit together.
    """
    found = read_clip(place_of(path))
    hashes = [sha256_of(source) for source in found.sources]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Read(found.build().image, digest, CLIP_MEAN, CLIP_STD)


def place_of(path: str | Path) -> Path:
    """Where a CLIP is: a path, or `package:NAME` or "evaluator" for what is inside this package."""
    path = EVALUATOR if path == "evaluator" else path
    if isinstance(path, str) and path.startswith(PACKAGED):
        return asset(path.removeprefix(PACKAGED))
    return Path(path)
