"""A model read from a diffusers folder or a single file, exactly or not at all, and written as either.

What a file is, `detect` says. A folder's configs, and the metadata that `save_file` leaves in a single file, come
before the published sizes, so that models of any size survive in both layouts.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from torch import Tensor

from mezzotint import names
from mezzotint.checkpoints import config as readers
from mezzotint.checkpoints import diffusers, ldm
from mezzotint.checkpoints.component import (
    EXTRA,
    HINTS,
    INFO,
    PICKLES,
    SCHEMA,
    STEMS,
    TOKENIZER_FILES,
    TOKENIZERS,
    Checkpoint,
    Component,
    folder_map,
    single_file_maps,
    text_roles,
)
from mezzotint.checkpoints.detect import detect
from mezzotint.checkpoints.detection import Detection, Objective, Reason
from mezzotint.checkpoints.fields import Fields
from mezzotint.checkpoints.files import Header, atomic, read_header, read_sharded, read_state, weight_files
from mezzotint.checkpoints.quarantine import is_pickle, to_safetensors
from mezzotint.checkpoints.save import Report, save_file, save_folder
from mezzotint.checkpoints.scheduler import CLASSES, SchedulerConfig
from mezzotint.checkpoints.signatures import RULES
from mezzotint.checkpoints.translate import Config, apply_all, prefixed, used
from mezzotint.errors import CheckpointError, unknown
from mezzotint.models.clip import TextConfig
from mezzotint.models.presets import PRESETS, Preset
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig
from mezzotint.storage import cache_folder

__all__ = ["Checkpoint", "Component", "Report", "read", "read_vae", "save_file", "save_folder"]

# What files have besides the networks: constants, and parts that this use of a tower does not need.
_OPTIONAL = re.compile(
    r"(^|\.)(position_ids|logit_scale|attn_mask|text_projection(\.weight)?)$"
    r"|^cond_stage_model\.model\.transformer\.resblocks\."  # the last layer of SD 2's tower
    r"|^embedder\.model\.(?!visual\.)"  # the text side of unCLIP's image tower
    r"|^(first_stage_model\.)?(loss|model_ema)\."
)
_NETWORKS = (ldm.UNET, ldm.VAE, "cond_stage_model.", "conditioner.", "embedder.")  # nothing unknown may be in these
_OBJECTIVES: dict[str, Objective] = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample"}


def read(
    path: str | Path,
    *,
    preset: str | None = None,
    objective: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
) -> Checkpoint:
    """The model in a diffusers folder, a safetensors file, or a pickle file, which is converted in a closed process.

    `preset` and `objective` overrule detection where it can be wrong. `variant` picks a folder's files, such as
    `….fp16.safetensors`. `vae`, a file with the names of either layout or a folder, replaces the autoencoder.

    Raises: CheckpointError if anything is unknown, damaged, missing inside a network, or against the overrides.
    """
    path = Path(path)
    if preset is not None and preset not in PRESETS:
        raise CheckpointError(unknown("preset", preset, PRESETS))
    if objective is not None and objective not in _OBJECTIVES:
        raise CheckpointError(unknown("objective", objective, _OBJECTIVES))
    chosen = _OBJECTIVES[objective] if objective else None
    found = _read_folder(path, preset, chosen, variant) if path.is_dir() else _read_file(path, preset, chosen)
    if vae is None:
        return found
    like = found.vae.config if found.vae else PRESETS[found.preset].vae
    return replace(found, vae=read_vae(vae, cast("VAEConfig", like), variant=variant))  # the role says which config


def read_vae(path: str | Path, like: VAEConfig, *, variant: str | None = None) -> Component:
    """An autoencoder alone: a file with the names of either layout, its own folder, or that of a whole model.

    A file does not say its size and scale: they are those of `like`, the autoencoder of the model that it is for.
    Raises: CheckpointError if it does not fit, or if its folder says another scale: latents would be wrong.
    """
    path = Path(path)
    if path.is_dir():
        part = _read_part(path / "vae" if (path / "vae").is_dir() else path, "vae", variant)
        found = cast("VAEConfig", part.component.config)  # the role says which config
        if found.scaling != like.scaling:
            raise CheckpointError(
                f"{path}: its latents are scaled by {found.scaling}, those of the model by {like.scaling}"
            )
        return part.component
    state = read_state(_safe(path))
    theirs = ldm.vae_map(like)
    keymap = max(
        (diffusers.vae_map(like), theirs, prefixed(theirs, ldm.VAE)), key=lambda keymap: len(used(keymap, state))
    )
    ours, _ = apply_all({"vae": keymap}, {"vae": like}, state, where=str(path), optional=_OPTIONAL)
    return Component(role="vae", config=like, state=ours["vae"], source=path)


def default_scheduler(preset: str, objective: Objective, *, is_zero_snr: bool = False) -> SchedulerConfig:
    """The scheduler config of a model without one: the published schedule, sampled as `names.PRESETS` says."""
    defaults = names.PRESETS[preset]
    start, end = (0.0001, 0.02) if preset == "x4-upscaler" else (0.00085, 0.012)
    return SchedulerConfig(
        name=CLASSES[defaults.sampler],
        beta_start=start,
        beta_end=end,
        beta_schedule="scaled_linear",
        prediction_type=objective,
        rescale_betas_zero_snr=True if is_zero_snr else None,
        timestep_spacing="trailing" if is_zero_snr else "leading",
        steps_offset=1,
        set_alpha_to_one=False,
        use_karras_sigmas=True if defaults.spacing == "karras" and not is_zero_snr else None,
        clip_sample=False,
    )


def _read_file(path: Path, preset: str | None, objective: Objective | None) -> Checkpoint:
    safe = _safe(path)
    header = read_header(safe)
    info = _info(header.metadata.get(Path(INFO).stem), f"{path}: metadata")
    detection = recognised(header, preset)
    if detection.component not in {"checkpoint", "unet"}:
        raise CheckpointError(f"{path} is not a model but {detection.title}; {detection.advice}")
    preset, objective = _chosen(detection, preset, objective, info)
    said = info.pop("components", None)
    configs = _said_configs(_object(said), path) if said else _preset_configs(PRESETS[preset])
    _check_towers(path, preset, configs)

    state = read_state(safe)
    if detection.component == "unet":
        config = cast("UNetConfig", configs["unet"])  # the role says which config
        keymap = folder_map(config) if detection.layout == "diffusers" else ldm.unet_map(config)
        maps, within = {"unet": prefixed(keymap, detection.prefix)}, (detection.prefix,)
    else:
        maps, within = single_file_maps(configs), _NETWORKS
        maps = {role: keymap for role, keymap in maps.items() if role == "unet" or used(keymap, state)}
    ours, extras = apply_all(maps, configs, state, where=str(path), optional=_OPTIONAL, within=within)
    components = {role: Component(role=role, config=configs[role], state=ours[role], source=path) for role in ours}
    mean, std = (extras.pop(f"image_normalizer.{name}", None) for name in ("mean", "std"))
    scheduler = default_scheduler(preset, objective, is_zero_snr=detection.is_zero_snr)
    if said := info.pop("scheduler", None):
        scheduler = SchedulerConfig.from_json(json.dumps(said), str(path))
    if modelspec := {key: text for key, text in header.metadata.items() if key.startswith("modelspec.")}:
        info["modelspec"] = modelspec
    text = tuple(components[role] for role in TOKENIZERS if role in components)
    vocabularies = _object(info.pop("tokenizers", None))
    return Checkpoint(
        preset=preset,
        objective=objective,
        unet=components["unet"],
        vae=components.get("vae"),
        text=text,
        image=components.get("image_encoder"),
        scheduler=replace(scheduler, prediction_type=objective),
        tokenizers=tuple(_unpacked(_object(vocabularies.get(component.role))) for component in text),
        image_noise=None if mean is None or std is None else (mean, std),
        extras=extras,
        detection=detection,
        info=info,
    )


def _read_folder(path: Path, preset: str | None, objective: Objective | None, variant: str | None) -> Checkpoint:
    detection = detect(path)
    if detection.component not in {"checkpoint", "unet"}:
        raise CheckpointError(
            f"{path} is not a model but {detection.title}; give the folder that holds model_index.json"
        )
    file = path / INFO
    info = _info(file.read_text("utf-8") if file.is_file() else None, str(file))
    preset, objective = _chosen(detection, preset, objective, info)

    folders = {role: path / role for role in ("unet", "vae", *TOKENIZERS, "image_encoder")}
    if detection.component == "unet":
        folders = {"unet": path}
    parts = {role: _read_part(at, role, variant) for role, at in folders.items() if (at / "config.json").is_file()}
    components = {role: part.component for role, part in parts.items()}
    _check_towers(path, preset, {role: component.config for role, component in components.items()})
    extras = {f"{role}.{key}": tensor for role, part in parts.items() for key, tensor in part.extras.items()}
    if (path / f"{EXTRA}.safetensors").is_file():
        extras |= read_state(path / f"{EXTRA}.safetensors")
    noise = None
    if (path / "image_normalizer").is_dir():
        state = _state(path / "image_normalizer", "image_normalizer", variant)
        if not {"mean", "std"} <= state.keys():
            raise CheckpointError(f"{path / 'image_normalizer'}: found {', '.join(state)}; mean and std are expected")
        noise = (state["mean"], state["std"])
    scheduler = default_scheduler(preset, objective, is_zero_snr=detection.is_zero_snr)
    file = path / "scheduler" / "scheduler_config.json"
    if file.is_file():
        scheduler = SchedulerConfig.from_json(file.read_text("utf-8"), str(file))
    if hints := {role: part.hints for role, part in parts.items() if part.hints}:
        info["hints"] = hints
    if any(part.is_bare for part in parts.values()):
        info["is_bare"] = True
    text = tuple(components[role] for role in TOKENIZERS if role in components)
    own = [path / TOKENIZERS[component.role] for component in text]
    return Checkpoint(
        preset=preset,
        objective=objective,
        unet=components.get("unet"),
        vae=components.get("vae"),
        text=text,
        image=components.get("image_encoder"),
        scheduler=replace(scheduler, prediction_type=objective),
        tokenizers=tuple(folder if folder.is_dir() else None for folder in own),
        image_noise=noise,
        extras=extras,
        detection=detection,
        info=info,
    )


class _Part(NamedTuple):
    component: Component
    extras: dict[str, Tensor]
    hints: dict[str, object]
    is_bare: bool  # the text tower's names lack `text_model.`


def _read_part(folder: Path, role: str, variant: str | None) -> _Part:
    """One network from its folder."""
    fields = Fields.of(folder / "config.json")
    state = _state(folder, role, variant)
    has_projection = role == "text_encoder_2" or "WithProjection" in str(fields.get("architectures"))
    config = _config(role, fields, has_projection=has_projection and "text_projection.weight" in state)
    maps = {role: folder_map(config)}
    ours, extras = apply_all(maps, {role: config}, state, where=str(folder), optional=_OPTIONAL)
    component = Component(role=role, config=config, state=ours[role], source=_source(folder, role, variant))
    hints = {key: fields.values[key] for key in HINTS if fields.get(key) is not None}
    return _Part(component, extras, hints, "embeddings.token_embedding.weight" in state)


def _config(role: str, fields: Fields, *, has_projection: bool) -> Config:
    match role:
        case "unet":
            return readers.read_unet(fields)
        case "vae":
            return readers.read_vae(fields)
        case "image_encoder":
            return readers.read_image(fields)
        case _:
            return readers.read_text(fields, has_projection=has_projection)


def _state(folder: Path, role: str, variant: str | None) -> dict[str, Tensor]:
    """The tensors of one part of a folder; pickles only where there is nothing else, and through the quarantine."""
    pickle = _pickle(folder, role, variant)
    return read_state(to_safetensors(pickle)) if pickle else read_sharded(folder, STEMS[role], variant)


def _source(folder: Path, role: str, variant: str | None) -> Path:
    """The file that the tensors came from; the first of several shards."""
    return _pickle(folder, role, variant) or weight_files(folder, STEMS[role], variant)[0]


def _pickle(folder: Path, role: str, variant: str | None) -> Path | None:
    """The pickle file of a part that has nothing better."""
    path = folder / f"{PICKLES[STEMS[role]]}{f'.{variant}' if variant else ''}.bin"
    return path if path.is_file() and not any(folder.glob(f"{STEMS[role]}*.safetensors*")) else None


def _unpacked(texts: Mapping[str, object]) -> Path | None:
    """A folder in the cache with the tokenizer that a single file carries; None if it carries none."""
    own = {name: text for name, text in texts.items() if name in TOKENIZER_FILES and isinstance(text, str)}
    if not own:
        return None
    key = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "tokenizers" / key
    for name, text in own.items():
        if not (folder / name).is_file():
            with atomic(folder / name) as file:
                file.write(text.encode())
    return folder


def _safe(path: Path) -> Path:
    """The file itself, or what the quarantine made of a pickle."""
    return to_safetensors(path) if is_pickle(path) else path


def _info(text: str | None, where: str) -> dict[str, object]:
    """What `save_folder` or `save_file` noted. Raises: CheckpointError if it is damaged or of a later version."""
    try:
        value: object = json.loads(text) if text is not None else {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON: {error}") from error
    info = _object(value)
    schema = info.pop("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise CheckpointError(f"{where}: schema {schema!r} is newer than this program ({SCHEMA}); update mezzotint")
    return info


def _object(value: object) -> dict[str, object]:
    """A JSON object, or an empty one for anything else."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}  # keys of JSON objects are strings


