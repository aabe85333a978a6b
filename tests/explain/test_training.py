"""The story of a training step is the step: its loss, its targets, its noise."""

from pathlib import Path
from typing import Any  # Any: JSON

import pytest
import torch

from mezzotint.diffusion.loss import target
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.errors import ConfigError
from mezzotint.explain.denoising import estimates
from mezzotint.explain.training import explain_training
from mezzotint.models.presets import PRESETS
from mezzotint.training.config import TrainConfig, stages
from mezzotint.training.lineage import tiny, train_tiny
from mezzotint.training.part import Inputs, make
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.run import Run
from mezzotint.training.tiny import requirements


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawn pictures and what a tiny SD 1.5 builds on."""
    folder = tmp_path_factory.mktemp("training")
    train_tiny(stages("sd-v1-5"), folder / "run")
    return folder


def _json(story: Any) -> dict[str, Any]:  # Any: JSON
    return {section["id"]: section for section in story.to_json()["sections"]}


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_the_loss_shown_is_the_recipes_and_the_step_is_taken(objective: str, place: Path) -> None:
    recipe = stages("sd-v1-5", [f"settings.diffusion.prediction_type={objective}"])
    story = explain_training(recipe, "sd-v1-5", place / "run", scale="tiny")
    sections = _json(story)
    config = tiny(recipe, place / "run")[-1]
    needs = {role: Path(said) for role, said in config.needs.items()}
    part = make(config, Inputs(data=place / "tiny" / "pictures", needs=needs, cache=place / "cache"))
    run = Run(part, config)
    with torch.no_grad(), ExplicitAttention():
        loss = part.loss("unet", run.working.networks, run.batches()[0])
    assert loss is not None
    assert f"loss {float(loss.total):.5f}" in sections["target"]["shapes"]
    before, after = (item["value"] for item in sections["step"]["blocks"][0]["items"])
    assert before == pytest.approx(float(loss.total), rel=1e-5)
    assert after < before
    labels = [item["label"] for item in sections["target"]["blocks"][0]["items"]]
    trained = {"epsilon": "target of epsilon", "v_prediction": "target of v"}[objective]
    assert f"{trained} (trained here)" in labels


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_of_a_perfect_answer_is_the_latent(objective: str, generator: torch.Generator) -> None:
    schedule = NoiseSchedule.scaled_linear()
    x0, noise = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0, 400, 999])
    signal, spread = schedule.coefficients(t, x0)
    answer = target(objective, schedule, x0, noise, t)
    found = estimates(objective, schedule.add_noise(x0, noise, t), answer, signal, spread)
    torch.testing.assert_close(found, x0)


def test_clip_and_autoencoder_steps_are_told_too(place: Path) -> None:
    recipes = requirements(PRESETS["sd15"])
    pictures = place / "tiny" / "pictures"
    for role, ids in (("autoencoder", ["examples", "loss", "step"]), ("clip", ["examples", "alike", "step"])):
        config: TrainConfig = recipes[role][1]
        sections = _json(explain_training([config], role, place / "new" / role, data=pictures))
        assert list(sections) == ids
        before, after = (item["value"] for item in sections["step"]["blocks"][0]["items"])
        assert after < before


def test_a_run_is_told_at_the_step_it_stands_at(place: Path) -> None:
    config = requirements(PRESETS["sd15"])["autoencoder"][1]
    story = explain_training([config], "autoencoder", place / "tiny" / "autoencoder", data=place / "tiny" / "pictures")
    assert ("weights", f"after {config.max_train_steps} steps") in story.facts


def test_data_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data PICTURES is needed"):
        explain_training(stages("sd-v1-5"), "sd-v1-5", tmp_path / "run")
