"""The loop that trains every part, and continues bit for bit from wherever it was stopped.

A run's folder holds `checkpoints/`, `log.jsonl`, `sheets/`, `export/` (the networks, with the first average's weights)
and, if the recipe wants them, `snapshots/` of the averages.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mezzotint.checkpoints.files import write_state
from mezzotint.errors import ConfigError
from mezzotint.training import state
from mezzotint.training.config import TrainConfig
from mezzotint.training.journal import Journal
from mezzotint.training.part import Part
from mezzotint.training.run import Run, TrainingError

log = logging.getLogger(__name__)

Evaluate = Callable[[int, Path], None]
"""Called with the step and the folder of the exported networks after every validation."""


def train(
    part: Part,
    config: TrainConfig,
    folder: Path,
    *,
    is_continued: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    evaluate: Evaluate | None = None,
) -> bool:
    """Train until `max_train_steps`; True if it got there, False if `should_stop` said so first (all is saved then).

    Raises: ConfigError if the folder holds a run and `is_continued` is False; TrainingError for a loss or gradient that
        is not finite, with the batch written to nonfinite.json.
    """
    run = Run(part, config)
    saves = folder / "checkpoints"
    saved = state.newest(saves)
    if saved is not None:
        if not is_continued:
            raise ConfigError(f"{folder} holds a run at step {saved.step}; resume it, or take another --out")
        run.restore(saved)
        log.info("continuing at step %d", run.step)
    journal = Journal(folder, keep_until=run.step)
    about = {"trajectory": config.trajectory(), "execution": execution(config)}
    if saved is not None and saved.about["execution"] != about["execution"]:
        log.warning("continued on %s, begun on %s: bits may differ", about["execution"], saved.about["execution"])
    begun_at, saved_at, seconds = run.step, run.step, 0.0  # seconds spent in steps: neither validation nor saving
    while run.step < config.max_train_steps:
        if should_stop():
            if saved_at != run.step:
                state.save(saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit)
            return False
        now = time.monotonic()
        try:
            record = run.take_step()
        except TrainingError:
            batches = [{"positions": [*batch.positions], "samples": batch.samples} for batch in run.batches()]
            (folder / "nonfinite.json").write_text(json.dumps({"step": run.step, "batches": batches}) + "\n", "utf-8")
            raise
        seconds += time.monotonic() - now
        is_last = run.step == config.max_train_steps
        if run.step % config.logging_steps == 0 or is_last:
            pace = seconds / (run.step - begun_at)
            samples = config.train_batch_size * config.gradient_accumulation_steps
            left = pace * (config.max_train_steps - run.step) / 60
            journal.add(run.step, "train", record, {"samples_per_second": samples / pace, "minutes_left": left})
        if run.step % config.validation_steps == 0 or is_last:
            journal.add(run.step, "held-out", run.validate(), {})
            export(run, folder)
            if evaluate is not None:
                evaluate(run.step, folder / "export")
        if config.snapshot_steps and run.step % config.snapshot_steps == 0:
            averages = {name: tensor for name, tensor in run.tensors().items() if name.startswith("average.power")}
            write_state(folder / "snapshots" / f"step-{run.step:08d}.safetensors", averages, dtype=torch.float16)
        if run.step % config.checkpointing_steps == 0 or is_last:
            state.save(saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit)
            saved_at = run.step
    return True


def execution(config: TrainConfig) -> dict[str, Any]:
    """What besides the recipe decides the bits of a run."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "precision": config.mixed_precision}


def export(run: Run, folder: Path) -> None:
    """Write the networks that other runs need, and a sheet of what they can do."""
    with run.averaged():
        run.part.export(run.part.players, folder / "export")
        sheet = run.part.sheet(run.working.networks)
    if sheet is not None:
        (folder / "sheets").mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "sheets" / f"step-{run.step:08d}.png")
