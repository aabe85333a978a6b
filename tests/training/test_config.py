"""Recipes: every packaged one is sound, and every mistake is refused with the fix in the message."""

from pathlib import Path

import pytest

from mezzotint.errors import ConfigError
from mezzotint.models.unet import Level, UNetConfig
from mezzotint.training.autoencoder import AutoencoderSettings
from mezzotint.training.clip import ClipSettings
from mezzotint.training.config import TrainConfig, parse, recipe, stages
from mezzotint.training.unet import UNetSettings
from training.toy import config

RECIPES = {
    "icons-autoencoder": AutoencoderSettings,
    "icons-clip": ClipSettings,
    "icons-evaluator": ClipSettings,
    "icons-unet": UNetSettings,
}


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_are_sound(name: str) -> None:
    for stage in stages(name):
        parse(RECIPES[name], stage.settings)


def test_evaluator_shares_nothing_with_the_text_encoder() -> None:
    clip, evaluator = recipe("icons-clip"), recipe("icons-evaluator")
    assert clip.seed != evaluator.seed
    assert evaluator.settings["sees_held_out"]
    assert clip.settings["text"]["width"] != evaluator.settings["text"]["width"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rat=1", r"recipe\.stages\[0\]: unknown key 'learning_rat'; did you mean 'learning_rate'\?"),
        ("settings.diffusion.snr_gama=5", r"settings\.diffusion: unknown key 'snr_gama'; did you mean 'snr_gamma'\?"),
        ("settings.diffusion.prediction_type=epsilon", "use v_prediction or sample"),
        ("settings.diffusion.proportion_empty_prompts=2", r"must lie in 0 … 1"),
        ("settings.model.levels=[{channels: 95}]", "95 channels cannot form 16 norm_groups"),
        ("settings.model.blocks=two", r"settings\.model\.blocks: 'two' where int was expected"),
        ("data.resolution=4", "at least 8 pixels"),
        ("data.where.style=noto", r"data\.where\.style: 'noto' where a list was expected"),
        ("max_train_steps=0", "at least 1 is needed"),
        ("mixed_precision=fp16", r"unknown value 'fp16'.*one of: bf16, no"),
        ("learning_rate=-1", "must be above 0"),
        ("max_train_steps", "key=value was expected"),
        ("ema=[{kind: power}]", r"ema\[0\]: 'value' is missing"),
        ("checkpointing_steps=true", "True where int was expected"),
    ],
)
def test_mistakes_are_refused_with_the_fix(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(UNetSettings, stages("icons-unet", [change])[-1].settings, "recipe.settings")


def test_unknown_recipe_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'icons-unet'\? one of: icons-autoencoder, icons-clip"):
        recipe("icon-unet")


def test_recipe_file_and_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "part: unet\ndata: {resolution: 64}\nsettings: {}\nmax_train_steps: 5\ntrain_batch_size: 2\n"
        "learning_rate: 1e-4\n"
    )
    read = recipe(path, ["data.by=concept", "ema=[{kind: classic, value: 0.99}]"])
    assert read.learning_rate == 1e-4  # text for YAML 1.1
    assert read.data.by == "concept"
    assert [average.name for average in read.ema] == ["classic-0.99"]


def test_numbers_lists_and_nothing_in_one_field() -> None:
    """Level.depth is a number or one per block; middle may be absent."""
    down, up = [{"channels": 32, "depth": [1, 0]}], [{"channels": 32, "depth": 2}]
    read = parse(UNetConfig, {"levels": down, "up_levels": up, "middle": None, "context": 8})
    assert read.levels == (Level(channels=32, depth=(1, 0)),)
    assert read.up == (Level(channels=32, depth=2),)
    assert read.middle is None


def test_rates_are_functions_of_the_step() -> None:
    wsd = config(
        max_train_steps=100, learning_rate=1.0, lr_scheduler="wsd", lr_warmup_steps=10, lr_decay_steps=20, lr_end=0.5
    )
    assert [wsd.rate(step) for step in (0, 9, 10, 80, 90, 100)] == [0.1, 1.0, 1.0, 1.0, 0.75, 0.5]
    cosine = config(max_train_steps=100, learning_rate=1.0, lr_scheduler="cosine")
    assert [round(cosine.rate(step), 6) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert config(learning_rate=0.5).rate(10**6) == 0.5


def test_trajectory_ignores_length_and_reports_only() -> None:
    assert config().trajectory() == config(max_train_steps=99, logging_steps=7, checkpointing_steps=3).trajectory()
    changed: list[TrainConfig] = [config(seed=1), config(train_batch_size=5), config(settings={"x": 1})]
    assert len({c.trajectory() for c in (config(), *changed)}) == 4
