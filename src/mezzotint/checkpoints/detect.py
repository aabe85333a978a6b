"""What a model file or folder is: its preset, its objective, what is missing, and which key decided.

Names, shapes and configs decide; weights are touched by one rule of `objective` only. The tables are in `signatures`.
"""

from dataclasses import replace
from pathlib import Path
from typing import cast

from mezzotint.checkpoints.detection import (
    FOLDERS,
    STEMS,
    Confidence,
    Detection,
    Objective,
    Reason,
    describe,
    lines,
    refusal,
)
from mezzotint.checkpoints.files import Header, read_header, read_json, read_sharded_header
from mezzotint.checkpoints.objective import objective_of
from mezzotint.checkpoints.signatures import (
    ADAPTERS,
    COMPONENTS,
    CONTEXTS,
    CROSS_ATTENTION_INPUT,
    DISTILLED,
    OTHER_FAMILIES,
    PREFIXES,
    RULES,
    TEXT_WIDTHS,
    VAE_LEVEL,
    Facts,
    Layout,
    Mark,
    Rule,
    UNetKeys,
    find_unet,
    matrix,
    shown,
)
from mezzotint.errors import CheckpointError
from mezzotint.names import PRESETS

__all__ = ["Detection", "Reason", "describe", "detect", "lines"]

MAX_WORD_VECTORS = 75  # the places of a prompt

_SUPPORTED = "supported: " + ", ".join(rule.title for rule in RULES)
_UNET_ADVICE = "a U-Net alone: load it with the autoencoder and text encoders of its base model"
_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D"}


def detect(source: Header | str | Path) -> Detection:
    """What a safetensors file (by path or header) or a diffusers folder is.

    Raises: CheckpointError in three lines (what, where, what to do) if it is damaged, unknown or of another family.
    """
    if isinstance(source, Header):
        return _detect_header(source)
    path = Path(source)
    if path.is_dir():
        return _detect_folder(path)
    try:
        header = read_header(path)
    except CheckpointError as error:
        raise refusal(
            f"{path.name} cannot be read as a model",
            str(error),
            "what loads: a complete .safetensors file, a diffusers folder, a .ckpt or .pt file of PyTorch",
        ) from error
    return _detect_header(header)


def _detect_header(header: Header) -> Detection:
    tensors, path = header.tensors, header.path
    for mark in OTHER_FAMILIES:
        if key := mark.find(tensors):
            raise refusal(f"not supported: {path.name} is {mark.title}", f"{path}: {shown(tensors, key)}", _SUPPORTED)
    for mark in ADAPTERS:
        if key := mark.find(tensors):
            return _adapter(header, mark, key)
    if unet := find_unet(tensors):
        return _detect_unet(header, unet)
    for layout, mark in COMPONENTS:
        if key := mark.find(tensors):
            return _component(header, layout, mark, key)
    if len(tensors) == 1:  # diffusers saves a learned word under its bare name
        key, info = next(iter(tensors.items()))
        vectors = info.shape[0] if len(info.shape) == 2 else len(info.shape)
        if 1 <= vectors <= MAX_WORD_VECTORS and info.shape[-1] in TEXT_WIDTHS:
            return _adapter(header, ADAPTERS[-1], key)
    names = ", ".join(repr(name[:80]) for name in sorted(tensors)[:3]) or "none"
    raise refusal(
        f"{path.name} is not a model that is known: no U-Net, autoencoder, text encoder or adapter is in it",
        f"{path}: {len(tensors)} tensors, the first: {names}",
        _SUPPORTED,
    )


