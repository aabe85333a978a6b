"""What can be trained: the contract between the loop and an autoencoder, a CLIP, a U-Net… and where to find each.

A part owns its networks and its data. The loop owns precision, optimisation, averages, checkpoints and the log. A part
must take every random number from generators keyed by what they are for, so that it has no state to save.
"""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor, nn

from mezzotint.errors import ConfigError, unknown
from mezzotint.storage import asset
from mezzotint.training.config import TrainConfig

log = logging.getLogger(__name__)

CARD = "card.json"  # beside a network that was packaged
PACKAGED = "package:"  # begins the name of a folder among this package's assets


class Batch(NamedTuple):
    """One micro-batch: samples of the part's data, and the positions of the run that they stand at."""

    step: int
    positions: range  # every random draw of a sample is keyed by its position
    samples: list[int]
    per_step: int  # positions in the whole step: all micro-batches and processes together


class Loss(NamedTuple):
    """The scalar to differentiate, and what else should be in the log."""

    total: Tensor
    parts: Mapping[str, Tensor]


class Part(Protocol):
    """Something trainable. `players` take turns within a step (a generator and its discriminator); most have one."""

    @property
    def players(self) -> Mapping[str, nn.Module]:
        """The float32 weights, by player."""
        ...

    @property
    def count(self) -> int:
        """Number of samples."""
        ...

    @property
    def groups(self) -> Sequence[str] | None:
        """A label per sample if samples of one label should share batches."""
        ...

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        """The player's loss; None if it does not play at this step. `networks` hold the weights to use."""
        ...

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Held-out measures, the same numbers for the same weights whenever asked."""
        ...

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        """One picture that shows how far it has come; None if there is nothing to show."""
        ...

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write what other runs and checkpoints need of the trained networks."""
        ...


@runtime_checkable
class Bucketed(Protocol):
    """A part whose samples may have several shapes."""

    @property
    def buckets(self) -> Sequence[Hashable] | None:
        """The shape of every sample: batches never mix them. None if all are alike."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Where a part finds its data, the runs it builds on, and room for caches."""

    data: Path
    needs: Mapping[str, Path]
    cache: Path

    def run(self, role: str) -> Path:
        """Folder with the exported networks of the run or the package that plays `role`, or the model that does: a
        folder or a file.

        Raises: ConfigError if the recipe names none or it has not been trained yet.
        """
        if role not in self.needs:
            raise ConfigError(f"needs.{role}: this recipe builds on a trained {role}; name its run folder or a model")
        path = self.needs[role]
        if (path / "export").exists():
            return path / "export"
        if _is_trained(path):
            return path
        raise ConfigError(f"{path}: no exported networks; train the {role} first, or name a model: needs.{role}=PATH")


def place_of(said: str, run: Path) -> Path:
    """The folder or file that an entry of `needs` names, seen from the folder of the run that needs it.

    `a | b` is a if something trained is there, else b; `package:NAME` is among this package's assets.
    """
    places = [
        asset(name.removeprefix(PACKAGED)) if name.startswith(PACKAGED) else (run / name).resolve()
        for name in (part.strip() for part in said.split("|"))
    ]
    found = next((place for place in places if _is_trained(place)), places[0])
    if found != places[0]:
        log.info("%s is not there: building on %s", places[0], found)
    return found


def _is_trained(place: Path) -> bool:
    """Whether there is a run with exported networks, a packaged network, or a model."""
    return place.is_file() or any((place / name).exists() for name in ("export", CARD, "model_index.json"))


Make = Callable[[TrainConfig, Inputs], Part]

PARTS = {
    "autoencoder": "mezzotint.training.autoencoder:AutoencoderPart",
    "clip": "mezzotint.training.clip:ClipPart",
    "unet": "mezzotint.training.unet:UNetPart",
}


def make(config: TrainConfig, inputs: Inputs) -> Part:
    """The part that a recipe asks for.

    Raises: ConfigError for an unknown part or settings that do not suit it.
    """
    if config.part not in PARTS:
        raise ConfigError(f"recipe.part: {unknown('part', config.part, PARTS)}")
    module, name = PARTS[config.part].split(":")
    create: Make = getattr(import_module(module), name)
    return create(config, inputs)
