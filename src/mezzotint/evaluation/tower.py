"""Image towers of CLIP files: ours, transformers' and OpenCLIP's layouts, and the evaluator inside this package."""

from pathlib import Path
from typing import NamedTuple

from mezzotint.evaluation.protocols import Channels
from mezzotint.models.clip import ImageTower


class Read(NamedTuple):
    """An image tower in float32, the SHA-256 of its weights' file, and what its pictures are normalised by."""

    tower: ImageTower
    sha256: str
    mean: Channels
    std: Channels


def read_tower(path: str | Path) -> Read:
    """The image tower of a CLIP: a folder of ours or of transformers, an OpenCLIP folder or file; or `package:NAME`.

    Raises: CheckpointError if nothing is there, or its tensors do not fit together.
    """
    raise NotImplementedError