def _detect_unet(header: Header, unet: UNetKeys) -> Detection:
    """A checkpoint in one file, or a U-Net alone."""
    tensors = header.tensors
    rule = _match(unet.facts)
    if rule is None:
        raise _mismatch(header, unet)
    roles = {role for prefix, role in PREFIXES if any(key.startswith(prefix) for key in tensors)}
    is_whole = unet.layout == "ldm" and not roles.isdisjoint({"vae", "text"})
    objective, objective_reason = objective_of(header, rule, unet)
    found = Detection(
        path=header.path,
        component="checkpoint" if is_whole else "unet",
        title=rule.title,
        preset=rule.preset,
        variant=rule.variant,
        objective=objective,
        layout=unet.layout,
        prefix=unet.prefix,
        reason=_fact_reason(unet.facts, rule, shown(tensors, unet.keys[rule.decides])),
        objective_reason=objective_reason,
        is_zero_snr="ztsnr" in tensors,
        has_ema="ema" in roles,
        missing=tuple(role for role in rule.needs if role not in roles | {"unet"}),
        advice="" if is_whole else _UNET_ADVICE,
    )
    return _split_sd2(found)


def _match(facts: Facts) -> Rule | None:
    """The rule that has these facts; layers and blocks count only where the source says them."""
    for rule in RULES:
        layers = rule.layers if facts.layers is None else facts.layers
        blocks = rule.blocks if facts.blocks is None else facts.blocks
        if facts._replace(layers=layers, blocks=blocks) == rule.facts:
            return rule
    return None


def _fact_reason(facts: Facts, rule: Rule, evidence: str) -> Reason:
    return Reason(f"{rule.decides} {getattr(facts, rule.decides)} of the U-Net", evidence, "certain")


def _split_sd2(found: Detection) -> Detection:
    """SD 2 models for 512 and 768 pixels differ in the objective alone, which thereby decides the preset."""
    if (found.preset, found.objective) != ("sd2", "v_prediction"):
        return found
    return replace(found, preset="sd2-v", title=PRESETS["sd2-v"].title)


def _mismatch(header: Header, unet: UNetKeys) -> CheckpointError:
    """The refusal of a U-Net that no rule has, by what keeps it from the nearest one."""
    facts = unet.facts
    near = max(RULES, key=lambda rule: sum(a == b for a, b in zip(rule.facts, facts, strict=True)))
    differs = [name for name in Facts._fields if getattr(facts, name) != getattr(near.facts, name)]
    if set(differs) <= {"layers", "blocks"}:
        name = DISTILLED.get((near.preset, facts.layers or 0), "a model with parts taken out")
        return refusal(
            f"not supported: {name}, a smaller copy of {near.title}",
            f"{header.path}: {facts.layers} of {near.layers} transformer layers and "
            f"{facts.blocks} of {near.blocks} residual blocks are there",
            f"use the full model; if {header.path.name} should be one, it is incomplete: download it again",
        )
    first = differs[0]
    evidence = shown(header.tensors, unet.keys.get(first, unet.keys["in_channels"]))
    return refusal(
        f"not supported: a U-Net of no known model; the nearest is {near.title}",
        f"{header.path}: {first} is {getattr(facts, first)}, not {getattr(near.facts, first)}: {evidence}",
        "a model of its own size loads from a diffusers folder, which carries its config",
    )


def _adapter(header: Header, mark: Mark, key: str) -> Detection:
    """LoRA, ControlNet, learned words …; what cross-attention reads, or the width of a word, shows the base model."""
    tensors = header.tensors
    columns = {matrix(tensors[name])[1] for name in tensors if CROSS_ATTENTION_INPUT.search(name)}
    presets = {CONTEXTS[width] for width in columns if width in CONTEXTS}
    if mark.component == "embedding":
        presets = {TEXT_WIDTHS[size][1] for info in tensors.values() for size in info.shape if size in TEXT_WIDTHS}
    preset = "sdxl" if "sdxl" in presets else next(iter(presets), None)
    return Detection(
        path=header.path,
        component=mark.component,
        title=f"{mark.title} for {preset}" if preset else mark.title,
        preset=preset,
        layout="other",
        reason=Reason(f"a name that only {mark.title} files have", shown(tensors, key), "certain"),
        advice=mark.advice,
    )


