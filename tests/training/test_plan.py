"""Plans: operations equal published counts, samples and chains add up, and mistakes are told before anything runs."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from mezzotint.cli.train import train
from mezzotint.errors import ConfigError
from mezzotint.models.presets import PRESETS
from mezzotint.training.config import stages
from mezzotint.training.plan import A100, H100, Hardware, ancestors, encoder_flops, measured, plan, unet_flops
from mezzotint.training.tiny import write_pictures

SLOW = Hardware(name="slow", rate=1e12, source="a round number")


@pytest.mark.parametrize(
    ("preset", "side", "giga"),
    [("sd15", 32, 180), ("sd15", 64, 803), ("sd2", 32, 181), ("sd2", 64, 804), ("sd2-v", 96, 2149), ("sdxl", 32, 428)],
)
def test_operations_of_a_forward_pass(preset: str, side: int, giga: float) -> None:
    """Counted elsewhere from diffusers' networks."""
    assert unet_flops(PRESETS[preset].unet, side) / 1e9 == pytest.approx(giga, abs=0.6)


def test_operations_of_the_frozen_networks() -> None:
    """Autoencoder 1,117 G at 512 px; the text tower of 85 M weights reads 77 tokens with 2 operations for each."""
    assert encoder_flops(PRESETS["sd15"], 512) / 1e9 == pytest.approx(1117 + 2 * 77 * 0.085, rel=5e-3)


def test_sd2_base_costs_what_it_is_known_to() -> None:
    """4.81e21 operations, in 1.126e9 and 1.741e9 samples."""
    found = plan("sd-v2-base", stages("sd-v2-base"), (SLOW, A100))
    assert [stage.samples for stage in found.stages] == [1_126_400_000, 1_740_800_000]
    assert sum(stage.flops for stage in found.stages) == pytest.approx(4.81e21, rel=2e-3)
    assert found.hours["slow"] == pytest.approx(4.81e9 / 3600, rel=2e-3)
    assert found.hours["A100"] == pytest.approx(found.hours["slow"] / 87.36)
    assert found.stages[0].state_bytes == pytest.approx(22 * 865_910_724)  # weights, AdamW, gradients, copy, average


def test_a_plan_names_the_rule_and_the_way_from_nothing() -> None:
    found = plan("sd-v1-5", stages("sd-v1-5"), (H100,))
    (stage,) = found.stages
    assert stage.rule == ("aesthetic ≥ 5", "pwatermark ≤ 0.5", "size ≥ 512")
    assert stage.samples == 595_000 * 2048
    assert found.before == ("sd-v1-1", "sd-v1-2")
    assert found.hours_from_nothing["H100"] > 2 * found.hours["H100"]
    assert ancestors(stages("sd-v2-1-unclip")) == ("sd-v2-base", "sd-v2-768-v", "sd-v2-1")


def test_own_pictures_are_counted(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    found = plan("sd-v1-2", stages("sd-v1-2", ["data.filters.size.at_least=32"]), (SLOW,), tmp_path).stages[0]
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert found.pictures == sum(row["aesthetic"] >= 5 and row["pwatermark"] <= 0.5 for row in rows)
    assert found.pictures
    assert found.epochs == found.samples / found.pictures


def test_a_plan_without_a_preset_still_counts_samples() -> None:
    stage = plan("icons-unet", stages("icons-unet"), (SLOW,)).stages[0]
    assert (stage.samples, stage.flops) == (230_400, 0)
    assert stage.rule[0] == "style: one of 7"


def test_what_cannot_be_planned_is_told() -> None:
    with pytest.raises(ConfigError, match=r"resolution 500: .* multiple of 8; nearest are 496 and 504"):
        plan("sd-v1-5", stages("sd-v1-5", ["data.resolution=500"]), (SLOW,))
    with pytest.raises(ConfigError, match="trains a part 'clip'; only U-Nets are planned"):
        plan("icons-clip", stages("icons-clip"), (SLOW,))


def test_this_machine_is_measured() -> None:
    found = measured()
    assert 1e8 < found.rate < 1e15
    assert f"{found.rate / 1e12:.2f} TFLOP/s" in found.source


def test_the_command_prints_tables_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mezzotint.training.plan.measured", lambda: SLOW)
    app = typer.Typer()
    app.command()(train)
    shown = CliRunner().invoke(app, ["sd-v1-5", "--plan"]).output
    assert all(word in shown for word in ("aesthetic ≥ 5", "595,000 × 2,048", "1,218,560,000", "A100", "slow"))
    told = json.loads(CliRunner().invoke(app, ["sd-v1-5", "--plan", "--json"]).output)
    assert told["stages"][0]["samples"] == 1_218_560_000
    assert told["hours"].keys() == {"A100", "H100", "slow"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["sd-v1-5"], "--out FOLDER is needed"), (["sd-v1-5", "--out", "run"], "--data PICTURES is needed")],
)
def test_the_command_says_what_it_lacks(arguments: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(train)
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, ConfigError)
    assert message in str(refused)
