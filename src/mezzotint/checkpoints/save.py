"""A model written as a diffusers folder or as a single file; both can be read by the programs that made them popular.

Tensors go from the source file to the new one by one: a model larger than memory can be converted.

Source: the folders that diffusers saves; ModelSpec 1.0.1, https://github.com/Stability-AI/ModelSpec.
"""

import gzip
import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor

from mezzotint import names
from mezzotint.checkpoints import config as writers
from mezzotint.checkpoints.component import (
    EXTRA,
    HINTS,
    INFO,
    SCHEMA,
    STEMS,
    TOKENIZER_FILES,
    TOKENIZERS,
    Checkpoint,
    Component,
    folder_map,
    single_file_maps,
)
from mezzotint.checkpoints.fields import Fields
from mezzotint.checkpoints.files import read_json, write_json, write_state
from mezzotint.checkpoints.translate import Config, invert
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import CLIP_MEAN, CLIP_STD, ImageConfig, TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig

PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "sd15-inpaint": "StableDiffusionInpaintPipeline",
    "sd15-ip2p": "StableDiffusionInstructPix2PixPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2-v": "StableDiffusionPipeline",
    "sd2-inpaint": "StableDiffusionInpaintPipeline",
    "sd2-depth": "StableDiffusionDepth2ImgPipeline",
    "sd2-unclip-l": "StableUnCLIPImg2ImgPipeline",
    "sd2-unclip-h": "StableUnCLIPImg2ImgPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-inpaint": "StableDiffusionXLInpaintPipeline",
    "sdxl-ip2p": "StableDiffusionXLInstructPix2PixPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    "x4-upscaler": "StableDiffusionUpscalePipeline",
    "tiny": "StableDiffusionPipeline",
    "tiny-xl": "StableDiffusionXLPipeline",
}
"""The class of diffusers that runs each preset."""