def _component(header: Header, layout: Layout, mark: Mark, key: str) -> Detection:
    """An autoencoder or encoder alone. The autoencoders of SD and SDXL have the same shapes."""
    tensors = header.tensors
    title, preset = mark.title, None
    confidence: Confidence = "certain"
    alternatives: tuple[str, ...] = ()
    if mark.component == "text":
        width = matrix(tensors[key])[1]
        title, preset = TEXT_WIDTHS.get(width, (f"text encoder {width} wide", None))
    if mark.component == "vae":
        factor = 2 ** (sum(VAE_LEVEL.search(name) is not None for name in tensors) - 1)
        title = f"autoencoder with latents {factor} times smaller"
        first = next((info for name, info in tensors.items() if name.endswith("encoder.conv_in.weight")), None)
        if first is not None and first.shape[:1] == (128,):  # the width of all published ones
            preset = "x4-upscaler" if factor == 4 else None
            alternatives = () if factor == 4 else ("sd15", "sd2", "sdxl")
            confidence = "likely" if factor == 4 else "guess"
    return Detection(
        path=header.path,
        component=mark.component,
        title=title,
        preset=preset,
        layout=layout,
        reason=Reason(f"a name that only {mark.title} files have", shown(tensors, key), confidence, alternatives),
        advice=mark.advice,
    )


def _detect_folder(path: Path) -> Detection:
    if (path / "model_index.json").is_file():
        return _detect_pipeline(path)
    if (path / "config.json").is_file():
        return _detect_part(path)
    names = ", ".join(repr(entry.name[:80]) for entry in sorted(path.iterdir())[:5]) or "nothing"
    raise refusal(
        f"{path.name} is not a model folder: neither model_index.json nor config.json is in it",
        f"{path} contains {names}",
        "give the folder that holds model_index.json, or one .safetensors file",
    )


def _detect_part(path: Path) -> Detection:
    """A folder of one component, such as `unet/` of a model. A U-Net may have a size of its own: its config decides."""
    stem = next((stem for stem in STEMS if any(path.glob(f"{stem}*.safetensors"))), None)
    if stem and "down_block_types" in (config := read_json(path / "config.json")) and "cross_attention_dim" in config:
        found = _detect_config(path / "config.json", {"unet"}, is_refiner=False)
        return replace(found, path=path, component="unet", advice=_UNET_ADVICE)
    if stem:
        return replace(_detect_header(read_sharded_header(path, stem)), path=path)
    raise refusal(
        f"{path.name} holds a config without weights",
        f"{path}: no diffusion_pytorch_model.safetensors or model.safetensors",
        "download the weights too, or give the folder that holds model_index.json",
    )


def _detect_pipeline(path: Path) -> Detection:
    """A diffusers folder. Its configs decide, so that a model of any width is known by its structure."""
    config_file = path / "unet" / "config.json"
    if not config_file.is_file():
        kind = str(read_json(path / "model_index.json").get("_class_name"))[:80]
        raise refusal(
            f"not supported: {path.name} is a {kind} folder without a U-Net", f"{config_file} is missing", _SUPPORTED
        )
    roles = {role for folder, (role, stem) in FOLDERS.items() if any((path / folder).glob(f"{stem}*"))}
    is_refiner = "text_2" in roles and "text" not in roles  # its only text encoder is in the second place
    if is_refiner:
        roles = roles - {"text_2"} | {"text"}
    return replace(_detect_config(config_file, roles, is_refiner=is_refiner), path=path)


def _detect_config(file: Path, roles: set[str], *, is_refiner: bool) -> Detection:
    """What the config of a U-Net and that of the scheduler beside it say, of a model that has these parts."""
    rule, reason = _match_config(file, is_refiner=is_refiner)
    scheduler = file.parent.parent / "scheduler" / "scheduler_config.json"
    objective, objective_reason, is_zero_snr = _scheduled(scheduler, rule)
    found = Detection(
        path=file,
        component="checkpoint",
        title=rule.title,
        preset=rule.preset,
        variant=rule.variant,
        objective=objective,
        layout="diffusers",
        reason=reason,
        objective_reason=objective_reason,
        is_zero_snr=is_zero_snr,
        missing=tuple(role for role in rule.needs if role not in roles),
    )
    return _split_sd2(found)


