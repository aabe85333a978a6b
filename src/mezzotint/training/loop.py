"""The loop that trains every part, and continues bit for bit from wherever it was stopped.

A run's folder holds `checkpoints/`, `log.jsonl`, `sheets/`, `export/` (the networks, with the first average's weights)
and, if the recipe wants them, `snapshots/` of the averages.
"""

import json
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.kernels.pages import keep_freed
from mezzotint.kernels.training import TrainingKernels, possible
from mezzotint.storage import sweep
from mezzotint.training import state
from mezzotint.training.config import TrainConfig
from mezzotint.training.journal import Journal, Pace
from mezzotint.training.part import Part
from mezzotint.training.processes import Processes, joined, whole
from mezzotint.training.run import Run, TrainingError
from mezzotint.training.watch import Watcher

log = logging.getLogger(__name__)

WRITTEN = ("export", "sheets", "snapshots")  # folders of a run that only its loop writes
EVALUATION = "evaluation"  # what records of a watcher's numbers are called


def train(
    part: Part,
    config: TrainConfig,
    folder: Path,
    *,
    is_continued: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    watcher: Watcher | None = None,
    together: Processes | None = None,
) -> bool:
    """Train until `max_train_steps`; True if it got there, False if `should_stop` said so first (all is saved then).

    Under torchrun every process calls this, and the first one writes what exists once; with `together` ALONE the caller
    trains by itself. What a full disk refuses before the end is logged, and training goes on. `watcher` gets exported
    networks at the recipe's evaluation steps; only at the end is it waited for.
    Raises: ConfigError if the folder holds a run and `is_continued` is False; TrainingError for a loss or gradient that
        is not finite, with the batches written to nonfinite.json; CheckpointError if the end cannot be saved.
    """
    together = together or joined()
    keep_freed()
    saves = folder / "checkpoints"
    saved = _found(saves, is_continued=is_continued)
    kernels = _kernels(config, saved)
    run = Run(part, config, together, kernels)
    about = {"trajectory": config.trajectory(), "execution": execution(config, together.count, kernels)}
    if saved is not None:
        _continue(run, saved, about)
    saved_at = run.step
    if together.is_first:
        for part_of in WRITTEN:
            sweep(folder / part_of)
    journal = Journal(folder, keep_until=run.step) if together.is_first else None
    pace = Pace(config.batch, run.dtype)
    while run.step < config.max_train_steps:
        if together.any(should_stop()):
            if watcher is not None:
                watcher.wait(lambda: True)
            if saved_at != run.step:
                state.save(
                    saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit, together=together
                )
            return False
        try:
            with pace.step():
                record = run.take_step()
        except TrainingError:
            batches = [{"positions": [*batch.positions], "samples": batch.samples} for batch in run.batches()]
            if together.is_first:
                told = json.dumps({"step": run.step, "batches": batches})
                (folder / "nonfinite.json").write_text(told + "\n", "utf-8")
            raise
        is_last = run.step == config.max_train_steps
        if journal and (run.step % config.logging_steps == 0 or is_last):
            flops = sum(run.flops.values()) * config.gradient_accumulation_steps / together.count
            journal.add(run.step, "train", record, pace.told(config.max_train_steps - run.step, flops))
        is_validated = run.step % config.validation_steps == 0 or is_last
        if is_validated:
            measured = run.validate()
            if journal:
                journal.add(run.step, "held-out", measured, {})
        if is_validated or config.is_evaluated(run.step):
            with _surviving("export", run.step, is_last=is_last):
                export(run, folder)
                if watcher is not None and together.is_first and config.is_evaluated(run.step):
                    watcher.look(run.step, folder / "export")
        if watcher is not None and journal and (is_validated or run.step % config.logging_steps == 0):
            tell(journal, watcher, run.step)
        if config.snapshot_steps and run.step % config.snapshot_steps == 0:
            averages = {name: whole(w) for name, w in run.tensors().items() if name.startswith("average.power")}
            with _surviving("snapshot", run.step, is_last=is_last):
                if together.is_first:
                    write_state(
                        folder / "snapshots" / f"step-{run.step:08d}.safetensors", averages, dtype=torch.float16
                    )
        if run.step % config.checkpointing_steps == 0 or is_last:
            with _surviving("checkpoint", run.step, is_last=is_last):
                state.save(
                    saves, run.step, run.tensors(), about, keep=config.checkpoints_total_limit, together=together
                )
                saved_at = run.step
    return watcher is None or journal is None or settled(journal, watcher, run.step, should_stop)


def settled(journal: Journal, watcher: Watcher, step: int, should_stop: Callable[[], bool]) -> bool:
    """Wait for numbers that are still being made, and log them; False if it should stop first."""
    watcher.wait(should_stop)
    tell(journal, watcher, step)
    return not should_stop()


def tell(journal: Journal, watcher: Watcher, until: int) -> None:
    """Log the numbers that are done, each once. Those of steps that a continued run has not come to again wait."""
    for found in watcher.found():
        if found.step <= until and not journal.has(found.step, EVALUATION):
            journal.add(found.step, EVALUATION, found.values, {})


def _found(saves: Path, *, is_continued: bool) -> state.Saved | None:
    """The newest checkpoint, if there is one."""
    saved = state.newest(saves)
    if saved is not None and not is_continued:
        raise ConfigError(f"{saves.parent} holds a run at step {saved.step}; resume it, or take another --out")
    return saved


def _kernels(config: TrainConfig, saved: state.Saved | None) -> TrainingKernels:
    """How the run computes: as it began, as far as this machine can; a new one as fast as it can."""
    if config.mixed_precision != "bf16":
        return "torch"
    return possible("native" if saved is None else saved.about["execution"].get("kernels", "torch"))


def _continue(run: Run, saved: state.Saved, about: dict[str, Any]) -> None:
    run.restore(saved)
    log.info("continuing at step %d", run.step)
    begun = {"kernels": "torch", **saved.about["execution"]}  # checkpoints of 0.1 do not say
    if begun != about["execution"]:
        log.warning("continued on %s, begun on %s: bits may differ", about["execution"], begun)


@contextmanager
def _surviving(what: str, step: int, *, is_last: bool) -> Generator[None]:
    """Within it, what cannot be written is logged, unless this is the end."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        if is_last:
            raise
        log.error("step %d has no %s, training goes on: %s", step, what, error)


def execution(config: TrainConfig, processes: int, kernels: TrainingKernels) -> dict[str, Any]:
    """What besides the recipe decides the bits of a run."""
    told = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": config.mixed_precision,
        "kernels": kernels,
    }
    return told if processes == 1 else told | {"processes": processes}


def export(run: Run, folder: Path) -> None:
    """Write the networks that other runs need, and a sheet of what they can do."""
    with run.averaged() as players:
        sheet = run.part.sheet(run.working.networks)  # by all processes: sharded networks are gathered to be used
        if not run.together.is_first:
            return
        run.part.export(players, folder / "export")
    if sheet is not None:
        (folder / "sheets").mkdir(parents=True, exist_ok=True)
        sheet.save(folder / "sheets" / f"step-{run.step:08d}.png")