_ARCHITECTURES = {  # first match: ModelSpec's architecture and implementation
    "sdxl-refiner": ("stable-diffusion-xl-v1-refiner", "https://github.com/Stability-AI/generative-models"),
    "sdxl": ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
    "tiny-xl": ("stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
    "x4": ("stable-diffusion-v2-x4-upscaler", "https://github.com/Stability-AI/stablediffusion"),
    "sd2-v": ("stable-diffusion-v2-768-v", "https://github.com/Stability-AI/stablediffusion"),
    "sd2-unclip": ("stable-diffusion-v2-768-v-unclip", "https://github.com/Stability-AI/stablediffusion"),
    "sd2": ("stable-diffusion-v2-512", "https://github.com/Stability-AI/stablediffusion"),
    "": ("stable-diffusion-v1", "https://github.com/CompVis/stable-diffusion"),
}
_HASH = "modelspec.hash_sha256"
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was written, and what was not because the layout has no place for it."""

    path: Path
    tensors: int
    kept: tuple[str, ...] = ()  # tensors beyond the networks that were written on request
    dropped: tuple[str, ...] = ()  # the same, not written: names in the source
    notes: tuple[str, ...] = ()  # other losses, in words


def save_folder(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int | None = None,
    keep_extra: bool = False,
    variant: str | None = None,
) -> Report:
    """Write a diffusers folder that diffusers and `read` load; it appears when it is complete.

    `shard_bytes` splits larger networks; `variant` goes into the names of weight files (`….fp16.safetensors`);
    `keep_extra` also writes what the folder has no place for, to be put back into a single file.
    Raises: CheckpointError if the folder has content, cannot be written, or diffusers has no config for a network.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise CheckpointError(f"{path} exists and is not an empty folder; choose another name")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        report = _write_folder(checkpoint, draft, dtype, shard_bytes, variant, keep_extra=keep_extra)
        draft.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return replace(report, path=path)


def save_file(
    checkpoint: Checkpoint, path: str | Path, *, dtype: torch.dtype | None = None, keep_extra: bool = False
) -> Report:
    """Write a single file in the names that latent-diffusion programs read, with ModelSpec metadata.

    `keep_extra` also writes what single files have no place for, or what only they have, under the names of the source.
    Raises: CheckpointError if it cannot be written.
    """
    path = Path(path)
    components = checkpoint.components
    tensors: dict[str, Tensor] = {}
    for role, keymap in single_file_maps({role: part.config for role, part in components.items()}).items():
        tensors |= invert(keymap, components[role].state)
    extras = dict(checkpoint.extras)
    if checkpoint.image_noise is not None:
        extras |= zip(("image_normalizer.mean", "image_normalizer.std"), checkpoint.image_noise, strict=True)
    kept = {key: tensor for key, tensor in extras.items() if keep_extra and key not in tensors}
    write_state(path, tensors | kept, _metadata(checkpoint, path), dtype=dtype, hash_key=_HASH)
    return Report(
        path=path,
        tensors=len(tensors) + len(kept),
        kept=tuple(kept),
        dropped=tuple(key for key in extras if key not in kept),
    )


def config_json(component: Component, *, is_sized: bool) -> dict[str, object]:
    """The config.json of a network; `is_sized` as in `write_unet`."""
    match component.config:
        case UNetConfig():
            return writers.write_unet(component.config, is_sized=is_sized)
        case VAEConfig():
            return writers.write_vae(component.config)
        case TextConfig():
            return writers.write_text(component.config)
        case ImageConfig():
            return writers.write_image(component.config)


def _write_folder(
    checkpoint: Checkpoint,
    path: Path,
    dtype: torch.dtype | None,
    shard_bytes: int | None,
    variant: str | None,
    *,
    keep_extra: bool,
) -> Report:
    is_sized = not checkpoint.preset.startswith("sd2-unclip")
    hints = _hints(checkpoint)
    extras, count, notes = dict(checkpoint.extras), 0, list[str]()
    kept: list[str] = []
    for role, part in checkpoint.components.items():
        keymap = folder_map(part.config, is_sized=is_sized, is_bare=checkpoint.info.get("is_bare") is True)
        tensors = invert(keymap, part.state)
        count += len(tensors)
        own = [key for key in extras if key.startswith(f"{role}.")] if keep_extra else []
        tensors |= {key.removeprefix(f"{role}."): extras.pop(key) for key in own}
        kept += own
        _write_weights(path / role, STEMS[role], tensors, dtype, shard_bytes, variant)
        write_json(path / role / "config.json", config_json(part, is_sized=is_sized) | hints.get(role, {}))
    if keep_extra and extras:
        write_state(path / f"{EXTRA}.safetensors", extras, dtype=dtype)
        kept, extras = [*kept, *extras], {}
    for part, folder in zip(checkpoint.text, checkpoint.tokenizers, strict=True):
        _write_tokenizer(path / TOKENIZERS[part.role], folder, part.config)
    if checkpoint.image is not None and isinstance(checkpoint.image.config, ImageConfig):
        write_json(path / "feature_extractor" / "preprocessor_config.json", _preprocessor(checkpoint.image.config))
        if checkpoint.image_noise is None:
            notes.append("image_normalizer: the source does not have the statistics of image embeddings")
        else:
            stats = {"mean": checkpoint.image_noise[0], "std": checkpoint.image_noise[1]}
            _write_weights(path / "image_normalizer", STEMS["image_normalizer"], stats, dtype, None, variant)
            size = {"_class_name": "StableUnCLIPImageNormalizer", "embedding_dim": stats["mean"].shape[-1]}
            write_json(path / "image_normalizer" / "config.json", size)
    (path / "scheduler").mkdir(parents=True)
    (path / "scheduler" / "scheduler_config.json").write_text(checkpoint.scheduler.to_json(), "utf-8")
    for name, values in _second_scheduler(checkpoint).items():
        write_json(path / name / "scheduler_config.json", values)
    write_json(path / "model_index.json", _model_index(checkpoint))
    write_json(path / INFO, _info(checkpoint))
    return Report(path=path, tensors=count + len(kept), kept=tuple(kept), dropped=tuple(extras), notes=tuple(notes))


def _write_weights(
    folder: Path,
    stem: str,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    shard_bytes: int | None,
    variant: str | None,
) -> None:
    """One file, or several with an index if the tensors take more than `shard_bytes`."""
    metadata = {"format": "pt"}  # transformers refuses files without it
    infix = f".{variant}" if variant else ""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors.items():
        itemsize = dtype.itemsize if dtype is not None and tensor.is_floating_point() else tensor.itemsize
        nbytes = tensor.numel() * itemsize
        if shard_bytes and shards[-1] and size + nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size, total = size + nbytes, total + nbytes
    if len(shards) == 1:
        write_state(folder / f"{stem}{infix}.safetensors", tensors, metadata, dtype=dtype)
        return
    files = [f"{stem}{infix}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        write_state(folder / file, shard, metadata, dtype=dtype)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index: dict[str, object] = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index{infix}.json", index)


def _write_tokenizer(folder: Path, source: Path | None, config: Config) -> None:
    """A copy of the tokenizer's files, or CLIP's own with the padding of this tower."""
    folder.mkdir(parents=True)
    if source is not None:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    (folder / "merges.txt").write_text("#version: 0.2\n" + _merges(), "utf-8")  # readers skip the first line
    (folder / "vocab.json").write_text(json.dumps(_vocabulary(), ensure_ascii=False), "utf-8")
    pad = "!" if isinstance(config, TextConfig) and config.pad == 0 else EOS
    special: dict[str, object] = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad, "unk_token": EOS}
    write_json(folder / "special_tokens_map.json", special)
    settings: dict[str, object] = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_json(folder / "tokenizer_config.json", settings | special)


