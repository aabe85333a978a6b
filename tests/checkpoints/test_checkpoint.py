"""Whole models are read exactly or not at all, from what diffusers writes and from what was published."""

import json
import resource
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as ReferenceVAE
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from checkpoints import headers
from checkpoints.models import checkpoint, component, shrunk
from mezzotint.checkpoints import config, diffusers, ldm
from mezzotint.checkpoints.checkpoint import default_scheduler, read, read_vae, save_file, save_folder
from mezzotint.checkpoints.component import Checkpoint
from mezzotint.checkpoints.files import read_header, read_json, read_state, write_json, write_state
from mezzotint.checkpoints.translate import invert
from mezzotint.errors import CheckpointError
from mezzotint.models.presets import PRESETS
from mezzotint.models.vae import VAEConfig

State = Mapping[str, torch.Tensor]


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def models_equal(one: Checkpoint, other: Checkpoint) -> bool:
    parts, others = one.components, other.components
    return parts.keys() == others.keys() and all(
        parts[role].config == others[role].config and same(parts[role].state, others[role].state) for role in parts
    )


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("models") / "sd1"
    save_folder(checkpoint("sd15"), folder)
    return folder


@pytest.fixture
def folder(sd1: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd1, tmp_path / "sd1"))


def test_what_diffusers_saves_is_read(tmp_path: Path):
    """A folder that never saw our code: its tensors, its configs, its scheduler."""
    preset = shrunk("sd15")
    unet, vae, pipeline_of, text_config = _untyped(
        UNet2DConditionModel, ReferenceVAE, StableDiffusionPipeline, CLIPTextConfig
    )
    parts: dict[str, Any] = {
        "unet": unet.from_config(config.write_unet(preset.unet, is_sized=True)),
        "vae": vae.from_config(config.write_vae(preset.vae)),
        "text_encoder": CLIPTextModel(text_config(**config.write_text(preset.text[0]))),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction"),
    }
    absent = dict.fromkeys(("tokenizer", "safety_checker", "feature_extractor"))
    pipeline_of(**parts, **absent, requires_safety_checker=False).save_pretrained(tmp_path / "model")
    found = read(tmp_path / "model")
    assert (found.preset, found.objective, found.variant) == ("sd15", "v_prediction", "text")
    assert found.scheduler.name == "DDIMScheduler"
    assert found.tokenizers == (None,)
    keymaps = {
        "unet": diffusers.unet_map(preset.unet),
        "vae": diffusers.vae_map(preset.vae),
        "text_encoder": diffusers.text_map(preset.text[0], is_bare=True),
    }
    for role, keymap in keymaps.items():
        assert same(invert(keymap, found.components[role].state), parts[role].state_dict())
    save_folder(found, tmp_path / "again")
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        assert same(read_state(tmp_path / "again" / file), read_state(tmp_path / "model" / file))  # in the same names


def _untyped(*classes: Any) -> tuple[Any, ...]:  # constructors that have no types
    return classes


def test_trained_folder_is_read(trained_folder: Path):
    found = read(trained_folder)
    assert found.preset == "sd15"
    assert found.unet
    assert found.unet.source == trained_folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert found.info["hints"] == {"unet": {"sample_size": 16}, "vae": {"sample_size": 64}}


def test_trained_model_survives_a_single_file(trained_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its own size and its own vocabulary travel in the metadata."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    save_file(read(trained_folder), tmp_path / "model.safetensors")
    found = read(tmp_path / "model.safetensors")
    assert models_equal(found, read(trained_folder))
    assert found.scheduler == read(trained_folder).scheduler
    (tokenizer,) = found.tokenizers
    assert tokenizer
    save_folder(found, tmp_path / "folder")
    for own in ("vocab.json", "merges.txt"):
        wanted = (trained_folder / "tokenizer" / own).read_bytes()
        assert (tokenizer / own).read_bytes() == wanted
        assert (tmp_path / "folder" / "tokenizer" / own).read_bytes() == wanted


def test_optional_parts_may_be_missing(folder: Path):
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part)
    found = read(folder)
    assert found.vae is None
    assert found.text == ()
    assert found.detection
    assert found.detection.missing == ("vae", "text")
    assert found.scheduler == default_scheduler("sd15", "epsilon")


