"""What finished runs become: networks that other runs build on, and a model that diffusers loads and draws with."""

import json
import math
import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.checkpoints.files import read_header, read_json, read_state, write_state
from mezzotint.errors import ConfigError
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.system import load
from mezzotint.training.config import TrainConfig, parse, recipe
from mezzotint.training.package import card_of, network_of, pack_model, pack_network, said, scheduler_of
from mezzotint.training.part import CARD, Inputs, place_of
from mezzotint.training.step import DiffusionSettings
from training import test_chain as chain

data = chain.data  # a fixture: twelve pictures of shapes in colours
ROLES = ("autoencoder", "clip")
MIDDLE = {**chain.UNET, "middle": {"channels": 16, "depth": 1, "heads": 2}}  # diffusers' middle has a transformer
CHANGES: dict[str, dict[str, Any]] = {
    "autoencoder": {"max_train_steps": 40, "learning_rate": 5e-3, "validation_steps": 40},
    "clip": {},
    "unet": {
        "settings": {"model": MIDDLE, "diffusion": chain.DIFFUSION, "views": 2},
        "max_train_steps": 20, "learning_rate": 5e-3, "validation_steps": 20,
    },
}  # fmt: skip


def config(part: str) -> TrainConfig:
    return chain.recipe(part, CHANGES[part])


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all three parts, and packages/ of the two that the U-Net needs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.journal.find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        for part, changes in CHANGES.items():
            chain.trained(part, data, folder / part, folder, **changes)
    weights = folder / "unet" / "export" / "unet.safetensors"
    loud = {".cross_attention.v": 100, "conv_out.weight": 4}  # so few steps do not teach it to read and to say much
    state = {
        key: weight * math.prod(factor for name, factor in loud.items() if name in key)
        for key, weight in read_state(weights).items()
    }
    write_state(weights, state)
    for role in ROLES:
        pack_network([config(role)], folder / role, data, folder / "packages" / role)
    return folder


