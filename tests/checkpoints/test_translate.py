"""Maps are applied and inverted without changing a bit, and what does not fit is told by name."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from checkpoints.models import FAMILIES, component, shrunk
from mezzotint.checkpoints import diffusers, openclip
from mezzotint.checkpoints.component import folder_map, single_file_maps
from mezzotint.checkpoints.translate import (
    Entry,
    KeyMap,
    apply,
    apply_all,
    formed,
    invert,
    modules,
    nested,
    network,
    prefixed,
    shapes_of,
)
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import TextTower
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import UNet


@pytest.mark.parametrize("family", FAMILIES)
def test_file_to_model_to_file_is_the_identity(family: str):
    preset = shrunk(family)
    configs = {"unet": preset.unet, "vae": preset.vae} | ({"image_encoder": preset.image} if preset.image else {})
    for role, config in configs.items():
        ours = component(role, config).state
        for keymap in (folder_map(config), single_file_maps({role: config})[role]):
            theirs = invert(keymap, ours)
            again = apply(keymap, theirs, shapes_of(config), where="file")
            assert again.keys() == ours.keys()
            assert all(torch.equal(again[name], ours[name]) for name in ours)
            assert all(torch.equal(tensor, invert(keymap, again)[name]) for name, tensor in theirs.items())


def test_reading_copies_nothing():
    config = PRESETS["tiny-xl"].text[1]
    theirs = invert(openclip.text_map(config), component("text_encoder_2", config).state)
    storages = {tensor.untyped_storage().data_ptr() for tensor in theirs.values()}
    ours = apply(openclip.text_map(config), theirs, shapes_of(config), where="file")
    assert {tensor.untyped_storage().data_ptr() for tensor in ours.values()} == storages


def test_empty_network_is_the_network():
    """Skipping the random weights changes neither names nor shapes, and a loaded one computes the same."""
    config = PRESETS["tiny"].text[0]
    plain, empty = TextTower(config), network(config)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert isinstance(network(PRESETS["tiny"].unet), UNet)
    empty.load_state_dict(plain.state_dict(), assign=True)
    ids = torch.tensor([[49406, 5, 49407]])
    assert torch.equal(empty(ids).pooled, plain(ids).pooled)


def test_drawing_weights_is_skipped(monkeypatch: pytest.MonkeyPatch):
    """On the meta device PyTorch would import its compiler to draw nothing."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a weight was drawn")

    monkeypatch.setattr(torch.Tensor, "normal_", refuse)
    with pytest.raises(AssertionError, match="a weight was drawn"):
        nn.Embedding(2, 2)
    network(replace(PRESETS["tiny"].text[0], layers=1))


SHAPES: dict[str, tuple[int, ...]] = {"a.weight": (4, 2), "b.weight": (4, 2), "c": (3,), "q": (2, 2), "k": (2, 2)}
MAP: KeyMap = {
    "a.weight": Entry(key="x.weight", form="conv"),
    "b.weight": Entry(key="y.weight", form="transposed"),
    "c": Entry(key="z", aliases=("old_z",)),
    "q": Entry(key="qkv", part=0),
    "k": Entry(key="qkv", part=1),
}


def file_state() -> dict[str, torch.Tensor]:
    shapes = {"x.weight": (4, 2, 1, 1), "y.weight": (2, 4), "z": (3,), "qkv": (6, 2)}
    return {name: torch.arange(float(torch.Size(shape).numel())).reshape(shape) for name, shape in shapes.items()}


def test_forms():
    state = file_state()
    ours = apply(MAP, state, SHAPES, where="file")
    assert torch.equal(ours["a.weight"], state["x.weight"][:, :, 0, 0])
    assert torch.equal(ours["b.weight"], state["y.weight"].T)
    assert torch.equal(ours["k"], state["qkv"][2:4])


def test_matrix_is_read_where_the_layout_has_a_convolution():
    state = file_state()
    state["x.weight"] = state["x.weight"][:, :, 0, 0]
    assert torch.equal(apply(MAP, state, SHAPES, where="file")["a.weight"], state["x.weight"])


def test_older_name_is_read_and_the_newer_one_written():
    state = file_state()
    state["old_z"] = state.pop("z")
    assert torch.equal(apply(MAP, state, SHAPES, where="file")["c"], state["old_z"])
    keymap = {"c": MAP["c"]}
    assert list(invert(keymap, {"c": state["old_z"]})) == ["z"]
    assert prefixed(keymap, "p.")["c"] == Entry(key="p.z", aliases=("p.old_z",))


def test_problems_have_both_names():
    state = file_state()
    del state["z"]
    state["x.weight"] = torch.zeros(4, 2, 3, 3)
    with pytest.raises(CheckpointError) as error:
        apply(MAP, state, SHAPES, where="model.safetensors")
    assert str(error.value) == (
        "model.safetensors: 2 tensors do not fit:\n"
        "  x.weight: shape (4, 2, 3, 3) in the file, (4, 2, 1, 1) in the model (a.weight)\n"
        "  z: not in the file, (3,) in the model (c)"
    )


def test_long_lists_are_shortened():
    config = PRESETS["tiny"].unet
    keymap = diffusers.unet_map(config)
    with pytest.raises(CheckpointError) as error:
        apply(keymap, {}, shapes_of(config), where="unet")
    lines = str(error.value).splitlines()
    assert lines[0] == f"unet: {len(keymap)} tensors do not fit:"
    assert len(lines) == 6
    assert lines[-1].endswith(f"and {len(keymap) - 5} more")


def test_left_over_tensors_are_refused_inside_a_network_only():
    config = PRESETS["tiny"].vae
    keymap = prefixed(folder_map(config), "net.")
    state = invert(keymap, component("vae", config).state)
    state |= {"net.position_ids": torch.zeros(1), "betas": torch.zeros(2)}

    def split() -> dict[str, torch.Tensor]:
        optional, within = re.compile(r"position_ids$"), ("net.",)
        return apply_all({"vae": keymap}, {"vae": config}, state, where="file", optional=optional, within=within)[1]

    assert list(split()) == ["net.position_ids", "betas"]
    state["net.surprise"] = torch.zeros(7)
    with pytest.raises(
        CheckpointError, match=r"1 tensor does not fit:\n  net.surprise: \(7,\) in the file, not in the"
    ):
        split()


def test_maps_are_built_from_maps():
    assert modules([("a", "b")], bias=False) == {"a.weight": Entry(key="b.weight")}
    inner = formed(modules([("a", "b")]), "conv")
    assert inner["a.bias"].form == "same"
    assert nested("out", "theirs", inner)["out.a.weight"] == Entry(key="theirs.b.weight", form="conv")