def test_half_precision_files(folder: Path):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    found = read(folder).unet
    assert found
    assert found.source == file
    with pytest.raises(CheckpointError, match=r"vae: diffusion_pytorch_model.fp16.safetensors is missing"):
        read(folder, variant="fp16")
    for part in ("vae", "text_encoder"):
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))
    found = read(folder, variant="fp16").unet
    assert found
    assert found.source.name.endswith("fp16.safetensors")
    file.unlink()
    assert models_equal(read(folder), read(folder, variant="fp16"))  # found without asking, where nothing else is


def test_pickles_of_a_folder_go_through_the_quarantine(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    expected = read(folder)
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = folder / part / f"{stem}.safetensors"
        torch.save({name: tensor.clone() for name, tensor in read_state(file).items()}, folder / part / (
            "pytorch_model.bin" if stem == "model" else f"{stem}.bin"))  # fmt: skip
        file.unlink()
    assert models_equal(read(folder), expected)


def test_pickle_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    model = checkpoint("tiny", PRESETS["tiny"])
    save_file(model, tmp_path / "a.safetensors")
    state = {name: tensor.clone() for name, tensor in read_state(tmp_path / "a.safetensors").items()}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "a.ckpt")
    assert models_equal(read(tmp_path / "a.ckpt", preset="tiny"), model)
    (tmp_path / "a.ckpt").rename(tmp_path / "b.safetensors")  # a name that promises that no code is inside
    with pytest.raises(CheckpointError, match=r"is not a safetensors file but a zip archive .*; name it .ckpt"):
        read(tmp_path / "b.safetensors", preset="tiny")


# single files


