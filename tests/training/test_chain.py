"""From nothing to pictures in small: autoencoder, CLIP and U-Net trained one upon the other; each continues exactly."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from mezzotint.data.drawing import encoded
from mezzotint.errors import ConfigError
from mezzotint.training import state
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.loop import train
from mezzotint.training.part import Inputs, make
from mezzotint.training.unet import UNetPart

COLORS = {"red": (230, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 220), "black": (0, 0, 0)}
SHAPES = ("square", "disc", "bar")
COMMON: dict[str, Any] = {
    "data": {"resolution": 16}, "max_train_steps": 4, "train_batch_size": 4, "learning_rate": 1e-3,
    "ema": [{"kind": "power", "value": 0.1}], "logging_steps": 1, "checkpointing_steps": 50, "validation_steps": 4,
    "needs": {"autoencoder": "../autoencoder", "clip": "../clip"},
}  # fmt: skip
TOWER = {"width": 16, "layers": 1, "heads": 2, "mlp": 32, "activation": "gelu", "projection": 8}
TEXT = {**TOWER, "vocabulary": 530, "bos": 528, "eos": 529, "pad": 529}
UNET = {
    "levels": [{"channels": 16}, {"channels": 16, "depth": 1, "heads": 2}], "blocks": 1, "norm_groups": 8,
    "middle": {"channels": 16}, "context": 16,
}  # fmt: skip
DIFFUSION = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True}
RECIPES: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "settings": {
            "model": {"channels": [8, 16], "blocks": 1, "norm_groups": 4, "scaling": 1.0},
            "gan_start": 2, "gan_channels": 8, "gan_layers": 2,
        },
    },
    "clip": {
        "settings": {"text": TEXT, "image": {**TOWER, "patch": 8, "size": 16}},
        "data": {"resolution": 16, "group": "shape"},
    },
    "unet": {
        "settings": {"model": UNET, "diffusion": DIFFUSION, "views": 2},
        "data": {"resolution": 16, "by": "shape", "at_least": 2},
        "validation_prompts": ["a red disc", "a blue bar"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of shapes in colours, two of them held out."""
    folder = tmp_path_factory.mktemp("shapes")
    rows: list[dict[str, Any]] = []
    for color, rgb in COLORS.items():
        for shape in SHAPES:
            picture = Image.new("RGB", (16, 16), "white")
            draw = ImageDraw.Draw(picture)
            if shape == "disc":
                draw.ellipse((3, 3, 12, 12), fill=rgb)
            else:
                draw.rectangle((3, 3, 12, 12 if shape == "square" else 6), fill=rgb)
            image = {"bytes": encoded(picture), "path": ""}
            said = [f"a {color} {shape}", f"{shape}, {color}"]
            rows.append({"key": f"{color}-{shape}", "captions": said, "shape": shape, "image": image})
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # without types
    parquet.write_table(arrow.Table.from_pylist(rows[:-2]), folder / "train.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows[-2:]), folder / "heldout.parquet")
    return folder


def recipe(part: str, changes: Mapping[str, Any]) -> TrainConfig:
    return parse(TrainConfig, {**COMMON, "part": part, **RECIPES[part], **changes})


def trained(part: str, data: Path, folder: Path, runs: Path, stops: tuple[int, ...] = (), **changes: Any) -> None:
    """Train a part in `folder`, stopping after each number of further steps in `stops`."""
    config = recipe(part, changes)
    needs = {role: runs / role for role in ("autoencoder", "clip")}
    for stop in (*stops, 1000):
        answers = iter([False] * stop + [True])
        made = make(config, Inputs(data=data, needs=needs, cache=runs / "cache"))
        train(made, config, folder, should_stop=lambda answers=answers: next(answers))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three parts, trained without a break."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.journal.find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        for part in RECIPES:
            trained(part, data, folder / part, folder)
    return folder


def log_of(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "pace"} for record in records]


@pytest.mark.parametrize("part", RECIPES)
def test_parts_continue_exactly(part: str, data: Path, runs: Path, tmp_path: Path) -> None:
    """Stopped after steps 1 and 3 and continued by a part made anew, in bfloat16: same log, same bits."""
    trained(part, data, tmp_path / part, runs, stops=(1, 2))
    assert log_of(tmp_path / part) == log_of(runs / part)
    one, other = (state.newest(folder / part / "checkpoints") for folder in (runs, tmp_path))
    assert one is not None
    assert other is not None
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_discriminator_joins_when_it_should(runs: Path) -> None:
    steps = [record["step"] for record in log_of(runs / "autoencoder") if "discriminator" in record]
    assert steps == [3, 4]  # steps taken: it plays from the step numbered 2 on


def test_autoencoder_learns(data: Path, runs: Path, tmp_path: Path) -> None:
    trained("autoencoder", data, tmp_path, runs, max_train_steps=60, learning_rate=5e-3)
    psnr = [record["psnr"] for record in log_of(tmp_path) if record["what"] == "held-out"]
    assert psnr[-1] > psnr[0] + 3


def test_unet_reads_its_text_and_shows_its_prompts(data: Path, runs: Path) -> None:
    config = recipe("unet", {})
    needs = {role: runs / role for role in ("autoencoder", "clip")}
    part = make(config, Inputs(data=data, needs=needs, cache=runs / "cache"))
    assert isinstance(part, UNetPart)
    assert part.count == 10
    assert torch.stack([*part.train.moments]).shape == (10, 2, 8, 8, 8)
    (context,), row = part.texts.context, part.texts.row
    assert context.shape == (1 + 2 * 12 + 1, 77, 16)  # the empty text, every caption, zeros
    assert not torch.equal(context[row["a red disc"]], context[row["a blue disc"]])
    with Image.open(runs / "unet" / "sheets" / "step-00000004.png") as sheet:
        assert sheet.size == (32, 16)


def test_unet_without_its_autoencoder_is_refused(data: Path, tmp_path: Path) -> None:
    config = recipe("unet", {})
    with pytest.raises(ConfigError, match=r"needs\.autoencoder: this recipe builds on a trained autoencoder"):
        make(config, Inputs(data=data, needs={}, cache=tmp_path))
    with pytest.raises(ConfigError, match="no exported networks; train the autoencoder first"):
        make(config, Inputs(data=data, needs={"autoencoder": tmp_path}, cache=tmp_path))


def test_clip_with_another_vocabulary_than_the_captions_give_is_refused(data: Path, tmp_path: Path) -> None:
    config = recipe("clip", {"settings": {**RECIPES["clip"]["settings"], "text": {**TEXT, "vocabulary": 900}}})
    with pytest.raises(ConfigError, match="learnt from the captions"):
        make(config, Inputs(data=data, needs={}, cache=tmp_path))


def test_unknown_part_is_refused(tmp_path: Path) -> None:
    config = recipe("unet", {"part": "unets"})
    with pytest.raises(ConfigError, match=r"recipe\.part: unknown part 'unets'; did you mean 'unet'\?"):
        make(config, Inputs(data=tmp_path, needs={}, cache=tmp_path))
