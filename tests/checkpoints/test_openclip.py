"""open_clip's names: against diffusers' converter, and against PyTorch's own attention, which it uses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import nn

from checkpoints import headers
from checkpoints.models import component, shrunk
from mezzotint.checkpoints import diffusers, openclip
from mezzotint.checkpoints.config import write_text
from mezzotint.checkpoints.translate import apply, file_shape, invert, network, prefixed, shapes_of
from mezzotint.models.clip import ImageConfig, ImageTower
from mezzotint.models.presets import PRESETS

reference: Any = single_file_utils  # the converters have no types


@pytest.mark.parametrize(("preset", "index"), [("sdxl", 1), ("sd2", 0)])
def test_full_size_names_and_shapes(preset: str, index: int):
    config = PRESETS[preset].text[index]
    ours = {entry.key: file_shape(entry, shapes_of(config)[name]) for name, entry in openclip.text_map(config).items()}
    theirs = headers.openclip("g" if preset == "sdxl" else "h")
    if preset == "sd2":  # single files hold one layer more than is used, and a projection
        beyond = {key for key in theirs if ".resblocks.23." in key} | {"text_projection"}
        assert theirs.keys() - ours.keys() == beyond
    assert ours == {key: shape for key, shape in theirs.items() if key in ours}
    assert len(ours) == len(theirs) - (0 if preset == "sdxl" else 13)


def test_diffusers_converts_our_tower():
    config = shrunk("sdxl").text[1]
    ours = component("text_encoder_2", config).state
    single = invert(prefixed(openclip.text_map(config), "conditioner.embedders.1.model."), ours)

    model = SimpleNamespace(config=SimpleNamespace(**write_text(config)))
    converted = reference.convert_open_clip_checkpoint(model, single, prefix="conditioner.embedders.1.model.")
    expected = invert(diffusers.text_map(config), ours)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_image_tower_computes_as_open_clip_does(generator: torch.Generator):
    """The pre-norm transformer of open_clip, written with PyTorch's attention, on the same file."""
    config = ImageConfig(width=16, layers=1, heads=2, mlp=24, activation="gelu", projection=6, patch=4, size=8)
    keymap = openclip.image_map(config)
    shapes = {entry.key: file_shape(entry, shapes_of(config)[name]) for name, entry in keymap.items()}
    file = {key: torch.randn(shape, generator=generator) / 4 for key, shape in shapes.items()}
    tower = network(config)
    assert isinstance(tower, ImageTower)
    tower.load_state_dict(apply(keymap, file, shapes_of(config), where="file"), assign=True)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.layer_norm(x, (16,), file[f"{name}.weight"], file[f"{name}.bias"])

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.linear(x, file[f"{name}.weight"], file[f"{name}.bias"])

    image = torch.randn(2, 3, 8, 8, generator=generator)
    x = nn.functional.conv2d(image, file["conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([file["class_embedding"].expand(2, 1, -1), x], dim=1) + file["positional_embedding"]
    x = norm(x, "ln_pre")
    block = "transformer.resblocks.0"
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    own = {name: file[f"{block}.attn.{name}"] for name in attention.state_dict()}
    attention.load_state_dict(own)
    h = norm(x, f"{block}.ln_1")
    x = x + attention(h, h, h, need_weights=False)[0]
    h = nn.functional.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
    x = x + linear(h, f"{block}.mlp.c_proj")
    torch.testing.assert_close(tower(image).embedding, norm(x[:, 0], "ln_post") @ file["proj"])