@pytest.fixture(scope="module")
def model(runs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model."""
    folder = tmp_path_factory.mktemp("packaged") / "shapes"
    pack_model([config("unet")], runs / "unet", inputs(runs, data), folder)
    return folder


def inputs(runs: Path, data: Path) -> Inputs:
    return Inputs(data=data, needs={role: runs / "packages" / role for role in ROLES}, cache=runs / "cache")


def theirs(folder: Path, prompt: str) -> Image.Image:
    """The picture that diffusers makes of the folder."""
    diffusers: Any = import_module("diffusers")  # Any: untyped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 8, "guidance_scale": 3.0, "height": 16, "width": 16}
        return pipe(prompt=prompt, generator=torch.Generator().manual_seed(1), **options).images[0]


def ours(folder: Path, prompt: str) -> Image.Image:
    """The same by this package, at the size that the folder says."""
    return generate(load(folder, dtype="float32"), prompt=prompt, steps=8, guidance=3.0, seed=1).images[0]


def psnr(one: Image.Image, other: Image.Image) -> float:
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    error = float(np.mean((a - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def test_diffusers_makes_the_same_picture(model: Path) -> None:
    wanted = theirs(model, "a red disc")
    assert wanted.size == (16, 16)
    assert np.asarray(wanted).std() > 5  # a picture, not a plain
    assert psnr(ours(model, "a red disc"), wanted) >= 50
    assert psnr(ours(model, "blue bar"), wanted) < 50  # the text counts
    file = model / "scheduler" / "scheduler_config.json"
    written = file.read_text("utf-8")
    try:  # and so does what is written of the schedule
        for key, wrong in {"timestep_spacing": "leading", "clip_sample": True}.items():
            file.write_text(json.dumps({**json.loads(written), key: wrong}), "utf-8")
            assert psnr(ours(model, "a red disc"), wanted) < 50, key
    finally:
        file.write_text(written, "utf-8")


def test_model_says_what_it_is(model: Path, runs: Path) -> None:
    told: dict[str, Any] = read_json(model / "mezzotint.json")
    assert (told["objective"], told["null"]) == ("v_prediction", {"text_encoder": "empty"})
    assert told["recipe"]["unet"]["settings"]["diffusion"] == chain.DIFFUSION
    assert told["recipe"]["clip"]["data"] == {"resolution": 16, "group": "shape"}
    text = (model / "README.md").read_text("utf-8")
    for line in (
        "# shapes",
        "16 x 16",
        "guidance=3)",
        "- a red disc",
        "part: autoencoder",
        "| not said | not said | 10",
    ):
        assert line in text
    measured = [r["psnr@power-0.1"] for r in chain.log_of(runs / "autoencoder") if r["what"] == "held-out"][-1]
    assert f"psnr {measured:.4g}" in text
    files = list(model.rglob("*.safetensors"))
    assert len(files) == 3
    assert {info.dtype for file in files for info in read_header(file).tensors.values()} == {"F16"}


def test_packaged_network_is_the_exported_one_rounded(runs: Path) -> None:
    for role, name in (("autoencoder", "autoencoder"), ("clip", "text")):
        exported = read_state(runs / role / "export" / f"{name}.safetensors")
        packaged = read_state(runs / "packages" / role / f"{name}.safetensors")
        assert exported.keys() == packaged.keys()
        assert all(torch.equal(packaged[key], exported[key].half()) for key in exported)


def test_card_counts_pictures_by_source_and_licence(runs: Path, tmp_path: Path) -> None:
    rows = [
        {"file_name": f"{i}.png", "caption": f"shape {i}", "licence": licence, "source": f"npm:{package}@1#{i}"}
        for i, (package, licence) in enumerate([("a", "MIT"), ("a", "MIT"), ("b", "CC-BY-4.0")] * 20)
    ]
    for row in rows:
        Image.new("RGB", (16, 16)).save(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "card.json").write_text("{}", "utf-8")
    card = card_of([config("autoencoder")], runs / "autoencoder", tmp_path)
    assert sum(source.pictures for source in card.sources.values()) == card.pictures
    assert {name: source.licence for name, source in card.sources.items()} == {"npm:a@1": "MIT", "npm:b@1": "CC-BY-4.0"}
    assert card.sources["npm:a@1"].pictures > card.sources["npm:b@1"].pictures
    assert card.data_card == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of "{}"
    assert (card.steps, card.samples) == (40, 160)


def test_card_of_stages_counts_all_of_them(runs: Path, data: Path) -> None:
    last = config("autoencoder")
    earlier = replace(last, max_train_steps=7, train_batch_size=3)
    alone, card = card_of([last], runs / "autoencoder", data), card_of([earlier, last], runs / "autoencoder", data)
    assert (card.steps, card.samples) == (alone.steps + 7, alone.samples + 21)
    assert card.recipe == {"stages": [said(earlier), said(last)]}
    assert (card.measures, card.parameters) == (alone.measures, alone.parameters)


def test_run_of_another_recipe_is_refused(runs: Path, data: Path) -> None:
    other = replace(config("clip"), learning_rate=2e-3)
    with pytest.raises(ConfigError, match="was trained by another recipe"):
        card_of([other], runs / "clip", data)
    with pytest.raises(ConfigError, match="no exported networks; train the clip first"):
        card_of([other], data, data)


def test_model_of_networks_without_cards_is_refused(runs: Path, data: Path, tmp_path: Path) -> None:
    needs = {role: runs / role for role in ROLES}
    with pytest.raises(ConfigError, match=r"needs\.autoencoder: .* has no card\.json; package that run first"):
        pack_model([config("unet")], runs / "unet", Inputs(data=data, needs=needs, cache=tmp_path), tmp_path / "out")


def test_packaged_model_is_built_on_like_the_networks_in_it(
    model: Path, runs: Path, data: Path, tmp_path: Path
) -> None:
    """Its autoencoder and text encoder, with their cards and the vocabulary, go on into the next model."""
    needs = {role: model for role in ROLES}
    cards = pack_model(
        [config("unet")], runs / "unet", Inputs(data=data, needs=needs, cache=tmp_path), tmp_path / "shapes"
    )
    assert [card.part for card in cards] == ["autoencoder", "clip", "unet"]
    files = [file.relative_to(model) for file in sorted(model.rglob("*")) if file.is_file()]
    assert files == [
        file.relative_to(tmp_path / "shapes") for file in sorted((tmp_path / "shapes").rglob("*")) if file.is_file()
    ]
    assert all((model / file).read_bytes() == (tmp_path / "shapes" / file).read_bytes() for file in files)


def test_need_is_the_first_place_that_is_there(runs: Path) -> None:
    packaged = place_of("package:icons-parts/evaluator", runs / "unet")
    assert (packaged / CARD).is_file()
    assert place_of("../autoencoder | package:icons-parts/evaluator", runs / "unet") == runs / "autoencoder"
    assert place_of("../none | package:icons-parts/evaluator", runs / "unet") == packaged
    assert place_of("../none | ../nor", runs / "unet") == runs / "none"
    assert Inputs(data=runs, needs={"autoencoder": packaged}, cache=runs).run("autoencoder") == packaged


def test_settings_are_said_without_defaults() -> None:
    told = said(recipe("icons-autoencoder"))
    assert told["ema"] == [{"kind": "power", "value": 0.05}]
    assert told["data"] == {"resolution": 64}
    assert "mixed_precision" not in told


def test_scheduler_is_the_schedule_that_was_trained() -> None:
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        diffusion = {**chain.DIFFUSION, "beta_schedule": kind}
        written = scheduler_of(chain.recipe("unet", {"settings": {"model": MIDDLE, "diffusion": diffusion}}))
        wanted = parse(DiffusionSettings, diffusion).schedule()
        assert torch.equal(written.schedule().alphas_cumprod, wanted.alphas_cumprod)
        assert written.objective == "v_prediction"


def test_a_clip_that_judges_is_packaged_whole() -> None:
    assert network_of(recipe("icons-clip", ())) == "text"
    assert network_of(recipe("icons-evaluator", ())) == "clip"
