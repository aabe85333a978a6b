"""The smallest part there is: a perceptron with dropout learns a fixed function of keyed inputs, against an opponent.

It is the example of a new part: the loop gives it precision, averages, checkpoints, the log and exact resume. Dropout
makes it depend on PyTorch's own generator, so that a run which does not restore that is caught.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mezzotint.data.order import keyed
from mezzotint.training.config import DataConfig, EmaConfig, TrainConfig
from mezzotint.training.network import write_network
from mezzotint.training.part import Batch, Loss

DATA = DataConfig(resolution=8)
AVERAGES = (EmaConfig(kind="power", value=0.05), EmaConfig(kind="classic", value=0.9))


def config(**changes: object) -> TrainConfig:
    """A short recipe with everything that a checkpoint can hold."""
    settings: dict[str, object] = {
        "part": "toy", "data": DATA, "settings": {}, "max_train_steps": 9, "train_batch_size": 4,
        "learning_rate": 0.05, "gradient_accumulation_steps": 2, "mixed_precision": "no", "ema": AVERAGES,
        "logging_steps": 1, "checkpointing_steps": 2, "validation_steps": 3, "seed": 5,
    }  # fmt: skip
    return TrainConfig(**(settings | changes))  # pyright: ignore[reportArgumentType]  # the names are those of the fields


class ToyPart:
    """Learns |x| with dropout; the opponent, which joins at step 4, learns the learner's error."""

    count = 11
    groups: list[str] | None = None

    def __init__(self) -> None:
        self.players: dict[str, nn.Module] = {
            "learner": nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3)),
            "opponent": nn.Linear(3, 3),
        }
        for network in self.players.values():
            for parameter in network.parameters():
                nn.init.normal_(parameter, generator=keyed("toy", parameter.numel()))

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        if player == "opponent" and batch.step < 4:
            return None
        noise = [0.01 * torch.randn(3, generator=keyed("noise", position)) for position in batch.positions]
        x = torch.stack([torch.randn(3, generator=keyed("x", sample)) for sample in batch.samples]) + torch.stack(noise)
        dtype = next(networks[player].parameters()).dtype
        error = networks["learner"](x.to(dtype)).float() - x.abs()
        if player == "opponent":
            error = networks["opponent"](x.to(dtype)).float() - error.detach()
        return Loss(error.square().mean(), {f"{player}.largest": error.abs().max()})

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        x = torch.linspace(-1, 1, 12).view(4, 3)
        learner = networks["learner"].eval()
        error = (learner(x.to(next(learner.parameters()).dtype)).float() - x.abs()).square().mean()
        learner.train()
        return {"error": float(error)}

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        return None

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        write_network(folder, "learner", networks["learner"], DATA)


def stacked(weights: list[Tensor]) -> Tensor:
    """All values of a list of tensors in a row."""
    return torch.cat([weight.flatten() for weight in weights])
