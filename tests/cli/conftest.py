"""A folder with everything that the examples of README and `--help` name, and a way to run the command in it."""

import io
import json
import math
import shutil
import signal
from collections.abc import Callable, Generator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image, ImageDraw

from mezzotint.checkpoints.checkpoint import default_scheduler
from mezzotint.checkpoints.component import Checkpoint, Component
from mezzotint.checkpoints.files import write_json, write_state
from mezzotint.checkpoints.save import save_folder
from mezzotint.checkpoints.translate import Config, shapes_of
from mezzotint.cli.main import run
from mezzotint.models.clip import ImageConfig
from mezzotint.models.presets import PRESETS
from mezzotint.training.config import recipe
from mezzotint.training.state import MANIFEST

IMAGE_TOWER = ImageConfig(width=32, layers=2, heads=4, mlp=64, activation="gelu", projection=16, patch=56)


class Ran(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


def refuses(command: Command, world: Path, arguments: list[str], code: int, words: str) -> None:
    """That these arguments are refused in a line or three with these words, and leave no file."""
    before = sorted(world.rglob("*"))
    ran = command(*arguments)
    assert ran.code == code, ran.err
    assert words in ran.err
    assert len(ran.err.strip().splitlines()) <= 3
    assert "Traceback" not in ran.err
    left = [path for path in sorted(world.rglob("*")) if path not in before and "cache" not in path.parts]
    assert not [path for path in left if path.is_file()]


def drawn(role: str, config: Config) -> Component:
    """A network with random weights of reasonable size."""
    generator = torch.Generator().manual_seed(sum(role.encode()))

    def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator) * (shape[0] / math.prod(shape)) ** 0.5

    state = {name: weights(name, shape) for name, shape in shapes_of(config).items()}
    return Component(role=role, config=config, state=state, source=Path())


def tiny_checkpoint(*, is_unclip: bool = False) -> Checkpoint:
    """A Stable Diffusion of 32 channels; as unCLIP it is told a picture, too."""
    tiny = PRESETS["tiny"]
    name, objective = ("sd2-unclip-h", "v_prediction") if is_unclip else ("sd15", "epsilon")
    unet = replace(tiny.unet, vector=2 * IMAGE_TOWER.projection, is_linear=True) if is_unclip else tiny.unet
    return Checkpoint(
        preset=name,
        objective=objective,
        unet=drawn("unet", unet),
        vae=drawn("vae", tiny.vae),
        text=(drawn("text_encoder", tiny.text[0]),),
        image=drawn("image_encoder", IMAGE_TOWER) if is_unclip else None,
        scheduler=default_scheduler(name, objective),
        tokenizers=(None,),
        image_noise=(torch.zeros(1, 16), torch.ones(1, 16)) if is_unclip else None,
        info={
            "hints": {"unet": {"sample_size": 8}},
            "recipe": {"unet": {"data": {"resolution": 64, "where": {"style": ["flat", "3d"]}, "by": "concept"}}},
        },
    )


def finished_run(folder: Path) -> None:
    """In runs/autoencoder what a finished run leaves, with a smaller network; in icons64 a set of two pictures."""
    config, run, pictures = recipe("icons-autoencoder"), folder / "runs" / "autoencoder", folder / "icons64"
    write_state(run / "export" / "autoencoder.safetensors", {"weight": torch.ones(2, 2)})
    write_json(run / "export" / "autoencoder.json", {})
    write_json(run / "checkpoints" / "step-00002600" / MANIFEST, {"trajectory": config.trajectory()})
    measured = {"step": 2600, "what": "held-out", f"psnr@{config.ema[0].name}": 30.0}
    (run / "log.jsonl").write_text(json.dumps(measured) + "\n")
    pictures.mkdir()
    for name in ("heart", "star"):
        Image.new("RGB", (64, 64)).save(pictures / f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"a {name}")


def drawn_pictures(folder: Path, count: int) -> None:
    """Captioned pictures to be measured, all different."""
    folder.mkdir()
    for i in range(count):
        picture = Image.new("RGB", (32, 32), (30 * i, 200 - 20 * i, 10 * count))
        ImageDraw.Draw(picture).ellipse((4, 4, 12 + 2 * i, 28), fill=(250, 20 * i, 90))
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a disc, number {i}\n")


def pairs_of(folder: Path) -> None:
    """A set in the icon set's layout: three concepts in two styles and one in a third; two pairs are held back."""
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for i, concept in enumerate(("heart", "star", "apple")):
        for style, background in (("flat", "white"), ("3d", "gray"), ("bw", "black")):
            picture = Image.new("RGB", (64, 64), background)
            ImageDraw.Draw(picture).regular_polygon((32, 32, 24), 3 + i, fill="red")
            data = io.BytesIO()
            picture.save(data, "PNG")
            said = {"key": f"{style}--{concept}", "captions": [f"a {concept}, {style} emoji", f"a {concept}"]}
            rows.append({**said, "concept": concept, "style": style, "image": {"bytes": data.getvalue(), "path": ""}})
    held = {"3d--heart", "bw--star", "flat--apple"}
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # without types
    for name, is_held in (("train", False), ("heldout", True)):
        chosen = [row for row in rows if (row["key"] in held) == is_held]
        parquet.write_table(arrow.Table.from_pylist(chosen), folder / f"{name}.parquet")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test gets a copy of."""
    folder = tmp_path_factory.mktemp("shelf")
    save_folder(tiny_checkpoint(), folder / "model")
    save_folder(tiny_checkpoint(is_unclip=True), folder / "unclip")
    finished_run(folder)
    pairs_of(folder / "pairs")
    photo = Image.linear_gradient("L").resize((72, 56)).convert("RGB")
    ImageDraw.Draw(photo).ellipse((20, 12, 50, 40), fill="orange")
    photo.save(folder / "photo.png")
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).rectangle((40, 16, 60, 40), fill=255)
    mask.save(folder / "mask.png")
    for name, count in (("pictures", 6), ("reference", 8)):
        drawn_pictures(folder / name, count)
    (folder / "prompts.txt").write_text("# one prompt per line\na red fox\n\na blue bird\n")
    return folder


@pytest.fixture
def world(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with model/, unclip/, runs/, icons64/, three files and a cache of its own."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def mezzotint(world: Path, capsys: pytest.CaptureFixture[str]) -> Generator[Command]:
    """Run the command in `world` with these arguments; what it sets for its whole process is set back afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()

    def command(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ran(code, out, err)

    yield command
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
