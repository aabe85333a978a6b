"""A loaded model: its networks ready to run, the rules by which it reads prompts, and what it is called in records."""

import platform
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor, nn

from mezzotint.checkpoints import checkpoint as files
from mezzotint.checkpoints.checkpoint import Checkpoint, Component
from mezzotint.checkpoints.component import STEMS
from mezzotint.checkpoints.files import weight_files
from mezzotint.checkpoints.scheduler import SchedulerConfig
from mezzotint.checkpoints.translate import network
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS
from mezzotint.errors import CheckpointError, RequestError, unknown
from mezzotint.kernels import policy
from mezzotint.kernels.autoencoder import BandedAutoencoder, Bands, finished
from mezzotint.kernels.execution import Execution
from mezzotint.models.clip import ImageTower, TextTower
from mezzotint.models.unet import UNet
from mezzotint.models.vae import AutoencoderKL, Posterior
from mezzotint.names import PRESETS, PresetInfo
from mezzotint.pipeline.drive import Network
from mezzotint.pipeline.hashes import start_hash
from mezzotint.pipeline.preview import known_preview, previewed, remembered_preview
from mezzotint.pipeline.source import Place, locate
from mezzotint.pipeline.unclip import Statistics, read_statistics
from mezzotint.prompts.encode import LAST, RULES, EmptyNegative, Encoded, TowerRule, empty_negative
from mezzotint.prompts.tokenizer import Tokenizer, bundled, from_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

M = TypeVar("M", bound=nn.Module)


@dataclass(kw_only=True)
class System:
    """The networks of one model in one precision on one device. Made by `load`."""

    place: Place
    preset: str
    defaults: PresetInfo
    size: tuple[int, int]  # width and height in pixels if a request does not say
    sampler: str | None  # None: the one that the model's own scheduler config names
    scheduler: SchedulerConfig
    network: Network
    vae: AutoencoderKL
    text: tuple[TextTower, ...]
    tokenizers: tuple[Tokenizer, ...]
    rules: tuple[TowerRule, ...]
    empty_negative: EmptyNegative
    image_tower: ImageTower | None
    statistics: Statistics | None
    sources: Mapping[str, tuple[Path, ...]]  # files per component
    dtype: torch.dtype
    device: torch.device
    kernels: Execution
    prompts: OrderedDict[tuple[object, ...], tuple[Encoded, Encoded]] = field(
        default_factory=OrderedDict[tuple[object, ...], "tuple[Encoded, Encoded]"], init=False
    )  # what was encoded lately
    preview_weights: object = None  # as mezzotint.json states them
    _companions: dict[str, "System"] = field(default_factory=dict[str, "System"], init=False)
    _hashes: dict[str, Future[str]] = field(default_factory=dict[str, "Future[str]"], init=False)

    @property
    def name(self) -> str:
        """What the model is called in records and messages."""
        return self.place.name

    @property
    def unet(self) -> UNet:
        """The network that is asked at every step."""
        return self.network.unet

    @torch.no_grad()
    def encode(self, image: Tensor) -> Posterior:
        """Posterior of the latent of an image [1 3 h w] in [-1, 1]; float32."""
        mean, std = self.kernels.autoencoder(self.vae).encode(image.to(self.device, self.dtype))
        return Posterior(mean.float().cpu(), std.float().cpu())

    def decode(self, latent: Tensor) -> Tensor:
        """Image [1 3 h w] of a latent; float32."""
        return finished(self.decoding(latent))

    def decoding(self, latent: Tensor) -> Bands[Tensor]:
        """`decode` that yields between bands of rows, so that closing it stops there; all at once on plain kernels."""
        autoencoder = self.kernels.autoencoder(self.vae)
        if isinstance(autoencoder, BandedAutoencoder):
            return (yield from autoencoder.decoding(latent.to(self.device)))
        with torch.no_grad():
            return autoencoder.decode(latent.to(self.device, self.dtype)).float().cpu()

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """CLIP embedding [1 p] of a normalised square picture; float32."""
        if self.image_tower is None:
            raise RequestError(f"{self.name} has no image tower")
        return self.image_tower(pixels.to(self.device, self.dtype)).embedding.float().cpu()

    def preview(self, latent: Tensor) -> Image.Image:
        """A picture of one pixel per position of a latent [1 c h w], by a linear map that is fitted to the encoder."""
        return previewed(latent, self._preview_weights)

    @cached_property
    def _preview_weights(self) -> Tensor:
        known = known_preview(self.preview_weights, self.vae.config.latent_channels)
        return remembered_preview(self.vae, self.sources["vae"]) if known is None else known

    def companion(self, name: str) -> "System":
        """Another model in the same precision on the same device, loaded once: the refiner."""
        if name not in self._companions:
            self._companions[name] = load(
                name, dtype=_name_of(self.dtype), device=str(self.device), kernels=self.kernels.kernels.recorded()
            )
        return self._companions[name]

    def with_weights(self, weights: str) -> "System":
        """The same model whose U-Net runs with weights "int8" or "w8a8". Raises: RequestError where it cannot."""
        execution = Execution(policy.with_weights(self.kernels.kernels, weights, self.dtype))
        return replace(self, kernels=execution, network=self.network._replace(execution=execution))

    def start_hashing(self) -> None:
        """Begin to compute the hashes that records need, beside other work."""
        for role, paths in self.sources.items():
            if role not in self._hashes:
                self._hashes[role] = start_hash(paths)

    def identity(self) -> dict[str, dict[str, object]]:
        """Name, source, revision and sha256 of every component, the refiner's included once there is one."""
        self.start_hashing()
        own: dict[str, dict[str, object]] = {
            role: {
                "name": self.place.name,
                "source": self.place.source,
                "revision": self.place.revision,
                "sha256": self._hashes[role].result(),
            }
            for role in self.sources
        }
        for companion in self._companions.values():
            own |= {f"refiner.{role}": entry for role, entry in companion.identity().items()}
        return own

    def execution(self) -> dict[str, object]:
        """What decides, besides weights and request, about the bits of a picture."""
        return {
            "dtype": _name_of(self.dtype),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "kernels": self.kernels.kernels.recorded(),
            "processor": torch.backends.cpu.get_cpu_capability(),
            "versions": self.versions(),
        }

    def versions(self) -> dict[str, str]:
        """Of the programs that take part."""
        return {"mezzotint": version("mezzotint"), "torch": torch.__version__, "python": platform.python_version()}


