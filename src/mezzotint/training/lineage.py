"""A recipe carried out: its stages one after another, each a run of its own that begins with the weights before it.

The last stage is the run in the folder that was asked for; the ones before it lie inside, in stage-1, stage-2 … A
recipe that starts from another (`starts_from`) finds its run beside its own, or wherever it is told. At tiny scale,
what nobody trained is trained first, in a folder `tiny` beside the run.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from mezzotint.errors import ConfigError
from mezzotint.models.presets import PRESETS, Preset
from mezzotint.training import state
from mezzotint.training.config import TrainConfig
from mezzotint.training.journal import Journal
from mezzotint.training.loop import settled, train
from mezzotint.training.part import Inputs, make, place_of
from mezzotint.training.processes import ALONE, joined
from mezzotint.training.tiny import requirements, scaled, write_pictures
from mezzotint.training.watch import Watch

log = logging.getLogger(__name__)

NOTHING = "nothing"  # as a start: from random weights


def carry_out(
    stages: Sequence[TrainConfig],
    data: Path,
    out: Path,
    *,
    start: str | None = None,
    is_continued: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> bool:
    """Train every stage that is not finished; False if `should_stop` said so first (all is saved then).

    `watch` makes who evaluates networks, where a recipe has an `evaluation`.

    `start` says what the first stage begins with instead of its `starts_from`: a run, a model, or "nothing".
    Raises: ConfigError before the first step if something that a stage builds on is not there or does not fit.
    """
    for index, config in enumerate(stages):
        folder = folder_of(out, index, len(stages))
        needs = {role: place_of(said, out) for role, said in config.needs.items()}
        inputs = Inputs(data=data, needs=needs, cache=out.parent / "cache")
        watcher = watch(config, inputs, folder) if watch and config.evaluation and joined().is_first else None
        if len(stages) > 1 and is_finished(folder, config):
            if watcher and not settled(
                Journal(folder, keep_until=config.max_train_steps), watcher, config.max_train_steps, should_stop
            ):
                return False
            continue
        if (before := start_of(config, index, out, start if index == 0 else None)) is not None:
            needs["start"] = before
        log.info(
            "stage %d of %d: %d px, %d steps", index + 1, len(stages), config.data.resolution, config.max_train_steps
        )
        with joined().first_alone():
            part = make(config, inputs)
        if not train(part, config, folder, is_continued=is_continued, should_stop=should_stop, watcher=watcher):
            return False
    return True


def folder_of(out: Path, index: int, count: int) -> Path:
    """The run of one stage: `out` itself for the last."""
    return out if index == count - 1 else out / f"stage-{index + 1}"


def start_of(config: TrainConfig, index: int, out: Path, start: str | None) -> Path | None:
    """The run or model whose weights a stage begins with; None for random ones.

    Raises: ConfigError if it should be the run of another recipe and there is none.
    """
    if start is not None:
        return None if start == NOTHING else Path(start).resolve()
    if config.starts_from:
        beside = out.parent / config.starts_from
        if not (beside / "export").exists():
            raise ConfigError(
                f"{beside}: no exported networks; train {config.starts_from} there first, or name its weights: "
                f"--start RUN_OR_MODEL (--start {NOTHING}: random weights)"
            )
        return beside
    return out / f"stage-{index}" if index else None


def is_finished(folder: Path, config: TrainConfig) -> bool:
    """Whether a stage has taken all its steps and exported its networks."""
    done = [path.name for path in state.complete(folder / "checkpoints")]
    return f"step-{config.max_train_steps:08d}" in done[-1:] and (folder / "export").exists()


def tiny(stages: Sequence[TrainConfig], out: Path) -> tuple[TrainConfig, ...]:
    """The stages at tiny scale, building on what `train_tiny` trains beside `out`.

    Raises: ConfigError for recipes that do not train a preset of the family.
    """
    needs = {role: str(tiny_folder(out) / name) for role, (name, _) in requirements(preset_of(stages)).items()}
    return tuple(scaled(stage, needs) for stage in stages)


def train_tiny(stages: Sequence[TrainConfig], out: Path) -> Path:
    """Draw pictures and train on them what tiny stages build on, unless it is there; the folder of the pictures."""
    place = tiny_folder(out)
    pictures = place / "pictures"
    with joined().first_alone():
        if not (pictures / "metadata.jsonl").exists():
            write_pictures(pictures)
        for name, config in requirements(preset_of(stages)).values():
            if not is_finished(place / name, config):
                part = make(config, Inputs(data=pictures, needs={}, cache=place / "cache"))
                train(part, config, place / name, together=ALONE)
    return pictures


def tiny_folder(out: Path) -> Path:
    """Where tiny runs beside `out` share what they build on."""
    return (out.parent / "tiny").resolve()


def preset_of(stages: Sequence[TrainConfig]) -> Preset:
    """The preset that the last stage trains.

    Raises: ConfigError if it trains something else.
    """
    name = str(stages[-1].settings.get("preset"))
    if name not in PRESETS:
        raise ConfigError("--scale tiny: only recipes that train a preset of the family (sd-v1-1, …) can be shrunk")
    return PRESETS[name]
