"""The loop that trains every part, and continues bit for bit from wherever it was stopped.

A step: each player's micro-batches forward and backward, gradients into float32, clipping, AdamW, averages. Learning
rate, data order and every random draw are pure functions of the step, so a checkpoint is weights, optimiser, averages and
the state of PyTorch's generator (for networks with dropout).
"""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.data.order import Order, key
from mezzotint.errors import CheckpointError, ConfigError, MezzotintError
from mezzotint.training import ema, state
from mezzotint.training.config import TrainConfig
from mezzotint.training.journal import Journal
from mezzotint.training.part import Batch, Part
from mezzotint.training.precision import ExplicitAttention, Working

log = logging.getLogger(__name__)

Evaluate = Callable[[int, Path], None]


class TrainingError(MezzotintError):
    """Training cannot go on: a loss or gradient that is not finite."""


class Run:
    """One part in training: everything that a checkpoint holds, and the steps that change it."""

    def __init__(self, part: Part, config: TrainConfig) -> None:
        self.part, self.config = part, config
        self.step = 0
        self.order = Order(part.count, config.seed, part.groups)
        self.working = Working(part.players, torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32)
        self.main = next(iter(part.players))
        self.optimizers = {
            name: torch.optim.AdamW(
                network.parameters(), lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_epsilon, weight_decay=config.adam_weight_decay, fused=True,
            )
            for name, network in part.players.items()
        }  # fmt: skip
        weights = list(part.players[self.main].parameters())
        self.averages = {average.name: [w.detach().clone() for w in weights] for average in config.ema}
        torch.manual_seed(key(config.seed, "global"))

    def take_step(self) -> dict[str, float]:
        """Train one step; what should be logged about it.

        Raises: TrainingError if a loss or a gradient is not finite; weights are those before the step.
        """
        record: dict[str, float] = {}
        rate = self.config.rate(self.step)
        for player in self.part.players:
            losses = self._gradients(player)
            if not losses:
                continue
            norm = torch.nn.utils.clip_grad_norm_(self.part.players[player].parameters(), self.config.max_grad_norm)
            values = {name: float(total) for name, total in losses.items()} | {f"{player}.gradient": float(norm)}
            if bad := [name for name, value in values.items() if not math.isfinite(value)]:
                raise TrainingError(f"step {self.step}: {bad[0]} is {values[bad[0]]}")
            optimizer = self.optimizers[player]
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            self.working.refresh(player)
            record |= values
        self.step += 1
        for average in self.config.ema:
            weights = [w.detach() for w in self.part.players[self.main].parameters()]
            ema.update(self.averages[average.name], weights, average, self.step)
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
        """Leave the player's mean gradient in its master; its mean losses, or {} if it does not play."""
        batches = self.batches()
        totals: dict[str, Tensor] = {}
        for batch in batches:
            self.working.clear()
            with ExplicitAttention():
                loss = self.part.loss(player, self.working.networks, batch)
                if loss is None:
                    return {}
                (loss.total / len(batches)).backward()
            self.working.collect(player)
            for name, value in {player: loss.total, **loss.parts}.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().float() / len(batches)
        return totals

    def validate(self) -> dict[str, float]:
        """Held-out measures of the weights and of every average, the latter with its name behind an @."""
        measured = self._measure()
        for name, average in self.averages.items():
            self.working_load(average)
            measured |= {f"{measure}@{name}": value for measure, value in self._measure().items()}
        self.restore()
        return measured

    def _measure(self) -> dict[str, float]:
        with torch.no_grad(), ExplicitAttention():
            return self.part.validate(self.working.networks)

    def working_load(self, weights: list[Tensor]) -> None:
        """Work with other weights of the main player until `restore`."""
        if self.working.is_copy:
            self.working.load(self.main, weights)
        else:
            self._kept = [w.detach().clone() for w in self.part.players[self.main].parameters()]
            self.working.load(self.main, weights)

    def restore(self) -> None:
        """Work with the trained weights again."""
        if self.working.is_copy:
            self.working.refresh(self.main)
        elif hasattr(self, "_kept"):
            self.working.load(self.main, self._kept)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, by name."""
        held: dict[str, Tensor] = {"random": torch.get_rng_state()}
        for player, network in self.part.players.items():
            held |= {f"network.{player}.{name}": tensor for name, tensor in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                kept = self.optimizers[player].state.get(parameter, {})
                held |= {f"optimizer.{player}.{name}.{what}": value for what, value in kept.items()}
        names = [name for name, _ in self.part.players[self.main].named_parameters()]
        for average, weights in self.averages.items():
            held |= {f"average.{average}.{name}": w for name, w in zip(names, weights, strict=True)}
        return held

    def restore_from(self, saved: state.Saved) -> None:
        """Continue from a checkpoint.

        Raises: CheckpointError if it was made by another recipe or lacks something.
        """
        if saved.about["trajectory"] != self.config.trajectory():
            raise CheckpointError(f"step {saved.step} was trained with other settings; use the same recipe or another --out")
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
                if kept:
                    self.optimizers[player].state[parameter] = kept
        for average, weights in self.averages.items():
            for (name, _), weight in zip(self.part.players[self.main].named_parameters(), weights, strict=True):
                weight.copy_(held[f"average.{average}.{name}"])
        torch.set_rng_state(held["random"])


def train(
    part: Part,
    config: TrainConfig,
    folder: Path,
    *,
    is_continued: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    evaluate: Evaluate | None = None,
) -> bool:
    """Train until `max_train_steps`, leaving checkpoints, log.jsonl, sheets and the exported networks in `folder`.

    True if it reached the end, False if `should_stop` said so first (the checkpoint is then up to date). `evaluate` is
    called with the step and the folder of its exported networks after every validation.

    Raises: ConfigError if the folder holds a run and `is_continued` is False; TrainingError for losses that are not
        finite, with the batch saved in nonfinite.json.
    """
    run = Run(part, config)
    saves = folder / "checkpoints"
    saved = state.newest(saves)
    if saved is not None:
        if not is_continued:
            raise ConfigError(f"{folder}: holds a run at step {saved.step}; continue it with --resume auto, or take another --out")
        run.restore_from(saved)
        log.info("continuing at step %d", run.step)
    journal = Journal(folder, keep_until=run.step)
    about: dict[str, Any] = {
        "trajectory": config.trajectory(),
        "execution": {"torch": torch.__version__, "threads": torch.get_num_threads(), "precision": config.mixed_precision},
    }
    saved_at = run.step
    taken, first = 0.0, run.step  # seconds in steps, without validation and saving
    while run.step < config.max_train_steps:
        if should_stop():
            if saved_at != run.step:
                state.save(saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit)
            return False
        begun = time.monotonic()
        try:
            record = run.take_step()
        except TrainingError:
            batches = [{"positions": [*batch.positions], "samples": batch.samples} for batch in run.batches()]
            (folder / "nonfinite.json").write_text(json.dumps({"step": run.step, "batches": batches}) + "\n", "utf-8")
            raise
        taken += time.monotonic() - begun
        is_last = run.step == config.max_train_steps
        if run.step % config.logging_steps == 0 or is_last:
            pace = taken / (run.step - first)
            size = config.train_batch_size * config.gradient_accumulation_steps
            left = pace * (config.max_train_steps - run.step)
            journal.add(run.step, "train", record, {"samples_per_second": size / pace, "minutes_left": left / 60})
        if run.step % config.validation_steps == 0 or is_last:
            journal.add(run.step, "held-out", run.validate(), {})
            export(run, folder / "export")
            if evaluate is not None:
                evaluate(run.step, folder / "export")
        if config.snapshot_steps and run.step % config.snapshot_steps == 0:
            _snapshot(run, folder / "snapshots")
        if run.step % config.checkpointing_steps == 0 or is_last:
            state.save(saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit)
            saved_at = run.step
    return True


def export(run: Run, folder: Path) -> None:
    """Write the networks, with the first average's weights if there is one, and a sheet beside the folder."""
    if run.averages:
        run.working_load(next(iter(run.averages.values())))
    networks = dict(run.working.networks)
    with torch.no_grad(), ExplicitAttention():
        sheet = run.part.sheet(networks)
    if sheet is not None:
        sheets = folder.parent / "sheets"
        sheets.mkdir(parents=True, exist_ok=True)
        sheet.save(sheets / f"step-{run.step:08d}.png")
    run.restore()
    # In float32: the working copy would round the weights.
    masters = run.part.players
    kept = [w.detach().clone() for w in masters[run.main].parameters()]
    with torch.no_grad():
        if run.averages:
            torch._foreach_copy_(list(masters[run.main].parameters()), next(iter(run.averages.values())))  # pyright: ignore[reportPrivateUsage]  # no public name
        try:
            run.part.export(masters, folder)
        finally:
            torch._foreach_copy_(list(masters[run.main].parameters()), kept)  # pyright: ignore[reportPrivateUsage]  # no public name


def _snapshot(run: Run, folder: Path) -> None:
    """Keep the averages of this step in float16: enough for sums of a few of them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    held = {name: tensor.half() for name, tensor in run.tensors().items() if name.startswith("average.power")}
    partial = folder / ".partial"
    save_file(held, partial)
    partial.replace(folder / f"step-{run.step:08d}.safetensors")