def recognised(header: Header, preset: str | None = None) -> Detection:
    """What `detect` says; for sizes that nobody published, what was asked for or is in our own metadata.

    Raises: CheckpointError as `detect`.
    """
    try:
        return detect(header)
    except CheckpointError:
        info = _info(header.metadata.get(Path(INFO).stem), f"{header.path}: metadata")
        name = preset or info.get("preset")
        if not isinstance(name, str) or name not in PRESETS:
            raise
        rule = "asked for by name" if preset else "the metadata says so"
        said = _OBJECTIVES.get(str(info.get("objective")))
        return Detection(
            path=header.path,
            component="checkpoint",
            title=names.PRESETS[name].title,
            preset=name,
            variant=next((rule.variant for rule in RULES if rule.preset == name), None),
            objective=said or names.PRESETS[name].objective,
            layout="ldm",
            reason=Reason(rule, f"preset = {name!r}", "likely"),
        )


def _chosen(
    detection: Detection, preset: str | None, objective: Objective | None, info: dict[str, object]
) -> tuple[str, Objective]:
    """Preset and objective after the overrides. Raises: CheckpointError for a preset that the shapes rule out."""
    said, _ = info.pop("preset", None), info.pop("objective", None)
    found = detection.preset or "sd15"
    is_certain = detection.reason.confidence == "certain"
    if preset is not None and is_certain and PRESETS[preset].unet != PRESETS[found].unet:
        raise CheckpointError(
            f"{detection.path.name} looks like {detection.title} ({detection.reason.evidence}) but preset {preset} was "
            f"asked for; pass --preset {found} or leave it out"
        )
    if objective is None and preset in {"sd2", "sd2-v"}:
        objective = names.PRESETS[preset].objective
    objective = objective or detection.objective or names.PRESETS[found].objective
    if not is_certain and isinstance(said, str) and said in PRESETS:
        found = said
    found = preset or found
    if found in {"sd2", "sd2-v"}:  # the same network: the objective is the difference
        found = "sd2-v" if objective == "v_prediction" else "sd2"
    return found, objective


