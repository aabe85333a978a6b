"""Conversion changes no byte of what both layouts hold, lists the rest, and diffusers loads what comes out."""

import json
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from checkpoints.models import FAMILIES, checkpoint, component
from mezzotint.checkpoints.checkpoint import read, save_file, save_folder
from mezzotint.checkpoints.component import STEMS, Checkpoint
from mezzotint.checkpoints.convert import averaged, convert
from mezzotint.checkpoints.files import read_header, read_sharded, read_state, write_state
from mezzotint.checkpoints.ldm import ema_map
from mezzotint.checkpoints.translate import invert
from mezzotint.errors import CheckpointError
from mezzotint.models.unet import UNetConfig

State = dict[str, torch.Tensor]


def weights(folder: Path) -> dict[str, State]:
    """All tensors of a folder by part."""
    return {role: read_sharded(folder / role, stem) for role, stem in STEMS.items() if (folder / role).is_dir()}


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].contiguous(), other[name]) for name in one
    )


@pytest.mark.parametrize("family", ["sd15", "sd2-v", "sdxl", "sdxl-refiner", "sd2-unclip-h"])
def test_there_and_back_is_the_identity(family: str, tmp_path: Path):
    """folder → file → folder and file → folder → file, every tensor in every byte."""
    model = checkpoint(family)
    assert save_folder(model, tmp_path / "a").dropped == ()
    convert(tmp_path / "a", tmp_path / "b.safetensors", keep_extra=True)
    report = convert(tmp_path / "b.safetensors", tmp_path / "c")
    assert report.dropped == report.kept == report.notes == ()
    first, last = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert first.keys() == last.keys()
    assert all(same(first[role], last[role]) for role in first)
    convert(tmp_path / "c", tmp_path / "d.safetensors", keep_extra=True)
    assert same(read_state(tmp_path / "b.safetensors"), read_state(tmp_path / "d.safetensors"))
    again = read(tmp_path / "d.safetensors")
    assert again.preset == read(tmp_path / "a").preset == family
    assert again.objective == model.objective
    assert again.scheduler == read(tmp_path / "a").scheduler


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_folder(family: str, tmp_path: Path):
    save_folder(checkpoint(family), tmp_path / "model")
    loader: Any = DiffusionPipeline  # has no types
    logging.disable(logging.WARNING)  # it recommends torchvision
    try:
        pipeline = loader.from_pretrained(tmp_path / "model", dtype=torch.float16)
    finally:
        logging.disable(logging.NOTSET)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert type(pipeline).__name__ == index["_class_name"]
    for role, state in weights(tmp_path / "model").items():
        bare = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
        loaded: State = getattr(pipeline, role).state_dict()
        loaded = {name.removeprefix("text_model."): tensor for name, tensor in loaded.items()}
        assert same(bare, loaded), role
    for name in ("tokenizer", "tokenizer_2"):
        if tokenizer := getattr(pipeline, name, None):
            pad = 0 if "2" in family or name.endswith("_2") or "x4" in family else 49407
            if family == "sdxl" and name == "tokenizer":
                pad = 49407
            assert tokenizer("a red fox").input_ids == [49406, 320, 736, 3240, 49407]
            assert tokenizer.pad_token_id == pad


