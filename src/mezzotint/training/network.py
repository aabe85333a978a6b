"""Trained networks on disk between runs: weights as safetensors, the configuration as JSON beside them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import nn

from mezzotint.errors import CheckpointError
from mezzotint.training.config import parse

T = TypeVar("T")


def write_network(folder: Path, name: str, network: nn.Module, config: Any) -> None:  # Any: a configuration dataclass
    """`name.safetensors` (float32) and `name.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: tensor.detach().float().contiguous() for key, tensor in network.state_dict().items()}
    for path, write in (
        (folder / f"{name}.safetensors", lambda path: save_file(weights, path)),
        (folder / f"{name}.json", lambda path: path.write_text(json.dumps(asdict(config), indent=1) + "\n", "utf-8")),
    ):
        partial = path.with_suffix(".partial")
        write(partial)
        partial.replace(path)


def read_config(folder: Path, name: str, kind: type[T]) -> T:
    """The configuration of a written network.

    Raises: CheckpointError if it is not there.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise CheckpointError(f"{path}: missing; the run that makes it has not finished")
    return parse(kind, json.loads(path.read_text("utf-8")), where=str(path))


def read_weights(folder: Path, name: str, network: nn.Module) -> None:
    """Fill a network with written weights; every key must fit."""
    network.load_state_dict(load_file(folder / f"{name}.safetensors"))