def _match_config(file: Path, *, is_refiner: bool) -> tuple[Rule, Reason]:
    """The rule that a U-Net's config.json follows: by its sizes if they are published ones, else by its structure."""
    config = read_json(file)
    blocks, per_block = config.get("down_block_types"), config.get("transformer_layers_per_block", 1)
    widths = config.get("block_out_channels")
    is_nested = isinstance(per_block, list) and any(isinstance(n, list) for n in cast("list[object]", per_block))
    is_plain = isinstance(blocks, list) and all(block in _BLOCKS for block in cast("list[object]", blocks))
    if (
        not is_plain
        or is_nested
        or config.get("encoder_hid_dim_type")
        or config.get("addition_embed_type") not in {None, "text_time"}
    ):
        raise refusal(
            "not supported: a U-Net with blocks or conditioning of another family, or with layers taken out",
            f"{file}: down_block_types {blocks}, transformer_layers_per_block {per_block}"[:300],
            _SUPPORTED,
        )
    is_sized = config.get("addition_embed_type") == "text_time"
    has_vector = is_sized or config.get("class_embed_type") == "projection"
    facts = Facts(
        in_channels=_number(config, "in_channels"),
        width=cast("list[int]", widths)[0] if isinstance(widths, list) and widths else 0,
        context=_number(config, "cross_attention_dim"),
        vector=_number(config, "projection_class_embeddings_input_dim") if has_vector else 0,
        labels=_number(config, "num_class_embeds"),
        layers=None,
        blocks=None,
    )
    if rule := _match(facts):
        return rule, _fact_reason(
            facts, rule, f"unet/config.json: {_FIELDS[rule.decides]} = {getattr(facts, rule.decides)}"
        )
    is_linear = config.get("use_linear_projection") is True
    structure = (facts.in_channels, is_sized, facts.vector > 0, facts.labels > 0)
    near = [rule for rule in RULES if structure == (rule.in_channels, rule.is_sized, rule.vector > 0, rule.labels > 0)]
    near.sort(key=lambda rule: (rule.is_linear != is_linear, (rule.variant == "refiner") != is_refiner))
    if not near:
        raise refusal(
            "not supported: a U-Net with an unknown combination of inputs",
            f"{file}: in_channels {facts.in_channels}, vector {facts.vector}, class table {facts.labels}",
            _SUPPORTED,
        )
    evidence = f"unet/config.json: in_channels = {facts.in_channels}, use_linear_projection = {is_linear}"
    others = tuple(rule.preset for rule in near[1:])
    return near[0], Reason("built in this way, in its own size", evidence, "likely", others)


_FIELDS = {
    "in_channels": "in_channels",
    "context": "cross_attention_dim",
    "vector": "projection_class_embeddings_input_dim",
    "labels": "num_class_embeds",
}


def _number(config: dict[str, object], name: str) -> int:
    value = config.get(name)
    return value if isinstance(value, int) else 0


def _scheduled(file: Path, rule: Rule) -> tuple[Objective, Reason, bool]:
    """What the scheduler's config says the model predicts, and whether its last step has zero signal."""
    if not file.is_file():
        reason = Reason(f"{rule.title} was trained for it", "no scheduler/scheduler_config.json", "guess")
        return rule.objective, reason, False
    config = read_json(file)
    said = config.get("prediction_type", "epsilon")  # what diffusers takes when the field is missing
    known: tuple[Objective, ...] = ("epsilon", "v_prediction", "sample")
    objective: Objective | None = next((name for name in known if name == said), None)
    if objective is None or str(config.get("_class_name")).startswith("EDM"):
        raise refusal(
            f"not supported: objective {said!r} of scheduler {config.get('_class_name')!r}"[:200],
            str(file),
            f"supported: {', '.join(known)}, without EDM preconditioning",
        )
    reason = Reason("the scheduler's config says so", f"scheduler_config.json: prediction_type = {said!r}", "certain")
    return objective, reason, config.get("rescale_betas_zero_snr") is True