@cache
def _merges() -> str:
    packed = resources.files("mezzotint").joinpath("assets", "clip", "merges.txt.gz").read_bytes()
    return gzip.decompress(packed).decode()


@cache
def _vocabulary() -> dict[str, int]:
    """CLIP's own: the byte symbols in order, the same at the end of a word, the merges, the two special tokens."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["".join(line.split()) for line in _merges().splitlines()]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *merged, BOS, EOS]
    return {word: i for i, word in enumerate(words)}


def _own_tokenizer(folder: Path) -> dict[str, str]:
    """The files of a tokenizer that is not CLIP's own: a single file carries them in its metadata."""
    if (folder / "vocab.json").is_file():
        vocabulary: object = read_json(folder / "vocab.json")
    else:
        vocabulary = Fields.of(folder / "tokenizer.json").nested("model").values.get("vocab")
    if vocabulary == _vocabulary():
        return {}
    there = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return {name: (folder / name).read_text("utf-8") for name in there}


def _preprocessor(config: ImageConfig) -> dict[str, object]:
    """How diffusers prepares a picture for the image tower: the shortest side to size, the centre cut out."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": config.size, "width": config.size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": config.size},
    }


def _second_scheduler(checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    """The scheduler that noises what the model is conditioned on, by the name that diffusers has for it."""
    ddpm: dict[str, object] = {"_class_name": "DDPMScheduler", "_diffusers_version": writers.VERSION}
    if checkpoint.image is not None:
        return {"image_noising_scheduler": ddpm | {"beta_schedule": "squaredcos_cap_v2"}}
    if checkpoint.preset == "x4-upscaler":
        betas: dict[str, object] = {"beta_schedule": "scaled_linear", "beta_start": 0.0001, "beta_end": 0.02}
        return {"low_res_scheduler": ddpm | betas}
    return {}


def _model_index(checkpoint: Checkpoint) -> dict[str, object]:
    preset = checkpoint.preset
    index: dict[str, object] = {"_class_name": PIPELINES[preset], "_diffusers_version": writers.VERSION}
    index["scheduler"] = ["diffusers", checkpoint.scheduler.name]
    index |= {name: ["diffusers", "DDPMScheduler"] for name in _second_scheduler(checkpoint)}
    for role, part in checkpoint.components.items():
        match part.config:
            case UNetConfig():
                index[role] = ["diffusers", "UNet2DConditionModel"]
            case VAEConfig():
                index[role] = ["diffusers", "AutoencoderKL"]
            case ImageConfig():
                index[role] = ["transformers", "CLIPVisionModelWithProjection"]
                index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
            case TextConfig(projection=projection):
                index[role] = ["transformers", "CLIPTextModelWithProjection" if projection else "CLIPTextModel"]
                index[TOKENIZERS[role]] = ["transformers", "CLIPTokenizer"]
    if checkpoint.image_noise is not None:
        index["image_normalizer"] = ["stable_diffusion", "StableUnCLIPImageNormalizer"]
    absent: list[object] = [None, None]
    if "XL" in PIPELINES[preset]:
        optional = ["text_encoder", "tokenizer"] if preset == "sdxl-refiner" else []
        index["force_zeros_for_empty_prompt"] = preset != "sdxl-refiner"
        if preset == "sdxl-refiner":
            index["requires_aesthetics_score"] = True
    elif checkpoint.image is not None:
        optional = []
    elif preset == "x4-upscaler":
        optional = ["safety_checker", "feature_extractor", "watermarker"]
        index["max_noise_level"] = 350
    elif preset == "sd2-depth":
        optional = ["depth_estimator", "feature_extractor"]
    else:
        optional = ["safety_checker", "feature_extractor"]
        index["requires_safety_checker"] = False
    return index | {name: absent for name in optional}


def _hints(checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    """By role: config keys that say how a network is used; those of the source, else those of the preset."""
    said = Fields(checkpoint.detection.path if checkpoint.detection else Path(INFO), checkpoint.info).nested("hints")
    width = names.PRESETS[checkpoint.preset].width
    defaults: dict[str, dict[str, object]] = {"vae": {"sample_size": width}, "unet": {}}
    if checkpoint.vae is not None and isinstance(checkpoint.vae.config, VAEConfig):
        defaults["unet"]["sample_size"] = width // checkpoint.vae.config.factor
    if checkpoint.preset in {"sd2-v", "sd2-unclip-l", "sd2-unclip-h"}:
        defaults["unet"]["upcast_attention"] = True  # SD 2.1 overflows in float16
    return {
        role: defaults.get(role, {}) | {key: values[key] for key in HINTS if key in values}
        for role in checkpoint.components
        for values in [said.nested(role).values]
    }


def _info(checkpoint: Checkpoint) -> dict[str, object]:
    """What mezzotint.json says."""
    return checkpoint.info | {"schema": SCHEMA, "preset": checkpoint.preset, "objective": checkpoint.objective}


def _metadata(checkpoint: Checkpoint, path: Path) -> dict[str, str]:
    """ModelSpec for other programs; configs, scheduler and notes for this one."""
    said = Fields(path, checkpoint.info).nested("modelspec").values
    info = {key: value for key, value in _info(checkpoint).items() if key != "modelspec"}
    is_sized = not checkpoint.preset.startswith("sd2-unclip")
    info["components"] = {role: config_json(p, is_sized=is_sized) for role, p in checkpoint.components.items()}
    folders = dict(zip([part.role for part in checkpoint.text], checkpoint.tokenizers, strict=True))
    if own := {role: texts for role, folder in folders.items() if folder and (texts := _own_tokenizer(folder))}:
        info["tokenizers"] = own
    info["scheduler"] = json.loads(checkpoint.scheduler.to_json())
    start = next(start for start in _ARCHITECTURES if checkpoint.preset.startswith(start))
    architecture, implementation = _ARCHITECTURES[start]
    hinted = _hints(checkpoint).get("vae", {}).get("sample_size", names.PRESETS[checkpoint.preset].width)
    spec = {
        "modelspec.title": path.stem,
        **{key: text for key, text in said.items() if isinstance(text, str)},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.resolution": f"{hinted}x{hinted}",
        "modelspec.prediction_type": "v" if checkpoint.objective == "v_prediction" else checkpoint.objective,
    }
    return spec | {"format": "pt", Path(INFO).stem: json.dumps(info, sort_keys=True)}
