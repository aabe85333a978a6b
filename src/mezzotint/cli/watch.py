"""Evaluation beside training: a low-priority process that runs `mezzotint evaluate` on exported networks.

`evaluation/step-00002000/` of a run holds the model (removed once it is measured), the settings, and all that
`mezzotint evaluate` leaves. One step is measured at a time; what was not measured when the run stopped is measured by
the next. The process gets one thread and the lowest priority, so that training hardly notices it.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mezzotint.checkpoints.files import read_json, sha256_of
from mezzotint.errors import CheckpointError, ConfigError, RequestError
from mezzotint.evaluation.spec import spec_of
from mezzotint.storage import atomic
from mezzotint.training.config import TrainConfig
from mezzotint.training.part import Inputs
from mezzotint.training.watch import Found, unet_settings, write_model

log = logging.getLogger(__name__)

FOLDER, MODEL, SETTINGS, WEIGHTS, REPORT, FAILED = (
    "evaluation", "model", "settings.yaml", "weights.txt", "report.json", "failed.txt",
)  # fmt: skip
OURS = {"model", "out", "workers", "shard"}  # settings that a recipe cannot choose
WAIT_S = 0.5


class EvaluationWatch:
    """Measures a run's networks at the steps that its recipe names. Made for `carry_out`.

    Raises: ConfigError if the settings are wrong, or the recipe trains nothing that makes pictures.
    """

    def __init__(self, config: TrainConfig, inputs: Inputs, folder: Path) -> None:
        self._config, self._inputs, self._folder = config, inputs, folder / FOLDER
        self._settings = {name: value for name, value in config.evaluation.items() if name != "steps"}
        unet_settings(config)
        if ours := OURS & self._settings.keys():
            raise ConfigError(f"evaluation.{min(ours)}: a run decides this itself; leave it out")
        try:
            spec_of({**self._settings, "model": "run"})
        except RequestError as error:
            raise ConfigError(f"evaluation: {error}") from None
        self._running: tuple[Path, subprocess.Popen[bytes]] | None = None
        self._known: dict[Path, Found] = {}
        self._is_over = False  # nothing is started any more

    def look(self, step: int, export: Path) -> None:
        """Keep the networks as a model, unless this step's are kept already; they are measured in their turn."""
        place = self._folder / f"step-{step:08d}"
        weights = sha256_of(export / "unet.safetensors")
        if (place / WEIGHTS).is_file() and (place / WEIGHTS).read_text("utf-8") == weights:
            self._go_on()
            return
        if self._running and self._running[0] == place:
            self._stop()
        self._known.pop(place, None)
        shutil.rmtree(place, ignore_errors=True)  # of a life of this run that took other steps
        write_model(self._config, export, self._inputs, place / MODEL)
        told = {**self._settings, "model": str(place / MODEL), "out": str(place), "workers": 1}
        _write(place / SETTINGS, yaml.safe_dump(_plain(told)))
        _write(place / WEIGHTS, weights)  # last: what has it is complete
        self._go_on()

    def found(self) -> Sequence[Found]:
        """Numbers of every step that is measured."""
        self._go_on()
        for place in self._places():
            if place not in self._known and _is_done(place):
                self._known[place] = Found(_step(place), _values(read_json(place / REPORT)))
        return [*self._known.values()]

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Measure what is left. When it should stop, the process is ended; its work so far is kept."""
        while self._go_on():
            if should_stop():
                self._is_over = True
                self._stop()
                return
            time.sleep(WAIT_S)

    def _go_on(self) -> bool:
        """Start what is to be measured next if nothing is being measured; whether anything is left."""
        if self._running:
            place, process = self._running
            if process.poll() is None:
                return True
            self._running = None
            self._ended(place, process.returncode)
        waiting = [place for place in self._places() if not _is_done(place) and not (place / FAILED).exists()]
        if not waiting or self._is_over:
            return False
        self._running = waiting[0], _started(waiting[0])
        return True

    def _ended(self, place: Path, code: int) -> None:
        """Take note of a process that has ended; a failure costs the numbers, not the run."""
        if _is_done(place):
            shutil.rmtree(place / MODEL, ignore_errors=True)
            return
        said = (place / "log.txt").read_text("utf-8", errors="replace").strip()[-500:]
        _write(place / FAILED, f"exit code {code}\n{said}\n")
        log.error("step %d is not evaluated, training goes on (exit code %d): %s", _step(place), code, said)

    def _stop(self) -> None:
        if self._running:
            self._running[1].kill()
            self._running[1].wait()
            self._running = None

    def _places(self) -> list[Path]:
        return sorted(file.parent for file in self._folder.glob(f"step-*/{WEIGHTS}"))


def _started(place: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mezzotint.cli.main", "evaluate", "run", "--spec", str(place / SETTINGS)]
    if (nice := shutil.which("nice")) is not None:
        command = [nice, "-n", "19", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):  # of torchrun: not this process's
        environment.pop(name, None)
    with (place / "log.txt").open("wb") as file:
        # a group of its own: Ctrl-C at the terminal is for training, which ends this process itself
        return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment,
                                start_new_session=True)  # fmt: skip


def _is_done(place: Path) -> bool:
    return (place / REPORT).is_file()


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _values(report: Mapping[str, Any]) -> dict[str, float]:  # Any: JSON
    """The numbers of a report by name, with the ends of their intervals; of a sweep with the set behind an @."""
    values: dict[str, float] = {}
    for told in report["sets"]:
        behind = f"@{told['name']}" if len(report["sets"]) > 1 else ""
        for entry in told["metrics"]:
            if entry.get("scaling") in {"x100", "weighted"}:  # the cosine says it
                continue
            name = re.sub(r"[^\w.:-]+", "_", str(entry.get("name") or entry["metric"]))
            for end in ("value", "low", "high"):
                if entry.get(end) is not None:
                    values[name + behind if end == "value" else f"{name}{behind}.{end}"] = entry[end]
    return values


def _plain(value: Any) -> Any:  # Any: settings as YAML has them
    """Tuples as lists."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]  # any YAML
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value  # pyright: ignore[reportUnknownVariableType]  # any YAML


def _write(path: Path, text: str) -> None:
    try:
        with atomic(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from None
