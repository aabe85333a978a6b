"""The command line's promises: what is written, what is refused with which words, and with which exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli.conftest import Command, refuses
from mezzotint.images import read_metadata
from mezzotint.kernels import native


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png")) if folder.exists() else []


def pixels(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:  # Any: numpy's shape parameter
    with Image.open(path) as image:
        return np.asarray(image)


def test_generate_writes_pictures_that_carry_their_recipe(mezzotint: Command, world: Path) -> None:
    ran = mezzotint("generate", "a red fox", "-m", "model", "--steps", "2", "--count", "2", "--seed", "7", "--json")
    assert ran.code == 0, ran.err
    made = json.loads(ran.out)
    assert [entry["seed"] for entry in made] == [7, 8]
    record = read_metadata(Path(made[1]["path"])).record
    assert record is not None
    assert record["resolved"]["request"]["seed"] == 8
    assert pixels(made[0]["path"]).shape == (64, 64, 3)
    assert len(pictures(world / "outputs")) == 2


def test_what_is_approximated_is_said(mezzotint: Command) -> None:
    ran = mezzotint("generate", "a red fox", "-m", "model", "--steps", "2", "--weights", "int8")
    assert "approximated: weights int8 (not measured on this model: `mezzotint bench --levels` does)" in ran.err
    again = mezzotint("replay", ran.out.strip(), "-m", "model")
    assert "equal in every pixel" in again.out
    assert "approximated" not in mezzotint("generate", "a red fox", "-m", "model", "--steps", "2").err


def test_prompts_come_from_a_file(mezzotint: Command) -> None:
    ran = mezzotint("generate", "--prompts", "prompts.txt", "-m", "model", "--steps", "1", "--json")
    assert [entry["prompt"] for entry in json.loads(ran.out)] == ["a red fox", "a blue bird"]


def test_edit_with_a_mask_keeps_every_other_pixel(mezzotint: Command) -> None:
    ran = mezzotint("edit", "photo.png", "a fox", "-m", "model", "--mask", "mask.png", "--feather", "0", "--steps", "2")
    assert ran.code == 0, ran.err
    before, after = pixels("photo.png"), pixels(ran.out.strip())
    outside = pixels("mask.png") == 0
    assert (before[outside] == after[outside]).all()
    assert (before[~outside] != after[~outside]).any()


def test_replay_says_beforehand_and_afterwards(mezzotint: Command) -> None:
    first = mezzotint("generate", "a red fox", "-m", "model", "--steps", "2", "--seed", "3").out.strip()
    again = mezzotint("replay", first, "-m", "model")
    assert again.code == 0, again.err
    assert "equal bits are expected" in again.err
    assert "equal in every pixel" in again.out
    other = mezzotint("replay", first, "-m", "model", "--dtype", "float32")
    assert "equal bits are not certain" in other.err
    assert "dtype" in other.err


def test_inspect_tells_how_a_picture_was_made(mezzotint: Command) -> None:
    first = mezzotint("generate", "a red fox", "-m", "model", "--steps", "2", "--seed", "3").out.strip()
    told = json.loads(mezzotint("inspect", first).out)
    assert told["parameters"]["prompt"] == "a red fox"
    assert told["mezzotint"]["resolved"]["request"]["steps"] == 2


def test_a_model_keeps_its_pictures_through_a_single_file_and_back(mezzotint: Command) -> None:
    assert mezzotint("convert", "model", "model.safetensors").code == 0
    assert mezzotint("convert", "model.safetensors", "again").code == 0
    made = [
        mezzotint("generate", "a fox", "-m", model, "--steps", "2", "--seed", "1").out.strip()
        for model in ("model", "model.safetensors", "again")
    ]
    first, *others = (pixels(path) for path in made)
    assert all((first == other).all() for other in others)


def test_samplers_finds_other_programs_names(mezzotint: Command) -> None:
    told = json.loads(mezzotint("samplers", "DPM++ 2M SDE Karras", "--json").out)
    assert (told["name"], told["spacing"]) == ("dpmpp_2m_sde", "karras")
    assert len(json.loads(mezzotint("samplers", "--json").out)["samplers"]) == 19


def test_doctor_names_the_chosen_dtype(mezzotint: Command) -> None:
    assert json.loads(mezzotint("doctor", "--json").out)["dtype chosen by auto"] in {"float32", "bfloat16"}


def test_doctors_own_work_is_not_other_work(mezzotint: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = [0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: (loads[0], 0.0, 0.0))
    monkeypatch.setattr(native, "build", lambda: loads.insert(0, 64.0))
    assert "other work" not in mezzotint("doctor", "--build", "--json").out
    assert "other work keeps 64.0" in mezzotint("doctor", "--json").out


REFUSED = [
    (["generate", "x", "-m", "model", "--sampler", "dpmp_2m"], 2, "did you mean 'dpmpp_2m'?"),
    (
        ["generate", "x", "-m", "model", "--width", "515"],
        2,
        "width 515: must be a multiple of 8; nearest are 512 and 520",
    ),
    (["generate", "x", "-m", "model", "--steps", "0"], 2, "steps 0: at least 1 step is needed"),
    (["generate", "-m", "model"], 2, "exactly one of PROMPT and --prompts"),
    (["generate", "x", "-m", "model", "--weights", "w8a"], 2, "unknown weights 'w8a'; did you mean 'w8a8'"),
    (["generate", "x", "-m", "nowhere"], 1, "'nowhere': no such file or folder, and not a hub id"),
    (["generate", "x", "-m", "model", "--preset", "sdxl"], 1, "sdxl"),
    (["generate", "x", "-m", "model", "--output", "photo.png/inside"], 2, "photo.png"),
    (["generate", "x", "-m", "model", "--option", "eta"], 2, "must be KEY=VALUE"),
    (["generate", "x", "-m", "model", "--stesp", "3"], 2, "No such option: --stesp"),
    (["generate", "word " * 90, "-m", "model", "--steps", "1", "--strict"], 2, "word"),
    (["edit", "missing.png", "x", "-m", "model"], 2, "missing.png"),
    (["vary", "photo.png", "-m", "model"], 2, "is no unCLIP model"),
    (["generate", "x", "-m", "unclip"], 2, "it needs reference"),
    (["inspect", "photo.txt"], 1, "photo.txt"),
    (["convert", "model", "unclip"], 1, "exists"),
    (["convert", "model", "new", "--shard", "many"], 2, "must be a size such as"),
    (["replay", "photo.png", "-m", "model"], 2, "carries no mezzotint record"),
    (["samplers", "eular"], 2, "did you mean 'euler'?"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_wrong_request_is_told_in_a_line_and_leaves_nothing(
    arguments: list[str], code: int, words: str, mezzotint: Command, world: Path
) -> None:
    refuses(mezzotint, world, arguments, code, words)


def test_a_part_of_the_model_that_is_missing_is_named(mezzotint: Command, world: Path) -> None:
    (world / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    ran = mezzotint("generate", "x", "-m", "model")
    assert ran.code == 1
    assert "unet" in ran.err


def test_a_truncated_file_is_named(mezzotint: Command, world: Path) -> None:
    weights = world / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ran = mezzotint("generate", "x", "-m", "model")
    assert ran.code == 1
    assert "diffusion_pytorch_model.safetensors" in ran.err


def test_interrupt_leaves_no_broken_file_and_exits_130(world: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mezzotint.cli.main",
        "generate",
        "x",
        "-m",
        "model",
        "--steps",
        "999",
        "--count",
        "9",
    ]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells start background jobs deaf to it
    with subprocess.Popen(
        command, cwd=world, env=os.environ, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    ) as process:
        assert process.stderr is not None
        deadline = time.monotonic() + 60
        while not (world / "outputs").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        # while C code imports something, Python dies of the signal itself at its end: a shell calls that 130, too
        assert process.wait(60) in {130, -signal.SIGINT}, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert not [path for path in (world / "outputs").iterdir() if path.is_file()]


def test_shell_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mezzotint.cli.main"],
        env={**os.environ, "_MEZZOTINT_COMPLETE": "complete_bash", "COMP_WORDS": "mezzotint gen", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "generate" in done.stdout