@pytest.mark.parametrize(
    ("preset", "objective"),
    [
        ("sd15", "epsilon"),
        ("sd15-inpaint", "epsilon"),
        ("sd2-v", "v_prediction"),
        ("sdxl", "epsilon"),
        ("sdxl-refiner", "epsilon"),
        ("x4-upscaler", "v_prediction"),
    ],
)
def test_published_files_are_read_at_once(preset: str, objective: str, tmp_path: Path):
    """Full size, as others wrote them: nothing is copied, so gigabytes take no memory until they are used."""
    file = headers.write(tmp_path / "model.safetensors", headers.checkpoint(preset.removesuffix("-v")))
    read(file)  # imports and caches
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB
    found = read(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert (found.preset, found.objective) == (preset, objective)
    assert {role: part.config for role, part in found.components.items()} == {
        "unet": PRESETS[preset].unet,
        "vae": PRESETS[preset].vae,
        **dict(zip([part.role for part in found.text], PRESETS[preset].text, strict=True)),
    }
    beyond = {key for key in found.extras if ".resblocks.23." in key}  # SD 2's tower has a layer that is not used
    assert len(beyond) == (12 if "cond_stage_model.model.ln_final.bias" in read_header(file).tensors else 0)
    assert found.extras.keys() - beyond <= {"alphas_cumprod", "cond_stage_model.model.text_projection"}


def test_incomplete_image_tower_is_told_by_name(tmp_path: Path):
    file = headers.write(tmp_path / "model.safetensors", headers.checkpoint("sd2-unclip-h"))
    with pytest.raises(CheckpointError) as error:
        read(file)
    assert str(error.value).startswith(
        f"{file}: 519 tensors do not fit:\n  embedder.model.visual.class_embedding: not in "
    )
    assert str(error.value).endswith("and 514 more")


def test_wrong_preset_is_refused_with_the_reason(tmp_path: Path):
    file = headers.write(tmp_path / "model.safetensors", headers.checkpoint("sdxl"))
    with pytest.raises(CheckpointError) as error:
        read(file, preset="sd15")
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight [640, 2048]"
    assert str(error.value) == (
        f"model.safetensors looks like Stable Diffusion XL base ({key}) but preset sd15 was asked for; "
        "pass --preset sdxl or leave it out"
    )


@pytest.mark.parametrize(
    ("asked", "preset", "objective"),
    [
        ({"preset": "sd2"}, "sd2", "epsilon"),
        ({"preset": "sd2-v"}, "sd2-v", "v_prediction"),
        ({"objective": "epsilon"}, "sd2", "epsilon"),
        ({"preset": "sd2", "objective": "v_prediction"}, "sd2-v", "v_prediction"),
        ({"objective": "sample"}, "sd2", "sample"),
    ],
)
def test_what_shapes_cannot_tell_can_be_overruled(asked: dict[str, str], preset: str, objective: str, tmp_path: Path):
    found = read(headers.write(tmp_path / "model.safetensors", headers.checkpoint("sd2")), **asked)
    assert (found.preset, found.objective) == (preset, objective)
    assert found.scheduler.objective == objective


def test_unknown_overrides_are_suggested(sd1: Path):
    with pytest.raises(CheckpointError, match="unknown preset 'sd-xl'; did you mean 'sdxl'"):
        read(sd1, preset="sd-xl")
    with pytest.raises(CheckpointError, match="unknown objective 'eps'"):
        read(sd1, objective="eps")


def test_a_preset_with_other_towers_is_refused(sd1: Path):
    with pytest.raises(CheckpointError, match="sd1: 1 text encoders, preset sdxl has 2"):
        read(sd1, preset="sdxl")


def plain(model: Checkpoint, path: Path, **changes: torch.Tensor) -> Path:
    """A single file without our metadata."""
    save_file(model, path)
    write_state(path, dict(read_state(path)) | changes)
    return path


def test_own_size_needs_metadata_or_a_name(tmp_path: Path):
    model = checkpoint("tiny", PRESETS["tiny"])
    file = plain(model, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not supported"):
        read(file)
    found = read(file, preset="tiny")
    assert models_equal(found, model)
    assert found.detection
    assert found.detection.rule == "asked for by name"


def test_unknown_tensors_inside_a_network_are_refused(tmp_path: Path):
    model = checkpoint("tiny", PRESETS["tiny"])
    extras = {"model.diffusion_model.extra.weight": torch.ones(3), "global_step": torch.ones(1)}
    file = plain(model, tmp_path / "a.safetensors", **extras)
    with pytest.raises(CheckpointError, match=r"extra.weight: \(3,\) in the file, not in the model"):
        read(file, preset="tiny")
    file = plain(model, tmp_path / "b.safetensors", global_step=torch.ones(1))
    assert list(read(file, preset="tiny").extras) == ["global_step"]


def test_a_file_without_autoencoder_takes_one(tmp_path: Path):
    model = checkpoint("tiny", PRESETS["tiny"])
    file = plain(replace(model, vae=None, text=(), tokenizers=()), tmp_path / "pruned.safetensors")
    assert read(file, preset="tiny").vae is None
    save_folder(model, tmp_path / "folder")
    found = read(file, preset="tiny", vae=tmp_path / "folder").vae
    assert found
    assert model.vae
    assert same(found.state, model.vae.state)


def test_a_u_net_alone(tmp_path: Path, sd1: Path):
    found = read(sd1 / "unet")
    assert list(found.components) == ["unet"]
    bare = {name: shape for name, shape in headers.ldm_unet("sd15").items()}
    assert list(read(headers.write(tmp_path / "unet.safetensors", bare)).components) == ["unet"]
    prefixed = {f"model.diffusion_model.{name}": shape for name, shape in bare.items()}
    assert list(read(headers.write(tmp_path / "full.safetensors", prefixed)).components) == ["unet"]
    theirs = headers.diffusers_unet("sd15")
    assert list(read(headers.write(tmp_path / "theirs.safetensors", theirs)).components) == ["unet"]


def test_other_files_are_no_models(tmp_path: Path, sd1: Path):
    vae = headers.write(tmp_path / "vae.safetensors", headers.ldm_vae())
    with pytest.raises(CheckpointError, match=r"vae.safetensors is not a model but"):
        read(vae)
    with pytest.raises(
        CheckpointError, match=r"vae is not a model but .*; give the folder that holds model_index.json"
    ):
        read(sd1 / "vae")


# autoencoders


@pytest.mark.parametrize("layout", ["diffusers", "ldm", "ldm in a checkpoint"])
def test_autoencoder_of_either_layout(layout: str, tmp_path: Path, sd1: Path):
    like = shrunk("sd15").vae
    other = component("vae", like, seed=5)
    keymap = diffusers.vae_map(like) if layout == "diffusers" else ldm.vae_map(like)
    state = invert(keymap, other.state)
    if layout.endswith("checkpoint"):
        state = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    write_state(tmp_path / "vae.safetensors", state | {"loss.logvar": torch.zeros(1)})
    found = read(sd1, vae=tmp_path / "vae.safetensors").vae
    assert found
    assert same(found.state, other.state)
    assert found.source == tmp_path / "vae.safetensors"


def test_autoencoder_of_another_scale_is_refused(folder: Path):
    settings = read_json(folder / "vae" / "config.json") | {"scaling_factor": 0.13025}
    write_json(folder / "vae" / "config.json", settings)
    with pytest.raises(CheckpointError, match=r"its latents are scaled by 0.13025, those of the model by 0.18215"):
        read_vae(folder / "vae", shrunk("sd15").vae)


def test_autoencoder_that_does_not_fit(sd1: Path, tmp_path: Path):
    small = VAEConfig(channels=(8, 8), blocks=1, norm_groups=4)
    write_state(tmp_path / "vae.safetensors", invert(ldm.vae_map(small), component("vae", small).state))
    with pytest.raises(CheckpointError, match=r"vae.safetensors: \d+ tensors do not fit"):
        read(sd1, vae=tmp_path / "vae.safetensors")


# what folders can have wrong


def test_damage_in_a_folder_is_told_by_name(folder: Path):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = dict(read_state(file))
    del state["decoder.conv_in.bias"]
    write_state(file, state | {"decoder.surprise": torch.ones(2)})
    with pytest.raises(CheckpointError) as error:
        read(folder)
    assert str(error.value) == (
        f"{folder / 'vae'}: 2 tensors do not fit:\n"
        "  decoder.conv_in.bias: not in the file, (32,) in the model (decoder.conv_in.bias)\n"
        "  decoder.surprise: (2,) in the file, not in the model"
    )


def test_unclip_statistics(tmp_path: Path):
    save_folder(checkpoint("sd2-unclip-h"), tmp_path / "model")
    found = read(tmp_path / "model")
    assert found.image_noise
    assert [float(value.mean()) for value in found.image_noise] == [0.25, 2.0]
    file = tmp_path / "model" / "image_normalizer" / "diffusion_pytorch_model.safetensors"
    write_state(file, {"mean": torch.zeros(1, 16)})
    with pytest.raises(CheckpointError, match="image_normalizer: found mean; mean and std are expected"):
        read(tmp_path / "model")


def test_notes_of_a_later_version_are_refused(folder: Path):
    write_json(folder / "mezzotint.json", {"schema": 2})
    with pytest.raises(CheckpointError, match=r"mezzotint.json: schema 2 is newer than this program \(1\)"):
        read(folder)
    (folder / "mezzotint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"mezzotint.json: not valid JSON"):
        read(folder)
    (folder / "mezzotint.json").write_text("[]")
    assert read(folder).preset == "sd15"


def test_notes_survive(folder: Path, tmp_path: Path):
    model = replace(read(folder), info={"recipe": "icons", "card": "abc"})
    save_folder(model, tmp_path / "again")
    assert read(tmp_path / "again").info["recipe"] == "icons"
    save_file(model, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").info["card"] == "abc"
    said = json.loads(read_header(tmp_path / "a.safetensors").metadata["mezzotint"])
    assert (said["schema"], said["preset"]) == (1, "sd15")


def test_metadata_without_a_u_net_is_refused(tmp_path: Path):
    file = tmp_path / "a.safetensors"
    save_file(checkpoint("sd15"), file)
    header = read_header(file)
    said = json.loads(header.metadata["mezzotint"])
    del said["components"]["unet"]
    write_state(file, dict(read_state(file)), header.metadata | {"mezzotint": json.dumps(said)})
    with pytest.raises(CheckpointError, match="the metadata describes no U-Net"):
        read(file)


def test_nothing_in_a_config_is_run_or_followed(folder: Path, tmp_path: Path):
    """Keys that make other programs import code, and a class that is none."""
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    for part in ("unet", "vae", "text_encoder"):
        settings = read_json(folder / part / "config.json")
        write_json(
            folder / part / "config.json",
            settings | {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "evil/repo"},
        )
    index = read_json(folder / "model_index.json") | {"_class_name": "os.system", "unet": ["../evil", "Model"]}
    write_json(folder / "model_index.json", index)
    assert read(folder).preset == "sd15"
    assert not canary.exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_default_schedule_is_the_published_one(preset: str):
    scheduler = default_scheduler(preset, "epsilon")
    betas = (0.0001, 0.02) if preset == "x4-upscaler" else (0.00085, 0.012)
    expected = torch.linspace(betas[0] ** 0.5, betas[1] ** 0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.schedule().alphas_cumprod, torch.cumprod(1 - expected, 0))


def test_zero_terminal_snr_of_a_file():
    scheduler = default_scheduler("sdxl", "v_prediction", is_zero_snr=True)
    assert scheduler.schedule().alphas_cumprod[-1] == 0
    assert scheduler.timestep_spacing == "trailing"
