"""Trained networks on disk between runs: weights as safetensors, the configuration as JSON beside them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mezzotint.checkpoints.files import read_json, read_state, write_json, write_state
from mezzotint.training.config import parse

T = TypeVar("T")


def write_network(folder: Path, name: str, network: nn.Module, config: Any) -> None:  # Any: a configuration dataclass
    """`name.safetensors` (float32) and `name.json`."""
    write_state(folder / f"{name}.safetensors", network.state_dict(), dtype=torch.float32)
    write_json(folder / f"{name}.json", asdict(config))


def read_config(folder: Path, name: str, kind: type[T]) -> T:
    """The configuration of a written network.

    Raises: CheckpointError if it is not there.
    """
    path = folder / f"{name}.json"
    return parse(kind, read_json(path), where=str(path))


def read_weights(folder: Path, name: str, network: nn.Module) -> None:
    """Fill a network with written weights; every key must fit."""
    network.load_state_dict(read_state(folder / f"{name}.safetensors"))
