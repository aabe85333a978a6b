"""One part in training: everything that a checkpoint holds, and the step that changes it.

A step: each player's micro-batches forward and backward, gradients into float32, clipping, AdamW, averages. Learning
rate, data order and every random draw are pure functions of the step (of its micro-batch for networks with dropout), so
a checkpoint is weights, optimiser and averages.
"""

import copy
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.data.batches import BucketOrder
from mezzotint.data.order import Order, key
from mezzotint.errors import CheckpointError, MezzotintError
from mezzotint.kernels.training import TrainingKernels
from mezzotint.training import ema, state
from mezzotint.training.config import TrainConfig
from mezzotint.training.part import Batch, Bucketed, Loss, Part
from mezzotint.training.precision import ExplicitAttention, Working
from mezzotint.training.processes import ALONE, Processes, shard, spread, whole


class TrainingError(MezzotintError):
    """Training cannot go on: a loss or gradient that is not finite."""


class Run:
    """The state of a run at `step`, the number of steps taken; in several processes, each one's part of it.

    Raises: ConfigError if the micro-batches of a step cannot be shared out.
    """

    def __init__(
        self, part: Part, config: TrainConfig, together: Processes = ALONE, kernels: TrainingKernels = "torch"
    ) -> None:
        self.part, self.config, self.together = part, config, together
        self.step = 0
        buckets = part.buckets if isinstance(part, Bucketed) else None
        self.order = (
            Order(part.count, config.seed, part.groups)
            if buckets is None
            else BucketOrder(buckets, config.train_batch_size, config.seed)
        )
        together.share(self.batches())
        self.dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
        self.working = Working(part.players, self.dtype, kernels)
        self.flops: dict[str, int] = {}  # of a micro-batch: three times the forward pass of each player's loss
        self.shapes: dict[str, nn.Module] = {}  # of sharded players, without weights
        if config.sharded and together.count > 1:
            self.shapes = {name: copy.deepcopy(network).to("meta") for name, network in part.players.items()}
            networks = [*part.players.values(), *self.working.networks.values()]
            for network in dict.fromkeys(networks):  # in float32 both are the same
                shard(network)
        self.main = next(iter(part.players))
        self.optimizers = {name: optimizer(network, config) for name, network in part.players.items()}
        self.averages = {average.name: [w.detach().clone() for w in self.weights()] for average in config.ema}

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
            values = {name: float(total) for name, total in losses.items()} | {f"{player}.gradient": float(whole(norm))}
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
        """The micro-batches of the coming step, those of all processes."""
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
        for batch in self.together.share(batches):
            torch.manual_seed(key(self.config.seed, "dropout", batch.positions.start))  # pyright: ignore[reportUnknownMemberType]  # untyped
            with ExplicitAttention():
                loss = self._loss(player, batch)
                if loss is None:
                    return {}
                torch.autograd.backward(loss.total / len(batches))
            self.working.collect(player)
            for name, value in {player: loss.total, **loss.parts}.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().float() / len(batches)
        grads = [weight.grad for weight in self.part.players[player].parameters() if weight.grad is not None]
        self.together.add([*([] if self.shapes else grads), *totals.values()])  # FSDP2 has added sharded ones
        return totals

    def _loss(self, player: str, batch: Batch) -> Loss | None:
        """The part's loss; the operations of the first are counted."""
        if player in self.flops:
            return self.part.loss(player, self.working.networks, batch)
        with FlopCounterMode(display=False) as counter:
            loss = self.part.loss(player, self.working.networks, batch)
        if loss is not None:
            self.flops[player] = 3 * counter.get_total_flops()
        return loss

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
    def averaged(self) -> Generator[Mapping[str, nn.Module]]:
        """Within it the first average, if there is one, is in the weights; the players, gathered if sharded."""
        weights = next(iter(self.averages.values()), self.weights())
        players = (self.part.players[self.main], self.working.networks[self.main])
        with torch.no_grad(), ExplicitAttention(), swapped(players[0], weights), swapped(players[1], weights):
            yield {name: self._gathered(name, network) for name, network in self.part.players.items()}

    def _gathered(self, player: str, network: nn.Module) -> nn.Module:
        if not self.shapes:
            return network
        gathered = copy.deepcopy(self.shapes[player])
        gathered.load_state_dict({name: whole(w) for name, w in network.state_dict().items()}, assign=True)
        return gathered

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        held: dict[str, Tensor] = {}
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
    def _fill(self, held: Mapping[str, Tensor]) -> None:
        for player, network in self.part.players.items():
            own = network.state_dict()
            network.load_state_dict({name: spread(held[f"network.{player}.{name}"], w) for name, w in own.items()})
            self.working.refresh(player)
            for name, parameter in network.named_parameters():
                prefix = f"optimizer.{player}.{name}."
                kept = {what.removeprefix(prefix): held[what] for what in held if what.startswith(prefix)}
                if kept:  # a player that has not played yet has none; clones, because what was read is a mapped file
                    self.optimizers[player].state[parameter] = {
                        what: (spread(value, parameter) if value.shape == parameter.shape else value).clone()
                        for what, value in kept.items()
                    }
        for average, weights in self.averages.items():
            for name, weight in zip(self._names(), weights, strict=True):
                weight.copy_(spread(held[f"average.{average}.{name}"], weight))


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
