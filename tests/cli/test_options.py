"""Flags that verbs share: whatever loads a model is told how with the same words."""

from pathlib import Path
from typing import Any, cast

import pytest
import typer.main

from cli.conftest import Command, refuses
from mezzotint.cli.main import app
from mezzotint.images import read_metadata
from mezzotint.pipeline.source import SAID

COMMANDS: dict[str, Any] = cast(Any, typer.main.get_command(app)).commands  # Any: click's group is not typed
VERBS: dict[str, Any] = {  # Any: click's commands
    f"{name} {verb}".strip(): command
    for name, group in COMMANDS.items()
    for verb, command in getattr(group, "commands", {"": group}).items()
}
LOADING = (
    "generate", "edit", "vary", "grid", "explain", "serve", "replay", "bench", "evaluate run", "evaluate accuracy"
)  # fmt: skip
OWN = {  # what means something else there
    ("vary", "model"), ("replay", "model"), ("replay", "dtype"), ("evaluate run", "model"),
    ("evaluate run", "unclip_stats"),  # no picture to vary can be given
}  # fmt: skip


def otherwise(verb: str) -> set[str]:
    """Fields of `Source` that the verb has no flag for, or one that says something else."""
    helps = {parameter.name: str(parameter.help) for parameter in VERBS[verb].params if hasattr(parameter, "help")}
    return {
        name
        for name, said in SAID.items()
        if (verb, name) not in OWN and not helps.get(name, "").lower().startswith(f"{said.lower()}.")
    }


@pytest.mark.parametrize("verb", LOADING)
def test_whatever_loads_a_model_has_the_same_flags_for_it(verb: str) -> None:
    assert otherwise(verb) == set()


def test_a_verb_that_lacks_them_is_seen() -> None:
    assert otherwise("samplers") == set(SAID)
    assert otherwise("convert") >= {"model", "device", "dtype"}


def test_other_verbs_than_generate_load_what_is_said(mezzotint: Command, world: Path) -> None:
    picture = mezzotint(
        "vary", "photo.png", "-m", "unclip", "--steps", "1", "--dtype", "float32", "--objective", "epsilon"
    )
    assert picture.code == 0, picture.err
    record = read_metadata(Path(picture.out.strip())).record
    assert record is not None
    assert record["execution"]["dtype"] == "float32"
    ran = mezzotint("bench", "-m", "model", "--rounds", "1", "--vae", "nowhere.safetensors")
    assert "nowhere.safetensors" in ran.err
    refuses(mezzotint, world, ["bench", "-m", "model", "--preset", "sdxl"], 1, "sdxl")


def test_levels_are_measured_against_the_models_own_weights(mezzotint: Command, world: Path) -> None:
    asked = ["bench", "-m", "model", "--levels", "--weights", "int8"]
    refuses(mezzotint, world, asked, 2, "against the model's own: leave out --weights")