@pytest.mark.parametrize("family", ["sd2-depth", "sd15-inpaint", "sd15-ip2p", "sd2-inpaint", "sd2-unclip-l"])
def test_every_family_survives_both_layouts(family: str, tmp_path: Path):
    model = checkpoint(family)
    save_folder(model, tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b.safetensors")
    found = read(tmp_path / "b.safetensors")
    assert (found.preset, read(tmp_path / "a").preset) == (family, family)
    assert {role: part.config for role, part in found.components.items()} == {
        role: part.config for role, part in model.components.items()
    }


def test_other_folders_are_listed(tmp_path: Path):
    save_folder(checkpoint("sd15"), tmp_path / "a")
    (tmp_path / "a" / "safety_checker").mkdir()
    assert convert(tmp_path / "a", tmp_path / "b").notes == ("safety_checker/: not converted",)


def original(family: str) -> tuple[Checkpoint, State]:
    """A model as it was released: with an average, a schedule, and what folders have no place for."""
    model = checkpoint(family)
    assert model.unet
    assert isinstance(model.unet.config, UNetConfig)
    average = invert(ema_map(model.unet.config), component("unet", model.unet.config, seed=1).state)
    extras = average | {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "betas": torch.linspace(0, 1, 10),
        "alphas_cumprod": torch.linspace(1, 0, 10, dtype=torch.float64),
    }
    if family == "sd15":
        extras["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(10)[None]
    else:
        extras |= {
            "cond_stage_model.model.logit_scale": torch.tensor(4.6),
            "cond_stage_model.model.text_projection": torch.ones(16, 8),
            "cond_stage_model.model.transformer.resblocks.3.ln_1.weight": torch.ones(16),
        }
    return replace(model, extras=extras), average


@pytest.mark.parametrize("family", ["sd15", "sd2-v"])
def test_what_a_folder_cannot_hold_is_listed_or_kept(family: str, tmp_path: Path):
    model, _ = original(family)
    assert set(save_file(model, tmp_path / "a.safetensors", keep_extra=True).kept) == model.extras.keys()
    found = read(tmp_path / "a.safetensors")
    assert found.extras.keys() == model.extras.keys()

    pruned = convert(tmp_path / "a.safetensors", tmp_path / "pruned")
    assert set(pruned.dropped) == model.extras.keys()
    assert read(tmp_path / "pruned").extras == {}

    kept = convert(tmp_path / "a.safetensors", tmp_path / "kept", keep_extra=True)
    assert set(kept.kept) == model.extras.keys()
    assert kept.dropped == ()
    convert(tmp_path / "kept", tmp_path / "b.safetensors", keep_extra=True)
    assert same(read_state(tmp_path / "a.safetensors"), read_state(tmp_path / "b.safetensors"))


def test_what_a_file_cannot_hold_is_listed_or_kept(tmp_path: Path):
    save_folder(checkpoint("sd15"), tmp_path / "a")
    weights_file = tmp_path / "a" / "text_encoder" / "model.safetensors"
    state = read_state(weights_file) | {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    write_state(weights_file, state, {"format": "pt"})
    name = "text_encoder.text_model.embeddings.position_ids"
    assert convert(tmp_path / "a", tmp_path / "pruned.safetensors").dropped == (name,)
    assert convert(tmp_path / "a", tmp_path / "kept.safetensors", keep_extra=True).kept == (name,)
    convert(tmp_path / "kept.safetensors", tmp_path / "b", keep_extra=True)
    assert same(read_state(tmp_path / "b" / "text_encoder" / "model.safetensors"), state)
    assert not (tmp_path / "b" / "extra.safetensors").exists()


def test_unclip_statistics_are_listed_or_kept(tmp_path: Path):
    save_folder(checkpoint("sd2-unclip-h"), tmp_path / "a")
    report = convert(tmp_path / "a", tmp_path / "b.safetensors")
    assert report.dropped == ("image_normalizer.mean", "image_normalizer.std")
    assert read(tmp_path / "b.safetensors").image_noise is None
    report = convert(tmp_path / "b.safetensors", tmp_path / "c")
    assert report.notes == ("image_normalizer: the source does not have the statistics of image embeddings",)


def test_average_replaces_the_trained_weights(tmp_path: Path):
    model, average = original("sd15")
    save_file(model, tmp_path / "a.safetensors", keep_extra=True)
    convert(tmp_path / "a.safetensors", tmp_path / "ema.safetensors", ema=True)
    single = read_state(tmp_path / "ema.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert torch.equal(single[name], average["model_ema.diffusion_modelinput_blocks00weight"])
    assert not any(key.startswith("model_ema") for key in single)
    plain = convert(tmp_path / "a.safetensors", tmp_path / "plain.safetensors")
    assert len(plain.dropped) == len(model.extras)
    assert not torch.equal(read_state(tmp_path / "plain.safetensors")[name], single[name])


def test_missing_or_partial_average_is_refused():
    model, average = original("sd15")
    with pytest.raises(CheckpointError, match=r"no averaged weights \(model_ema.…\) in it; convert without ema"):
        averaged(replace(model, extras={}))
    name = "model_ema.diffusion_modelout0weight"
    with pytest.raises(CheckpointError, match=rf"1 tensor does not fit:\n  {name}: not in the file"):
        averaged(replace(model, extras={key: tensor for key, tensor in average.items() if key != name}))


@pytest.mark.parametrize(("dtype", "name"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_dtype(dtype: str, name: str, tmp_path: Path):
    save_file(checkpoint("sd15"), tmp_path / "a.safetensors", dtype=torch.float32)
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=dtype)
    header = read_header(tmp_path / "b.safetensors")
    assert {info.dtype for info in header.tensors.values()} == {name}
    assert same(read_state(tmp_path / "a.safetensors"), read_state(tmp_path / "b.safetensors")) == (name == "F32")


def test_shards_are_read_by_diffusers_and_by_us(tmp_path: Path):
    model = checkpoint("sd15")
    save_folder(model, tmp_path / "whole")
    save_file(model, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "split", shard_bytes=200_000)
    shards = sorted((tmp_path / "split" / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(sum(info.nbytes for info in read_header(shard).tensors.values()) <= 200_000 for shard in shards)
    whole = weights(tmp_path / "whole")
    assert all(same(whole[role], state) for role, state in weights(tmp_path / "split").items())
    loader: Any = DiffusionPipeline  # has no types
    pipeline = loader.from_pretrained(tmp_path / "split", dtype=torch.float16)
    assert same(whole["unet"], pipeline.unet.state_dict())


def test_metadata_follows_modelspec(tmp_path: Path):
    model = replace(checkpoint("sd2-v"), info={"modelspec": {"modelspec.author": "somebody", "modelspec.title": "Old"}})
    save_file(model, tmp_path / "a.safetensors")
    metadata = read_header(tmp_path / "a.safetensors").metadata
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["modelspec.resolution"] == "768x768"
    assert metadata["modelspec.author"] == "somebody"
    assert metadata["modelspec.title"] == "Old"
    assert len(metadata["modelspec.hash_sha256"]) == 66
    convert(tmp_path / "a.safetensors", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.safetensors")
    again = read_header(tmp_path / "c.safetensors").metadata
    assert {key: text for key, text in again.items() if key.startswith("modelspec.")} == {
        key: text for key, text in metadata.items() if key.startswith("modelspec.")
    }


def test_wrong_arguments_are_explained(tmp_path: Path):
    save_file(checkpoint("sd15"), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="unknown dtype 'float15'; did you mean 'float16'"):
        convert(tmp_path / "a.safetensors", tmp_path / "b", dtype="float15")
    with pytest.raises(CheckpointError, match="a single file cannot be split"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", shard_bytes=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(CheckpointError, match="full exists and is not an empty folder; choose another name"):
        convert(tmp_path / "a.safetensors", tmp_path / "full")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_file(checkpoint("sd15"), tmp_path / "a.safetensors")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mezzotint.checkpoints.save.write_json", full)
    with pytest.raises(CheckpointError, match="b cannot be written: No space left on device"):
        convert(tmp_path / "a.safetensors", tmp_path / "b")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_memory_stays_small(tmp_path: Path):
    """128 MB are cast and written with the memory of one tensor."""
    model = checkpoint("sd15")
    extras = {f"extra.{i}": torch.zeros(2**20) for i in range(32)}
    save_file(replace(model, extras=extras), tmp_path / "a.safetensors", keep_extra=True)
    del extras
    peak, done = [0], threading.Event()

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))  # kB

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.001)

    convert(tmp_path / "a.safetensors", tmp_path / "warm.safetensors")  # imports and caches
    before = anonymous()
    thread = threading.Thread(target=watch)
    thread.start()
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="float16", keep_extra=True)
    done.set()
    thread.join()
    assert peak[0] - before < 48_000