def _check_towers(path: Path, preset: str, configs: Mapping[str, Config]) -> None:
    """Refuse a preset that reads another number of text towers than there are."""
    towers = sum(isinstance(config, TextConfig) for config in configs.values())
    if towers not in {0, len(PRESETS[preset].text)}:
        raise CheckpointError(f"{path}: {towers} text encoders, preset {preset} has {len(PRESETS[preset].text)}")


def _preset_configs(preset: Preset) -> dict[str, Config]:
    """The networks of a preset by role."""
    configs: dict[str, Config] = {"unet": preset.unet, "vae": preset.vae}
    configs |= zip(text_roles(preset.text), preset.text, strict=True)
    return configs | ({"image_encoder": preset.image} if preset.image else {})


def _said_configs(said: Mapping[str, object], path: Path) -> dict[str, Config]:
    """The networks that the metadata of a single file describes, by role."""
    configs: dict[str, Config] = {}
    for role in ("unet", "vae", *TOKENIZERS, "image_encoder"):
        if role in said:
            fields = Fields(path, _object(said[role]))
            configs[role] = _config(role, fields, has_projection="WithProjection" in str(fields.get("architectures")))
    if "unet" not in configs:
        raise CheckpointError(f"{path}: the metadata describes no U-Net; write the file again")
    return configs