def load(
    path: str | Path = "icons",
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    variant: str | None = None,
    preset: str | None = None,
    objective: str | None = None,
    vae: str | Path | None = None,
    unclip_stats: str | Path | None = None,
    kernels: str | Mapping[str, object] = "auto",
    weights: str = "auto",
) -> System:
    """The model of a folder, a file, a hub id ORG/NAME[@revision], or "icons", the one in this package.

    dtype "auto" is bfloat16 where the processor multiplies in it, else float32. `kernels` "auto" is what was measured
    to be fastest on this processor; "torch" runs every module as it is, "packed" needs no compiler, "native" prefers
    compiled kernels, and a record's own repeats its choice. `weights` approximates the U-Net: "int8" keeps weights in
    8 bits, "w8a8" multiplies in 8 bits, too. Nothing is fetched unless a hub id is given. `preset` and
    `objective` overrule detection; `vae` is a file that replaces the model's own; `unclip_stats` holds mean and
    standard deviation of image embeddings, which unCLIP-L files lack.

    Raises: CheckpointError if the model cannot be read exactly; RequestError for an unknown dtype or device, or weights
    that cannot be had here; ConfigError for unknown kernels.
    """
    where = _device(device)
    if where.type == "cpu":
        policy.settle_threads()
    precision = _dtype(dtype, where)
    if where.type != "cpu" and weights != "auto":
        raise RequestError(f"weights {weights!r}: on processors only, not on {where}; leave weights out")
    chosen = policy.chosen(precision, kernels) if where.type == "cpu" else policy.PLAIN
    chosen = policy.with_weights(chosen, weights, precision)
    place = locate(path, revision=revision, variant=variant)
    found = files.read(place.path, preset=preset, objective=objective, variant=variant, vae=vae)
    return _assembled(found, place, precision, where, variant, unclip_stats, Execution(chosen))


def preferred_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied in hardware and not slower, else float32; float16 on GPUs without it."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if kind == "cpu":
        return policy.preferred_dtype()
    return torch.float32


