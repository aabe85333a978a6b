"""What a model is made of once it has been read: networks with their configs, and everything that goes with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from mezzotint.checkpoints import diffusers, ldm
from mezzotint.checkpoints.detection import Detection, Objective
from mezzotint.checkpoints.scheduler import SchedulerConfig
from mezzotint.checkpoints.signatures import Variant
from mezzotint.checkpoints.translate import Config, KeyMap, prefixed
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig

SCHEMA = 1
INFO = "mezzotint.json"  # in a folder; in a single file, metadata under the name without .json
EXTRA = "extra"  # stem of the file for tensors that a folder has no place for

# parts of a folder -> stem of their weight files
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "image_encoder": "model",
    "image_normalizer": "diffusion_pytorch_model",
}
PICKLES = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}  # stems of older folders
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
HINTS = ("sample_size", "upcast_attention", "force_upcast")  # config keys that matter to users of a folder, not to us


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One network: its role (the folder that diffusers has for it), config, our state dict, and where it came from."""

    role: str
    config: Config
    state: dict[str, Tensor]
    source: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A model, or the parts of one that a file has. Tensors are memory-mapped: nothing is loaded until it is used."""

    preset: str
    objective: Objective
    unet: Component | None
    vae: Component | None = None
    text: tuple[Component, ...] = ()
    image: Component | None = None  # tower that unCLIP reads a picture with
    scheduler: SchedulerConfig
    tokenizers: tuple[Path | None, ...] = ()  # folder for each text tower; None = CLIP's own
    image_noise: tuple[Tensor, Tensor] | None = None  # mean and deviation [1 d] of unCLIP's embeddings
    extras: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # by the names of the file: not loaded
    detection: Detection | None = None  # how it was recognised; None for what was never a file
    info: dict[str, object] = field(default_factory=dict[str, object])  # mezzotint.json without schema and preset

    @property
    def variant(self) -> Variant | None:
        """What the model does, if it was recognised: text, inpaint, edit …"""
        return self.detection.variant if self.detection else None

    @property
    def sample_size(self) -> int | None:
        """Side of the latents that the U-Net was trained at, if the model says."""
        hints = self.info.get("hints")
        unet: object = hints.get("unet") if isinstance(hints, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # JSON
        size: object = unet.get("sample_size") if isinstance(unet, Mapping) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # JSON
        return size if isinstance(size, int) else None

    @property
    def components(self) -> dict[str, Component]:
        """All networks by role."""
        parts = (self.unet, self.vae, *self.text, self.image)
        return {part.role: part for part in parts if part is not None}


def text_roles(configs: Sequence[TextConfig]) -> tuple[str, ...]:
    """Folders of the text towers: a single one that pools is the refiner's, which only has the second."""
    if len(configs) == 1 and configs[0].projection:
        return ("text_encoder_2",)
    return ("text_encoder", "text_encoder_2")[: len(configs)]


def single_file_maps(configs: Mapping[str, Config]) -> dict[str, KeyMap]:
    """Entries of every role in a single file, with prefixes."""
    towers = [config for config in configs.values() if isinstance(config, TextConfig)]
    maps: dict[str, KeyMap] = {}
    for role, config in configs.items():
        match config:
            case UNetConfig():
                maps[role] = prefixed(ldm.unet_map(config), ldm.UNET)
            case VAEConfig():
                maps[role] = prefixed(ldm.vae_map(config), ldm.VAE)
            case TextConfig():
                maps[role] = ldm.text_map(towers, [role for role in configs if role in TOKENIZERS].index(role))
            case ImageConfig():
                maps[role] = ldm.image_map(config)
    return maps


def folder_map(config: Config, *, is_sized: bool = True, is_bare: bool = False) -> KeyMap:
    """Entries of one network in its folder. For reading, the defaults do: other names are aliases.

    `is_sized` and `is_bare` are those of `diffusers.unet_map` and `diffusers.text_map`.
    """
    match config:
        case UNetConfig():
            return diffusers.unet_map(config, is_sized=is_sized)
        case VAEConfig():
            return diffusers.vae_map(config)
        case TextConfig():
            return diffusers.text_map(config, is_bare=is_bare and not config.projection)
        case ImageConfig():
            return diffusers.image_map(config)
