"""Killed anywhere and continued, a run ends in the same bits; and the test would notice if it did not."""

import errno
import io
import json
import os
import re
import shutil
import signal
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mezzotint.checkpoints import files
from mezzotint.cli import main as command
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.training import loop, state
from mezzotint.training.config import TrainConfig
from mezzotint.training.journal import Journal
from mezzotint.training.loop import train
from mezzotint.training.part import PARTS, Inputs
from mezzotint.training.run import Run
from training.toy import ToyPart, config

KILLED = 2**31  # more points than a run passes


def _nothing(_name: str) -> None:
    """What find_spec says of a package that is not installed."""


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    """Leave its second of import out of every life."""
    monkeypatch.setattr("mezzotint.training.journal.find_spec", _nothing)


def outcome(folder: Path) -> tuple[list[dict[str, Any]], Mapping[str, Tensor]]:
    """What must not depend on interruptions: the log without times, and the last checkpoint."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    saved = state.newest(folder / "checkpoints")
    assert saved is not None
    return [{name: value for name, value in record.items() if name != "pace"} for record in records], saved.tensors


def same(one: Path, other: Path) -> bool:
    """Whether two runs agree in every record and every bit."""
    (log_1, held_1), (log_2, held_2) = outcome(one), outcome(other)
    return log_1 == log_2 and held_1.keys() == held_2.keys() and all(torch.equal(held_1[k], held_2[k]) for k in held_1)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    draft = tmp_path / "snapshots" / ".step-00000010.safetensors.c3400e79.tmp"
    draft.parent.mkdir()
    draft.write_bytes(b"half")
    train(ToyPart(), config(max_train_steps=2), tmp_path)
    assert not draft.exists()


@pytest.mark.usefixtures("compiled")
def test_a_run_goes_on_with_the_kernels_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels(folder: Path, steps: int) -> str:
        train(ToyPart(), config(mixed_precision="bf16", max_train_steps=steps), folder)
        saved = state.newest(folder / "checkpoints")
        assert saved is not None
        return saved.about["execution"]["kernels"]

    monkeypatch.setenv("MEZZOTINT_KERNELS", "torch")
    assert kernels(tmp_path / "old", 2) == "torch"
    monkeypatch.setenv("MEZZOTINT_KERNELS", "auto")
    assert kernels(tmp_path / "old", 4) == "torch"
    assert kernels(tmp_path / "new", 2) == "native"


def life(folder: Path, settings: TrainConfig, die_at: int, breakage: Callable[[], None] = lambda: None) -> int:
    """Train in a child that is killed at the `die_at`-th dangerous point; its exit status.

    Points: before and after every step, every sync to disk, every rename and every removal of a folder.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        points = 0

        def passing(action: Callable[..., Any]) -> Callable[..., Any]:
            def passed(*args: Any, **kwargs: Any) -> Any:
                nonlocal points
                for is_after in (False, True):
                    points += 1
                    if points == die_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if not is_after:
                        result = action(*args, **kwargs)
                return result  # pyright: ignore[reportPossiblyUnboundVariable]  # set in the first of the two rounds

            return passed

        os.fsync = lambda fd: None  # a killed process loses nothing that it wrote; only a power cut would
        for owner, name in ((Run, "take_step"), (os, "fsync"), (Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            setattr(owner, name, passing(getattr(owner, name)))
        breakage()
        train(ToyPart(), settings, folder)
        os._exit(0)
    finally:
        os._exit(1)


def lives(folder: Path, settings: TrainConfig, seed: int, breakage: Callable[[], None] = lambda: None) -> int:
    """Live and die until the run ends; how often it was killed."""
    generator = torch.Generator().manual_seed(seed)
    for deaths in range(200):
        die_at = int(torch.randint(1, 40, (), generator=generator))
        status = life(folder, settings, die_at, breakage)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return deaths
    raise AssertionError("the run never ends: progress is lost")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.journal.find_spec", _nothing)
        assert train(ToyPart(), config(), folder)  # here, not in a child: what it imports is there for every child
    return folder


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere_ends_in_the_same_bits(whole: Path, tmp_path: Path, seed: int) -> None:
    assert lives(tmp_path, config(), seed) >= 2
    assert same(whole, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".partial-*"))


def test_killed_at_every_point_of_the_first_saves(whole: Path, tmp_path: Path) -> None:
    """Every single point from the first step to the second checkpoint, each on a folder of its own."""
    for die_at in range(1, 34):
        folder = tmp_path / str(die_at)
        assert os.WIFSIGNALED(life(folder, config(), die_at))
        assert life(folder, config(), KILLED) == 0
        assert same(whole, folder)


def forget_averages(run: Run) -> None:
    run.averages = {name: [w.clone() for w in run.weights()] for name in run.averages}


def draw_from_wherever(run: Run) -> None:
    """Dropout goes on from where the process's generator happens to stand."""
    torch.manual_seed = lambda seed: torch.default_generator  # pyright: ignore


def forget_optimizer(run: Run) -> None:
    for optimizer in run.optimizers.values():
        optimizer.state.clear()


def skip_a_sample(run: Run) -> None:
    samples = run.order.samples
    run.order.samples = lambda start, count: samples(start + 1, count)


@pytest.mark.parametrize("bug", [forget_averages, draw_from_wherever, forget_optimizer, skip_a_sample])
def test_planted_bugs_are_caught(whole: Path, tmp_path: Path, bug: Callable[[Run], None]) -> None:
    """What trainers really got wrong. Each must make the comparison fail, or the comparison is worth nothing."""
    fill = Run._fill  # pyright: ignore[reportPrivateUsage]

    def plant() -> None:
        def broken(self: Run, held: Mapping[str, Tensor]) -> None:
            fill(self, held)
            bug(self)

        Run._fill = broken  # pyright: ignore[reportPrivateUsage]

    assert os.WIFSIGNALED(life(tmp_path, config(), 30, plant))
    assert life(tmp_path, config(), KILLED, plant) == 0
    assert not same(whole, tmp_path)


def test_damaged_checkpoint_is_passed_over(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    *_, older, newest = state.complete(tmp_path / "checkpoints")
    data = bytearray((newest / state.STATE).read_bytes())
    data[-5] ^= 1
    (newest / state.STATE).write_bytes(data)
    assert train(ToyPart(), config(), tmp_path)
    assert f"{newest} is passed over" in caplog.text
    assert older.name < newest.name
    assert same(whole, tmp_path)


def test_stopping_saves_and_continues(whole: Path, tmp_path: Path) -> None:
    answers = iter([False] * 3 + [True])
    assert not train(ToyPart(), config(), tmp_path, should_stop=lambda: next(answers))
    assert [path.name for path in state.complete(tmp_path / "checkpoints")][-1] == "step-00000003"
    assert train(ToyPart(), config(), tmp_path)
    assert same(whole, tmp_path)


def test_longer_run_continues_a_shorter_one(whole: Path, tmp_path: Path) -> None:
    assert train(ToyPart(), config(max_train_steps=4), tmp_path)
    assert train(ToyPart(), config(), tmp_path)
    assert outcome(tmp_path)[1].keys() == outcome(whole)[1].keys()
    assert all(torch.equal(outcome(tmp_path)[1][name], tensor) for name, tensor in outcome(whole)[1].items())


def test_other_settings_are_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="trained with other settings"):
        train(ToyPart(), config(learning_rate=0.1), tmp_path)
    with pytest.raises(ConfigError, match="holds a run at step 9; resume it, or take another --out"):
        train(ToyPart(), config(), tmp_path, is_continued=False)


def test_lack_of_an_average_is_an_error(whole: Path, tmp_path: Path) -> None:
    """Averages that vanish on resume, silently, are a bug that has shipped; here the checkpoint must hold them."""
    saved = state.newest(whole / "checkpoints")
    assert saved is not None
    held = {name: tensor for name, tensor in saved.tensors.items() if not name.startswith("average.classic")}
    state.save(tmp_path / "checkpoints", 8, held, saved.about, keep=1)
    with pytest.raises(CheckpointError, match=r"step 8: the checkpoint lacks 'average\.classic-0\.9\."):
        train(ToyPart(), config(), tmp_path)


def test_full_disk_keeps_the_older_checkpoint(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore
    with pytest.raises(CheckpointError, match="0 MB free"):
        state.save(tmp_path / "checkpoints", 10, {"x": torch.zeros(3)}, {}, keep=1)
    monkeypatch.undo()
    assert same(whole, tmp_path)


def test_full_disk_costs_a_checkpoint_but_not_the_run(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No room at steps 4 and 6: the run goes on, says so twice, and saves again when there is room."""
    free = iter([2**40, 0, 0, 2**40, 2**40])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, next(free)))  # pyright: ignore
    assert train(ToyPart(), config(checkpoints_total_limit=9), tmp_path)
    monkeypatch.undo()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    steps = [re.findall("step ([0-9]+) has no checkpoint, training goes on: .* 0 MB free", line) for line in said]
    assert steps == [["4"], ["6"]]
    assert [path.name[-2:] for path in state.complete(tmp_path / "checkpoints")] == ["02", "08", "09"]
    assert same(whole, tmp_path)


def test_end_that_cannot_be_saved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # pyright: ignore
    with pytest.raises(CheckpointError, match="MB needed to save step 9"):
        train(ToyPart(), config(), tmp_path)


def test_lines_that_a_full_disk_refused_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk fills up in the middle of the second of three lines."""
    log = Journal(tmp_path, keep_until=0)
    opened, full = Path.open, [False]

    class Full(io.BufferedRandom):
        def write(self, data: Any) -> int:
            super().write(data[:9])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    def short(self: Path, *mode: Any, **more: Any) -> Any:
        return Full(io.FileIO(self, "r+b")) if full[0] else opened(self, *mode, **more)  # pyright: ignore

    monkeypatch.setattr(Path, "open", short)
    for step in (1, 2, 3):
        full[0] = step == 2
        log.add(step, "train", {"loss": 1 / step}, {})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, "what": "train", "loss": 1 / step} for step in (1, 2, 3)]
    assert "log.jsonl: No space left on device; what it lacks is written later" in caplog.text


def test_pace_tells_how_much_of_the_machine_is_used(whole: Path) -> None:
    """The toy's learner: 3 x forward, 2 x 4 samples of 2 x (3x8 + 8x3) operations; from step 4 on the opponent too."""
    paces = [json.loads(line).get("pace") for line in (whole / "log.jsonl").read_text().splitlines()]
    told = [pace for pace in paces if pace]
    assert len(told) == 9
    flops = told[0]["teraflops"] * 1e12 * 8 / told[0]["samples_per_second"]
    assert flops == pytest.approx(3 * 8 * 2 * (3 * 8 + 8 * 3))
    assert all(0 < pace["utilisation"] < 1 for pace in told)


def test_sigterm_saves_and_exits_with_75(whole: Path, tmp_path: Path) -> None:
    """The real command, told to stop during step 4; the same command then finishes, bit for bit."""
    settings = {name: value for name, value in asdict(config()).items() if value not in ({}, ())}
    settings["ema"] = [asdict(average) for average in config().ema]
    settings["settings"] = {}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings | {"data": {"resolution": 8}}))

    class Made(ToyPart):
        def __init__(self, settings: TrainConfig, inputs: Inputs) -> None:
            super().__init__()

        def loss(self, player: str, networks: Any, batch: Any) -> Any:
            if batch.step == 3 and not (tmp_path / "told").exists():
                (tmp_path / "told").touch()
                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(player, networks, batch)

    codes: list[int] = []
    for _ in range(2):
        if not (child := os.fork()):
            try:
                module = types.ModuleType("made")
                module.Part = Made  # pyright: ignore[reportAttributeAccessIssue]
                sys.modules["made"] = module
                PARTS["toy"] = "made:Part"
                os.chdir(tmp_path)
                command.run(["train", "toy.yaml", "--data", ".", "--out", "run"])
                os._exit(0)
            except SystemExit as exit:
                os._exit(int(exit.code or 0))
            finally:
                os._exit(99)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if len(codes) == 1:
            assert [path.name for path in state.complete(tmp_path / "run" / "checkpoints")][-1] == "step-00000004"
    assert codes == [75, 0]
    assert same(whole, tmp_path / "run")


def test_loss_that_is_not_finite_stops_with_the_batch(tmp_path: Path) -> None:
    part = ToyPart()
    plain = part.loss

    def explodes(player: str, networks: Any, batch: Any) -> Any:
        loss = plain(player, networks, batch)
        return loss._replace(total=loss.total * float("inf")) if loss and batch.step == 3 else loss

    part.loss = explodes
    with pytest.raises(loop.TrainingError, match="step 3: learner is inf"):
        train(part, config(), tmp_path)
    told = json.loads((tmp_path / "nonfinite.json").read_text())
    assert told["step"] == 3
    assert [len(batch["samples"]) for batch in told["batches"]] == [4, 4]
    saved = state.newest(tmp_path / "checkpoints")
    assert saved is not None
    assert saved.step == 2
    assert all(tensor.isfinite().all() for tensor in saved.tensors.values() if tensor.is_floating_point())


def test_export_holds_the_first_average(whole: Path) -> None:
    exported = files.read_state(whole / "export" / "learner.safetensors")
    held = outcome(whole)[1]
    for name, tensor in exported.items():
        assert torch.equal(tensor, held[f"average.power-0.05.{name}"])
        assert not torch.equal(tensor, held[f"network.learner.{name}"])
