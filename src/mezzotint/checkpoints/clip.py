"""A whole CLIP, both towers, read from any of its layouts: what judges pictures, not what a U-Net is conditioned on.

    ours          a run's export or a packaged one: clip.json, clip.safetensors, tokenizer/
    transformers  config.json with text_config and vision_config, model.safetensors, tokenizer files
    open_clip     open_clip_config.json beside open_clip_model.safetensors, or one file of either with the config beside
    OpenAI        one file with the names of open_clip that says itself which input it reads

Weights do not say their activation, and only by convention the number of heads: without a config they are refused,
unless it is OpenAI's release, which always has quick_gelu and heads of 64.

Source: the model classes of transformers (CLIPModel) and open_clip, and their configuration files.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mezzotint.checkpoints import config as readers
from mezzotint.checkpoints import diffusers, openclip
from mezzotint.checkpoints.fields import Fields
from mezzotint.checkpoints.files import read_state, weight_files
from mezzotint.checkpoints.quarantine import is_pickle, to_safetensors
from mezzotint.checkpoints.translate import apply_all, prefixed
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import CLIP, CLIP_MEAN, CLIP_STD, ImageConfig, TextConfig

OURS, OPEN_CLIP = "clip.json", "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_OPTIONAL = re.compile(
    r"(^|\.)(position_ids|logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size)$"
)
_OPENAI = {"input_resolution", "context_length", "vocab_size"}  # entries that only OpenAI's files have
HEAD = 64  # width of a head wherever a config does not say
PLACE = "name a folder with clip.json (ours), config.json (transformers) or open_clip_config.json, or a weight file"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFiles:
    """Both towers' configs, one state dict of `models.clip.CLIP`, the tokenizer's folder (None: CLIP's own), and the
    weight files, whose hash names the CLIP.
    """

    name: str
    text: TextConfig
    image: ImageConfig
    state: Mapping[str, Tensor]
    tokenizer: Path | None
    sources: tuple[Path, ...]

    def build(self, dtype: torch.dtype = torch.float32) -> CLIP:
        """The network, frozen."""
        with torch.device("meta"):
            clip = CLIP(self.text, self.image)
        clip.load_state_dict({name: tensor.to(dtype) for name, tensor in self.state.items()}, assign=True)
        return clip.eval().requires_grad_(False)


def read_clip(path: str | Path) -> ClipFiles:
    """The CLIP at `path`, a folder or a weight file, exactly or not at all.

    Raises: CheckpointError if there is none, it is of another kind, or something in it does not fit.
    """
    path = Path(path)
    if path.is_file():
        return _open_clip(path, path.parent / OPEN_CLIP)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such CLIP; {PLACE}")
    if (path / "export" / OURS).is_file():
        path = path / "export"
    if (path / OURS).is_file():
        return _ours(path)
    if (path / OPEN_CLIP).is_file():
        found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise CheckpointError(
                f"{path}: {OPEN_CLIP} without weights; one of {', '.join(_WEIGHTS)} belongs beside it"
            )
        return _open_clip(found, path / OPEN_CLIP)
    if (path / "config.json").is_file():
        return _transformers(path)
    raise CheckpointError(f"{path}: no CLIP in this folder; {PLACE}")


def _ours(folder: Path) -> ClipFiles:
    fields = Fields.of(folder / OURS)
    try:
        text = TextConfig(**fields.nested("text").values)  # pyright: ignore[reportArgumentType]  # JSON that we wrote
        image = ImageConfig(**fields.nested("image").values)  # pyright: ignore[reportArgumentType]  # JSON that we wrote
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / OURS}: {error}") from None
    weights = folder / "clip.safetensors"
    state = read_state(weights)
    with torch.device("meta"):
        expected = CLIP(text, image).state_dict()
    if wrong := sorted(state.keys() ^ expected.keys()):
        raise CheckpointError(f"{weights}: {wrong[0]} is {'not expected' if wrong[0] in state else 'missing'}")
    if wrong := [key for key, tensor in state.items() if tensor.shape != expected[key].shape]:
        raise CheckpointError(f"{weights}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)}, not {OURS}'s")
    own = folder / "tokenizer"
    return ClipFiles(
        name=_name(folder), text=text, image=image, state=state, tokenizer=own if own.is_dir() else None,
        sources=(weights,),
    )  # fmt: skip


def _transformers(folder: Path) -> ClipFiles:
    fields = Fields.of(folder / "config.json")
    if fields.get("model_type") != "clip" or fields.get("vision_config") is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type {fields.get('model_type')!r} → 'clip' with text_config and "
            "vision_config expected; a text encoder alone cannot judge pictures"
        )
    _check_normalisation(folder / "preprocessor_config.json")
    projection = {"projection_dim": fields.get("projection_dim", 512)}

    def tower(name: str) -> Fields:  # older files repeat a tower's settings under name_dict, which then win
        said = {**fields.nested(name).values, **fields.nested(f"{name}_dict").values}
        return Fields(fields.path, {**said, **projection})

    text, image = (
        readers.read_text(tower("text_config"), has_projection=True),
        readers.read_image(tower("vision_config")),
    )
    sources = weight_files(folder, "model") if any(folder.glob("model*.safetensors*")) else ()
    if sources:
        state = {key: tensor for file in sources for key, tensor in read_state(file).items()}
    elif (pickle := folder / "pytorch_model.bin").is_file():
        sources, state = (pickle,), read_state(to_safetensors(pickle))
    else:
        raise CheckpointError(f"{folder}: no weights; model.safetensors belongs beside config.json")
    maps = {"text": diffusers.text_map(text), "image": diffusers.image_map(image)}
    ours, extras = apply_all(maps, {"text": text, "image": image}, state, where=str(folder), optional=_OPTIONAL)
    return ClipFiles(
        name=_name(folder), text=text, image=image, state=_joined(ours, extras), sources=tuple(sources),
        tokenizer=folder if any((folder / name).is_file() for name in _TOKENIZERS) else None,
    )  # fmt: skip


def _open_clip(path: Path, config: Path) -> ClipFiles:
    state = read_state(to_safetensors(path) if is_pickle(path) else path)
    if "visual.conv1.weight" not in state or "token_embedding.weight" not in state:
        raise CheckpointError(f"{path}: not a CLIP of open_clip or OpenAI (no visual.conv1.weight); {PLACE}")
    fields = None
    if config.is_file():
        whole = Fields.of(config)
        fields = whole.nested("model_cfg")
        mean = whole.nested("preprocess_cfg").get("mean")
        if isinstance(mean, list) and tuple(mean) != CLIP_MEAN:  # pyright: ignore[reportUnknownArgumentType]  # JSON
            raise CheckpointError(f"{config}: pictures are normalised by mean {mean}, not as CLIP's; not supported")
    elif not state.keys() >= _OPENAI:
        raise CheckpointError(
            f"{path}: weights do not say their activation and heads; put the model's {OPEN_CLIP} beside the file"
        )
    text, image = _text_config(state, fields), _image_config(state, fields)
    maps = {"text": openclip.text_map(text), "image": prefixed(openclip.image_map(image), "visual.")}
    ours, extras = apply_all(maps, {"text": text, "image": image}, state, where=str(path), optional=_OPTIONAL)
    own = path.parent if any((path.parent / name).is_file() for name in _TOKENIZERS) else None
    return ClipFiles(
        name=_name(path.parent if path.name in _WEIGHTS else path), text=text, image=image,
        state=_joined(ours, extras), tokenizer=own, sources=(path,),
    )  # fmt: skip


def _text_config(state: Mapping[str, Tensor], said: Fields | None) -> TextConfig:
    vocabulary, width = state["token_embedding.weight"].shape
    own = said.nested("text_cfg") if said else None
    return TextConfig(
        width=width,
        layers=_depth(state, "transformer.resblocks."),
        heads=own.integer("heads", width // HEAD) if own else width // HEAD,
        mlp=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        activation=_activation(said),
        projection=state["text_projection"].shape[1],
        vocabulary=vocabulary,
        positions=state["positional_embedding"].shape[0],
        bos=vocabulary - 2,
        eos=vocabulary - 1,
        pad=0,
    )


def _image_config(state: Mapping[str, Tensor], said: Fields | None) -> ImageConfig:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    own = said.nested("vision_cfg") if said else None
    return ImageConfig(
        width=width,
        layers=_depth(state, "visual.transformer.resblocks."),
        heads=width // (own.integer("head_width", HEAD) if own else HEAD),
        mlp=state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        activation=_activation(said),
        projection=state["visual.proj"].shape[1],
        patch=patch,
        size=patch * round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5),
    )


def _activation(said: Fields | None) -> readers.Activation:
    """open_clip's own models have GELU unless their config says otherwise; OpenAI's have its approximation."""
    return "quick_gelu" if said is None or said.get("quick_gelu") is True else "gelu"


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))


def _joined(ours: Mapping[str, Mapping[str, Tensor]], extras: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {f"{role}.{name}": tensor for role, tensors in ours.items() for name, tensor in tensors.items()}
    return {**state, "logit_scale": extras.get("logit_scale", torch.zeros(())).reshape(())}


def _check_normalisation(file: Path) -> None:
    if not file.is_file():
        return
    fields = Fields.of(file)
    for key, expected in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        found = fields.numbers(key)
        if found is not None and max(abs(a - b) for a, b in zip(found, expected, strict=False)) > 1e-6:
            raise CheckpointError(f"{file}: {key} {found} → {expected} (CLIP's) expected; not supported")


def _name(path: Path) -> str:
    """What the CLIP is called: its folder or file; of a run's export, the run; in the hub's cache, the model."""
    path = path.resolve()
    parts = [part for part in path.parts if part.startswith("models--")]
    if parts:
        return parts[-1].removeprefix("models--").replace("--", "/")
    return path.parent.name if path.name == "export" else path.stem if path.is_file() else path.name
