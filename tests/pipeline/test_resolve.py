"""Defaults of the families, and what a model refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mezzotint.checkpoints.files import write_state
from mezzotint.errors import CheckpointError, RequestError
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.resolve import resolve
from mezzotint.pipeline.system import System, load

Reference = Callable[[str], tuple[Any, Path]]  # Any: diffusers is untyped


@pytest.fixture
def system(reference: Reference) -> Callable[[str], System]:
    return lambda kind: load(reference(kind)[1], dtype="float32")


def test_a_folder_names_size_and_sampler(system: Callable[[str], System]):
    request = resolve(system("sd1"), Request(prompt="x")).request
    assert (request.width, request.height, request.steps, request.guidance) == (64, 64, 20, 7.5)
    assert (request.sampler, request.spacing) == ("plms", "leading")
    assert resolve(system("xl"), Request(prompt="x")).request.sampler == "euler"
    assert request.seed is not None


@pytest.mark.parametrize(
    ("given", "asked", "size"),
    [
        ((64, 64), {}, (64, 64)),
        ((70, 50), {}, (64, 48)),
        ((640, 320), {}, (88, 40)),  # not above the area of the model's own size
        ((640, 320), {"width": 128}, (128, 64)),
        ((640, 320), {"width": 128, "height": 128}, (128, 128)),
    ],
)
def test_size_follows_the_given_picture(
    system: Callable[[str], System], given: tuple[int, int], asked: dict[str, int], size: tuple[int, int]
):
    fields: dict[str, Any] = {"image": Image.new("RGB", given), **asked}  # Any: fields of a request
    request = resolve(system("sd1"), Request(**fields)).request
    assert (request.width, request.height) == size


@pytest.mark.parametrize(
    ("rule", "steps", "run"), [("diffusers", 10, 5), ("a1111", 10, 6), ("comfy", 10, 10), ("diffusers", 7, 3)]
)
def test_whose_rule_turns_strength_into_steps(system: Callable[[str], System], rule: str, steps: int, run: int):
    fields: dict[str, Any] = {"image": Image.new("RGB", (64, 64)), "strength": 0.5, "start": rule}  # Any: fields
    resolved = resolve(system("sd1"), Request(**fields, steps=steps, sampler="ddim"))
    assert len(resolved.levels) - 1 == run


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("sd1", {"reference": b"x"}, "is no unCLIP model; use image with strength"),
        ("unclip", {}, "is an unCLIP model: it needs reference, the picture to vary"),
        ("inpaint", {}, "is an inpainting model: it needs image and mask"),
        ("xl", {"refiner": "r", "steps": 1}, "refiner_at = 0.8: one of the two models has none of the 1 steps"),
        ("sd1", {"image": Image.new("RGB", (8, 8)), "strength": 0.1, "steps": 4}, "at least 0.25 is needed"),
        ("sd1", {"image": b"not a picture"}, "image: not a PNG, JPEG or WebP picture"),
    ],
)
def test_what_a_model_cannot_do_is_refused(
    system: Callable[[str], System], kind: str, fields: dict[str, Any], message: str
):
    with pytest.raises(RequestError, match=message):
        resolve(system(kind), Request(**fields))


def test_unclip_without_statistics_is_refused(reference: Reference, tmp_path: Path):
    folder = shutil.copytree(reference("unclip")[1], tmp_path / "model")
    shutil.rmtree(folder / "image_normalizer")
    with pytest.raises(CheckpointError, match=r"lacks; fetch ViT-L-14_stats.th of Karlo"):
        load(folder, preset="sd2-unclip-l")
    write_state(tmp_path / "stats.safetensors", {"mean": torch.ones(24), "std": torch.ones(24)})
    statistics = load(folder, preset="sd2-unclip-l", unclip_stats=tmp_path / "stats.safetensors").statistics
    assert statistics is not None
    assert torch.equal(statistics.mean, torch.ones(1, 24))


def test_a_model_without_all_parts_is_refused(reference: Reference, tmp_path: Path):
    folder = shutil.copytree(reference("sd1")[1], tmp_path / "model")
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="vae"):
        load(folder)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path, reference: Reference):
    with pytest.raises(CheckpointError, match="no such file or folder, and not a hub id"):
        load(tmp_path / "absent.safetensors")
    with pytest.raises(RequestError, match="unknown dtype 'flaot32'; did you mean 'float32'"):
        load(reference("sd1")[1], dtype="flaot32")
    with pytest.raises(RequestError, match="device 'gpu0'"):
        load(reference("sd1")[1], device="gpu0")


def test_a_hub_id_that_is_not_cached_is_refused_offline():
    with pytest.raises(CheckpointError, match="'nobody/nothing' is neither a path nor to be had from the hub"):
        load("nobody/nothing")
