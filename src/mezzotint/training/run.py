"""One part in training: everything that a checkpoint holds, and the step that changes it.

A step: each player's micro-batches forward and backward, gradients into float32, clipping, AdamW, averages. Learning
rate, data order and every random draw are pure functions of the step, so a checkpoint is weights, optimiser, averages
and the state of PyTorch's generator (for networks with dropout).
"""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mezzotint.data.order import Order, keyed
from mezzotint.errors import CheckpointError, MezzotintError
from mezzotint.training import ema, state
from mezzotint.training.config import TrainConfig
from mezzotint.training.part import Batch, Part
from mezzotint.training.precision import ExplicitAttention, Working


class TrainingError(MezzotintError):
    """Training cannot go on: a loss or gradient that is not finite."""


class Run:
    """The state of a run at `step`, the number of steps taken."""

    def __init__(self, part: Part, config: TrainConfig) -> None:
        self.part, self.config = part, config
        self.step = 0
        self.order = Order(part.count, config.seed, part.groups)
        self.working = Working(part.players, torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32)
        self.main = next(iter(part.players))
        self.optimizers = {name: optimizer(network, config) for name, network in part.players.items()}
        self.averages = {average.name: [w.detach().clone() for w in self.weights()] for average in config.ema}
        torch.set_rng_state(keyed(config.seed, "global").get_state())

    def weights(self) -> list[Tensor]:
        """The float32 weights that are averaged: those of the first player."""
        return [parameter.detach() for parameter in self.part.players[self.main].parameters()]

    def take_step(self) -> dict[str, float]:
        """Train one step; what should be logged about it.

        Raises: TrainingError if a loss or a gradient is not finite, before the player's weights change.
        """
        record: dict[str, float] = {}
        rate = self.config.rate(self.step)
        for player, network in self.part.players.items():
            losses = self._gradients(player)
            if not losses:
                continue
            norm = nn.utils.clip_grad_norm_(network.parameters(), self.config.max_grad_norm)
            values = {name: float(total) for name, total in losses.items()} | {f"{player}.gradient": float(norm)}
            if bad := [name for name, value in values.items() if not math.isfinite(value)]:
                raise TrainingError(f"step {self.step}: {bad[0]} is {values[bad[0]]}")
            for group in self.optimizers[player].param_groups:
                group["lr"] = rate
            self.optimizers[player].step()  # pyright: ignore[reportUnknownMemberType]  # torch leaves its closure untyped
            self.working.refresh(player)
            record |= values
        self.step += 1
        for average in self.config.ema:
            ema.update(self.averages[average.name], self.weights(), average, self.step)
        return record | {"rate": rate}

    def batches(self) -> list[Batch]:
        """The micro-batches of the coming step."""
        size, count = self.config.train_batch_size, self.config.gradient_accumulation_steps
        first = self.step * size * count
        return [
            Batch(self.step, range(start, start + size), self.order.samples(start, size), size * count)
            for start in range(first, first + size * count, size)
        ]

    def _gradients(self, player: str) -> dict[str, Tensor]:
        """Leave the player's mean gradient in its float32 weights; its mean losses, or {} if it does not play."""
        batches = self.batches()
        totals: dict[str, Tensor] = {}
        self.working.clear()
        for batch in batches:
            with ExplicitAttention():
                loss = self.part.loss(player, self.working.networks, batch)
                if loss is None:
                    return {}
                torch.autograd.backward(loss.total / len(batches))
            self.working.collect(player)
            for name, value in {player: loss.total, **loss.parts}.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().float() / len(batches)
        return totals

    def validate(self) -> dict[str, float]:
        """Held-out measures of the weights and of every average, the latter with its name behind an @."""
        measured: dict[str, float] = {}
        with torch.no_grad(), ExplicitAttention():
            for name, weights in {"": self.weights(), **self.averages}.items():
                with swapped(self.working.networks[self.main], weights):
                    found = self.part.validate(self.working.networks)
                measured |= {f"{measure}@{name}" if name else measure: value for measure, value in found.items()}
        return measured

    @contextmanager
    def averaged(self) -> Generator[None]:
        """Within it the first average, if there is one, is in the float32 weights and in the working ones."""
        weights = next(iter(self.averages.values()), self.weights())
        players = (self.part.players[self.main], self.working.networks[self.main])
        with torch.no_grad(), ExplicitAttention(), swapped(players[0], weights), swapped(players[1], weights):
            yield

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        held: dict[str, Tensor] = {"random": torch.get_rng_state()}
        for player, network in self.part.players.items():
            held |= {f"network.{player}.{name}": tensor for name, tensor in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                kept = cast(
                    "dict[str, Tensor]", self.optimizers[player].state.get(parameter, {})
                )  # AdamW keeps tensors
                held |= {f"optimizer.{player}.{name}.{what}": value for what, value in kept.items()}
        for average, weights in self.averages.items():
            held |= {f"average.{average}.{name}": w for name, w in zip(self._names(), weights, strict=True)}
        return held

    def _names(self) -> list[str]:
        return [name for name, _ in self.part.players[self.main].named_parameters()]

    def restore(self, saved: state.Saved) -> None:
        """Continue from a checkpoint.

        Raises: CheckpointError if it was made by another recipe or lacks something.
        """
        if saved.about["trajectory"] != self.config.trajectory():
            raise CheckpointError(f"step {saved.step} was trained with other settings; use its recipe or another --out")
        try:
            self._fill(saved.tensors)
        except KeyError as error:
            raise CheckpointError(f"step {saved.step}: the checkpoint lacks {error.args[0]!r}") from error
        self.step = saved.step

    @torch.no_grad()
    def _fill(self, held: dict[str, Tensor]) -> None:
        for player, network in self.part.players.items():
            network.load_state_dict({name: held[f"network.{player}.{name}"] for name in network.state_dict()})
            self.working.refresh(player)
            for name, parameter in network.named_parameters():
                prefix = f"optimizer.{player}.{name}."
                kept = {what.removeprefix(prefix): value for what, value in held.items() if what.startswith(prefix)}
                if kept:  # a player that has not played yet has none
                    self.optimizers[player].state[parameter] = kept
        for average, weights in self.averages.items():
            for name, weight in zip(self._names(), weights, strict=True):
                weight.copy_(held[f"average.{average}.{name}"])
        torch.set_rng_state(held["random"])


def optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW as the recipe wants it; vectors (biases, norms, a temperature) do not decay."""
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.adam_weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


@contextmanager
def swapped(network: nn.Module, weights: Sequence[Tensor]) -> Generator[None]:
    """Within it the network has other weights; afterwards its own again, bit for bit. No gradients."""
    parameters = list(network.parameters())
    kept = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        try:
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            yield
        finally:
            for parameter, weight in zip(parameters, kept, strict=True):
                parameter.copy_(weight)
