"""Evaluation beside training: the loop never waits, changes no bit, and every number is logged once, at its step."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any  # Any: JSON of the log

import pytest
import torch

from cli.conftest import tiny_checkpoint
from mezzotint.checkpoints.files import read_json
from mezzotint.checkpoints.save import save_folder
from mezzotint.cli.watch import EvaluationWatch
from mezzotint.errors import ConfigError
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import UNet, initialise
from mezzotint.pipeline.system import load
from mezzotint.training import state
from mezzotint.training.config import DataConfig, TrainConfig
from mezzotint.training.journal import Journal
from mezzotint.training.loop import settled, train
from mezzotint.training.network import write_network
from mezzotint.training.part import Inputs
from mezzotint.training.watch import Found, write_model
from training.toy import ToyPart, config

EVALUATION = {"steps": 4, "prompts": "icons"}


class Slow:
    """Looks at a file of the export when it is handed over, and has a number only after `asked` more questions."""

    def __init__(self, asked: int) -> None:
        self.looks: list[int] = []
        self.waited = 0
        self._asked, self._questions = asked, 0

    def look(self, step: int, export: Path) -> None:
        assert (export / "learner.safetensors").is_file()
        self.looks.append(step)

    def found(self) -> Sequence[Found]:
        self._questions += 1
        ready = self.looks if self.waited or self._questions > self._asked else []
        return [Found(step, {"number": step / 2}) for step in ready]

    def wait(self, should_stop: Callable[[], bool]) -> None:
        self.waited += 1


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr("mezzotint.training.journal.find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


def records(folder: Path, what: str = "evaluation") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "pace"} for line in lines if line["what"] == what]


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    saved = state.newest(folder / "checkpoints")
    assert saved is not None
    return saved.tensors


def test_networks_are_handed_over_at_chosen_steps_and_numbers_told_when_they_come(tmp_path: Path) -> None:
    watcher = Slow(asked=6)
    assert train(ToyPart(), config(evaluation=EVALUATION), tmp_path, watcher=watcher)
    assert watcher.looks == [4, 8, 9], "every four steps and at the end, although networks are validated every three"
    assert records(tmp_path) == [{"step": step, "what": "evaluation", "number": step / 2} for step in (4, 8, 9)]


def test_the_loop_waits_only_at_its_end(tmp_path: Path) -> None:
    """A watcher that has nothing until it is waited for: all steps are taken before."""
    watcher = Slow(asked=10**6)
    train(ToyPart(), config(evaluation=EVALUATION), tmp_path, watcher=watcher)
    order = [line["what"] for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())]
    assert order[-3:] == ["evaluation"] * 3
    assert watcher.waited == 1


def test_being_watched_changes_no_bit(tmp_path: Path) -> None:
    train(ToyPart(), config(), tmp_path / "alone")
    train(ToyPart(), config(evaluation=EVALUATION), tmp_path / "watched", watcher=Slow(3))
    alone, watched = weights(tmp_path / "alone"), weights(tmp_path / "watched")
    assert alone.keys() == watched.keys()
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
    for what in ("train", "held-out"):
        assert records(tmp_path / "alone", what) == records(tmp_path / "watched", what)
    assert config().trajectory() == config(evaluation=EVALUATION).trajectory(), "it may be switched on in mid-run"


def test_a_continued_run_has_every_number_once_and_none_from_its_future(tmp_path: Path) -> None:
    steps = iter(range(100))
    train(ToyPart(), config(evaluation=EVALUATION), tmp_path, watcher=Slow(0), should_stop=lambda: next(steps) == 6)
    assert [record["step"] for record in records(tmp_path)] == [4]
    watcher = Slow(0)
    watcher.looks += [4, 8]  # of the earlier life, which had gone on to 8 without a checkpoint
    steps = iter(range(100))
    train(ToyPart(), config(evaluation=EVALUATION), tmp_path, watcher=watcher, should_stop=lambda: next(steps) == 1)
    assert [record["step"] for record in records(tmp_path)] == [4], "step 8 has not come again"
    train(ToyPart(), config(evaluation=EVALUATION), tmp_path, watcher=watcher)
    assert sorted(record["step"] for record in records(tmp_path)) == [4, 8, 9]


def test_numbers_that_come_late_are_settled_later(tmp_path: Path) -> None:
    train(ToyPart(), config(), tmp_path)
    watcher = Slow(10**6)
    watcher.looks.append(8)
    assert not settled(Journal(tmp_path, keep_until=9), watcher, 9, lambda: True), "it was told to stop"
    assert settled(Journal(tmp_path, keep_until=9), watcher, 9, lambda: False)
    assert [record["step"] for record in records(tmp_path)] == [8]


@pytest.mark.parametrize("evaluation", [{"prompts": "icons"}, {"steps": 0}, {"steps": "often"}])
def test_how_often_must_be_said(evaluation: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.steps .*: how many steps"):
        config(evaluation=evaluation)


def unet_recipe(**evaluation: object) -> TrainConfig:
    """A recipe for the U-Net of the tiny model."""
    tiny = PRESETS["tiny"].unet
    model = {name: value for name, value in asdict(tiny).items() if value is not None}
    return TrainConfig(
        part="unet", data=DataConfig(resolution=64), settings={"model": model, "diffusion": {}}, max_train_steps=9,
        train_batch_size=1, learning_rate=1e-3, evaluation={"steps": 1, **evaluation},
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export, a model to build on, and prompts."""
    save_folder(tiny_checkpoint(), tmp_path / "model")
    unet = UNet(PRESETS["tiny"].unet)
    initialise(unet, torch.Generator().manual_seed(1))
    write_network(tmp_path / "export", "unet", unet, PRESETS["tiny"].unet)
    (tmp_path / "prompts.txt").write_text("a red fox\na blue bird\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def inputs(place: Path) -> Inputs:
    return Inputs(data=place, needs=dict.fromkeys(("autoencoder", "clip"), place / "model"), cache=place / "cache")


def watch(place: Path, **evaluation: object) -> EvaluationWatch:
    recipe = unet_recipe(**{"prompts": "prompts.txt", "clip": "evaluator", "sampler": "ddim", **evaluation})
    return EvaluationWatch(recipe, inputs(place), place / "run")


def test_exported_networks_become_a_model_that_makes_pictures(place: Path) -> None:
    write_model(unet_recipe(prompts="prompts.txt", clip="evaluator"), place / "export", inputs(place), place / "made")
    made, own = load(place / "made", dtype="float32"), load(place / "model", dtype="float32")
    assert made.size == (64, 64)
    weights = made.unet.state_dict()["conv_in.weight"]
    assert not torch.equal(weights, own.unet.state_dict()["conv_in.weight"])
    assert torch.equal(made.vae.state_dict()["decoder.conv_in.weight"], own.vae.state_dict()["decoder.conv_in.weight"])
    assert made.scheduler.timestep_spacing == "trailing"


def test_a_process_beside_measures_what_is_handed_over(place: Path) -> None:
    """Handed over and stopped at once; the run's next life measures it; the same networks are not measured twice."""
    first = watch(place, steps=4)
    begun = time.monotonic()
    first.look(4, place / "export")
    assert time.monotonic() - begun < 20, "it does not wait for the number"
    first.wait(lambda: True)
    assert not first.found()
    second = watch(place, steps=4)
    second.wait(lambda: False)
    (found,) = second.found()
    assert found.step == 4
    step = place / "run" / "evaluation" / "step-00000004"
    report = read_json(step / "report.json")
    sets: Any = report["sets"]
    assert found.values["CLIP_score_cosine"] == sets[0]["metrics"][0]["value"]
    assert found.values["CLIP_score_cosine.low"] <= found.values["CLIP_score_cosine"]
    assert not (step / "model").exists(), "its weights are not kept"
    second.look(4, place / "export")
    assert second.found() == [found], "the same weights have the same numbers"
    assert not (step / "model").exists()


def test_what_cannot_be_measured_costs_its_number_not_the_run(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    watcher = watch(place, clip="nowhere")
    watcher.look(1, place / "export")
    watcher.wait(lambda: False)
    assert not watcher.found()
    assert "step 1 is not evaluated, training goes on (exit code 1): mezzotint: nowhere: no such CLIP" in caplog.text
    again = watch(place, clip="nowhere")
    again.wait(lambda: False)
    assert caplog.text.count("is not evaluated") == 1, "it is not tried for ever"


def test_a_recipe_that_cannot_be_watched_is_refused_before_the_first_step(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation: .*did you mean 'clip'"):
        watch(place, clpi="evaluator")
    with pytest.raises(ConfigError, match=r"evaluation\.out: a run decides this itself"):
        watch(place, out="somewhere")
    with pytest.raises(ConfigError, match="only a U-Net makes pictures; this recipe trains the toy"):
        EvaluationWatch(config(evaluation=EVALUATION), inputs(place), place)
