"""Networks that a run builds on: those that another run exported, or those of a model in any format that is read.

Roles are the keys of a recipe's `needs`: autoencoder, clip and clip_2 (text towers), image (the tower that unCLIP reads
pictures with), start (the U-Net whose training is continued).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from mezzotint.checkpoints.checkpoint import Checkpoint, Component, read
from mezzotint.checkpoints.files import read_state
from mezzotint.errors import ConfigError
from mezzotint.models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from mezzotint.models.unet import UNet, UNetConfig, initialise
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from mezzotint.pipeline.unclip import Statistics
from mezzotint.prompts.tokenizer import Tokenizer, bundled, from_folder
from mezzotint.training.clip import ClipSettings
from mezzotint.training.network import read_config, read_weights

N = TypeVar("N", bound=nn.Module)

TOWERS = {"clip": "text_encoder", "clip_2": "text_encoder_2"}  # role of a recipe -> role of a component
ADDED = ("vector_in.", "vector_out.")  # what a U-Net has more when it starts to be told a vector


class Reader(NamedTuple):
    """A text tower and the tokenizer that it was trained with."""

    tower: TextTower
    tokenizer: Tokenizer


def is_run(path: Path, name: str) -> bool:
    """Whether the folder holds a network that a run exported under this name."""
    return (path / f"{name}.json").is_file()


def read_autoencoder(path: Path) -> AutoencoderKL:
    """The autoencoder of a run or of a model."""
    if is_run(path, "autoencoder"):
        network = AutoencoderKL(read_config(path, "autoencoder", VAEConfig))
        read_weights(path, "autoencoder", network)
        return network
    part = _part(path, read(path), "vae")
    return filled(AutoencoderKL(cast("VAEConfig", part.config)), part.state)  # the role says which config


def read_reader(path: Path, role: str) -> Reader:
    """The text tower of a run or, by its role, of a model."""
    if is_run(path, "text"):
        tower = TextTower(read_config(path, "text", TextConfig))
        read_weights(path, "text", tower)
        return Reader(tower, from_folder(path / "tokenizer"))
    model = read(path)
    part = _part(path, model, TOWERS[role])
    folder = model.tokenizers[model.text.index(part)]
    tower = filled(TextTower(cast("TextConfig", part.config)), part.state)  # the role says which config
    return Reader(tower, bundled() if folder is None else from_folder(folder))


def read_image_tower(path: Path) -> tuple[ImageTower, Statistics | None]:
    """The image tower of a run or of an unCLIP model, and the statistics of its embeddings if the model has them."""
    if is_run(path, "clip"):
        tower = ImageTower(read_config(path, "clip", ClipSettings).image)
        state = read_state(path / "clip.safetensors")
        return filled(tower, {n.removeprefix("image."): w for n, w in state.items() if n.startswith("image.")}), None
    model = read(path)
    part = _part(path, model, "image_encoder")
    noise = model.image_noise and Statistics(*(value.float().reshape(1, -1) for value in model.image_noise))
    return filled(ImageTower(cast("ImageConfig", part.config)), part.state), noise  # the role says which config


def read_start(path: Path, config: UNetConfig, name: str, generator: torch.Generator) -> UNet:
    """The U-Net of a run or of a model as the start of another: of the same config, except that `vector` may be new.

    New layers begin by adding nothing, so that the network begins as the function that it was.
    Raises: ConfigError if it has another config; `name` says what was wanted.
    """
    if is_run(path, "unet"):
        found, state = read_config(path, "unet", UNetConfig), read_state(path / "unet.safetensors")
    else:
        part = _part(path, read(path), "unet")
        found, state = cast("UNetConfig", part.config), part.state  # the role says which config
    is_added = config.vector > 0 and found.vector == 0
    told = replace(found, is_linear=config.is_linear, vector=config.vector if is_added else found.vector)
    if told != config:
        raise ConfigError(
            f"needs.start: the U-Net in {path} is not that of {name} ({differences(told, config)}); start from a "
            "model of its own family, or with --start nothing from random weights"
        )
    unet = UNet(config)
    if not is_added:
        return filled(unet, state)
    initialise(unet, generator)
    assert unet.vector_out is not None
    nn.init.zeros_(unet.vector_out.weight)
    nn.init.zeros_(unet.vector_out.bias)
    own = {key: weight for key, weight in unet.state_dict().items() if key.startswith(ADDED)}
    return filled(unet, {**state, **own})


def differences(found: UNetConfig, wanted: UNetConfig) -> str:
    """The fields that differ, found → wanted; of levels, the channels and heads."""
    told: list[str] = []
    first, second = asdict(found), asdict(wanted)
    for name in first:
        if first[name] == second[name]:
            continue
        pair = [
            " ".join(f"{level.channels}/{level.heads}" for level in getattr(config, name))
            if name == "levels"
            else str(value[name])
            for config, value in ((found, first), (wanted, second))
        ]
        label = "channels/heads" if name == "levels" else name
        told += [f"{label} {pair[0]} → {pair[1]}"] if name not in {"middle", "up_levels"} else []
    return ", ".join(told)


def filled(network: N, state: Mapping[str, Tensor]) -> N:
    """The network with these weights, in float32."""
    network.load_state_dict({key: weight.float() for key, weight in state.items()})
    return network


def _part(path: Path, model: Checkpoint, role: str) -> Component:
    if role not in model.components:
        raise ConfigError(f"{path}: this model has no {role}; it has {', '.join(model.components)}")
    return model.components[role]