def _assembled(
    found: Checkpoint,
    place: Place,
    dtype: torch.dtype,
    device: torch.device,
    variant: str | None,
    unclip_stats: str | Path | None,
    kernels: Execution,
) -> System:
    if found.unet is None or found.vae is None or not found.text:
        lacking = [role for role, part in (("unet", found.unet), ("vae", found.vae), ("text", found.text)) if not part]
        raise CheckpointError(
            f"{place.path}: holds no {' and no '.join(lacking)}; a whole model is needed to make pictures"
        )
    unet = _built(UNet, found.unet, dtype, device)
    vae = _built(AutoencoderKL, found.vae, dtype, device)
    text = tuple(_built(TextTower, component, dtype, device) for component in found.text)
    image = _built(ImageTower, found.image, dtype, device) if found.image else None
    defaults = PRESETS[found.preset]
    has_own_scheduler = place.path.is_dir()
    return System(
        place=place,
        preset=found.preset,
        defaults=defaults,
        size=_size(found, vae, defaults),
        sampler=None if has_own_scheduler else defaults.sampler,
        scheduler=found.scheduler,
        network=Network(unet, PARAMETERISATIONS[found.objective], dtype, device, kernels),
        vae=vae,
        text=tuple(kernels.tower(tower) for tower in text),
        tokenizers=tuple(from_folder(folder) if folder else bundled() for folder in found.tokenizers),
        rules=_rules(found.preset, text),
        empty_negative=empty_negative(found.preset),
        image_tower=None if image is None else kernels.tower(image),
        statistics=_statistics(found, image, unclip_stats, place.name),
        sources=_sources(found, variant),
        dtype=dtype,
        device=device,
        kernels=kernels,
        preview_weights=found.info.get("preview"),
    )


def _built(kind: type[M], component: Component, dtype: torch.dtype, device: torch.device) -> M:
    """The network with the file's own tensors; they are copied only where dtype or device differ."""
    built = network(component.config)
    assert isinstance(built, kind)
    built.load_state_dict(component.state, assign=True)
    built = built.to(device=device, dtype=dtype).eval().requires_grad_(False)
    if device.type == "cuda":  # the order that its convolutions want; not measured here
        built = cast(M, cast(Any, built).to(memory_format=torch.channels_last))  # Any: torch's type lacks this form
    return built


def _rules(preset: str, text: Sequence[TextTower]) -> tuple[TowerRule, ...]:
    """How each tower is read: as the family does, but to its last layer where it is not the family's tower."""
    return tuple(
        LAST if rule.depth and tower.config.layers < rule.depth - 1 else rule
        for rule, tower in zip(RULES[preset], text, strict=True)
    )


def _size(found: Checkpoint, vae: AutoencoderKL, defaults: PresetInfo) -> tuple[int, int]:
    """What the model's U-Net was trained at if it says so, else what its family was."""
    side = (found.sample_size or 0) * vae.factor
    return (side, side) if side else (defaults.width, defaults.height)


def _statistics(found: Checkpoint, tower: ImageTower | None, given: str | Path | None, name: str) -> Statistics | None:
    """Of the image embeddings: from the given file, else the model's own, else 0 and 1 for unCLIP-H."""
    if tower is None:
        return None
    width = tower.config.projection
    if given is not None:
        return read_statistics(Path(given), width)
    if found.image_noise is not None:
        mean, std = found.image_noise
        return Statistics(mean.float().reshape(1, -1), std.float().reshape(1, -1))
    if found.preset == "sd2-unclip-l":
        raise CheckpointError(
            f"{name}: unCLIP-L needs mean and standard deviation of its image embeddings, which this file lacks; "
            "fetch ViT-L-14_stats.th of Karlo (kakaobrain/karlo-v1-alpha) and pass it as unclip_stats"
        )
    return Statistics(torch.zeros(1, width), torch.ones(1, width))


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return preferred_dtype(device)
    if name not in DTYPES:
        raise RequestError(unknown("dtype", name, [*DTYPES, "auto"]))
    return DTYPES[name]


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def _sources(found: Checkpoint, variant: str | None) -> dict[str, tuple[Path, ...]]:
    """The weight files of every component, for its hash."""
    return {
        role: weight_files(component.source, STEMS[role], variant) if component.source.is_dir() else (component.source,)
        for role, component in found.components.items()
    }
