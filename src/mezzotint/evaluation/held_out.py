"""How well a model draws pairs of concept and style that it was never shown, beside pairs that it was.

A set of pictures in styles holds some pairs back whose concept and whose style training knows from other pictures, so
that drawing them means recombining. The model draws each from its caption, a CLIP that only judges says what it sees
(accuracy.py), and the same is asked of pairs from training. Which pairs a model was trained on, its own folder says.

Letters: n pictures, h w rows and columns.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mezzotint.checkpoints.clip import read_clip
from mezzotint.checkpoints.fields import Fields
from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet, read_pictures
from mezzotint.data.sample import Picture
from mezzotint.errors import ConfigError
from mezzotint.evaluation.accuracy import Pair, Table, judge_of, picture_features, table
from mezzotint.pipeline.generate import generate
from mezzotint.prompts.tokenizer import bundled, from_folder

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

TRAIN, HELD = "train.parquet", "heldout.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recombination:
    """Accuracy on pairs that were held back and on as many that were trained on, and how the pictures were made."""

    model: str
    judge: str
    concepts: int
    styles: int
    pairs: int  # of each kind
    settings: dict[str, int | float]
    held_out: Table
    seen: Table


class Split(NamedTuple):
    """Pictures that a model was trained on, and held-back ones of the same concepts and styles."""

    train: PictureSet
    held: PictureSet


def split_of(model: Path, data: Path) -> Split:
    """The pictures of a set by what a packaged model's mezzotint.json says it was trained on.

    Raises: ConfigError if the model does not say it, or the set holds no pairs back.
    """
    if not (data / HELD).is_file():
        raise ConfigError(
            f"{data}: holds no pictures back ({HELD} is missing); mezzotint data build icons makes such a set"
        )
    chosen = _trained_on(model)
    where: dict[str, tuple[str, ...]] = {name: tuple(values) for name, values in chosen.get("where", {}).items()}
    train = read_pictures(data / TRAIN).select(where, by=chosen.get("by", ""), at_least=chosen.get("at_least", 1))
    concepts = {picture.columns["concept"] for picture in train.pictures}
    held = read_pictures(data / HELD).select(where)
    return Split(train, PictureSet(tuple(p for p in held.pictures if p.columns["concept"] in concepts)))


def _trained_on(model: Path) -> dict[str, Any]:  # Any: a recipe as JSON
    """The data rule of a packaged model's last stage."""
    record = model / "mezzotint.json"
    fields = Fields.of(record) if record.is_file() else Fields(record, {})
    told = fields.nested("recipe").nested("unet").values
    stages = cast("list[dict[str, Any]]", told.get("stages", [told]))  # cast: what pack_model wrote
    if "data" not in stages[-1]:
        raise ConfigError(f"{model}: does not say which pictures it was trained on (recipe in mezzotint.json)")
    return stages[-1]["data"]


def recombination(
    system: "System",
    data: Path,
    judge: Path,
    *,
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
    keep: Path | None = None,
    limit: int | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Recombination:
    """Draw every held-back pair and as many trained ones, picked by `seed`, and ask the judge.

    Picture i of a side has seed `seed` + i. `keep` is a folder for the pictures; `limit` takes
    only the first held-back pairs; `report` is told how many are done.

    Raises: ConfigError if the model or the set lacks what `split_of` needs, or the judge sees another size.
    """
    split = split_of(system.place.path, data)
    split = Split(split.train, PictureSet(split.held.pictures[:limit]))
    seen = _some(split.train, len(split.held), seed)
    files = read_clip(judge)
    clip, tokenizer = files.build(), from_folder(files.tokenizer) if files.tokenizer else bundled()
    size = clip.image.config.size
    said = [_said(picture) for picture in split.train.pictures]
    concepts = {
        picture.columns["concept"]: words.concept for picture, words in zip(split.train.pictures, said, strict=True)
    }
    styles = {picture.columns["style"]: words.style for picture, words in zip(split.train.pictures, said, strict=True)}
    asked = judge_of(clip, tokenizer, list(concepts.values()), styles)
    known = picture_features(clip, split.train.pixels(range(len(split.train)), size))
    tables: list[Table] = []
    total = len(split.held) + len(seen)
    for pictures, name in ((split.held, "held-out"), (seen, "seen")):
        wanted = [_pair(picture) for picture in pictures.pictures]
        made: list[Tensor] = []
        for i, picture in enumerate(pictures.pictures):
            prompt = picture.captions[0]
            result = generate(system, prompt=prompt, steps=steps, guidance=guidance, seed=seed + i, sampler="ddim")
            made.append(_pixels(result.images[0], size))
            if keep is not None:
                result.save(keep / name)
            report(len(tables) * len(split.held) + i + 1, total)
        real = picture_features(clip, pictures.pixels(range(len(pictures)), size))
        pairs = [_pair(picture) for picture in split.train.pictures]
        tables.append(table(asked, wanted, picture_features(clip, torch.stack(made)), real, pairs, known, seed=seed))
    return Recombination(
        model=system.name,
        judge=files.name,
        concepts=len(concepts),
        styles=len(styles),
        pairs=len(split.held),
        settings={"steps": steps, "guidance": guidance, "seed": seed},
        held_out=tables[0],
        seen=tables[1],
    )


def _some(train: PictureSet, count: int, seed: int) -> PictureSet:
    """Pictures by chance, of concepts that are there in two styles: otherwise there is no baseline."""
    styles: dict[str, set[str]] = defaultdict(set)
    for picture in train.pictures:
        styles[picture.columns["concept"]].add(picture.columns["style"])
    fit = [picture for picture in train.pictures if len(styles[picture.columns["concept"]]) > 1]
    order = torch.randperm(len(fit), generator=keyed(seed, "seen"))[:count]
    return PictureSet(tuple(fit[int(i)] for i in order))


class _Said(NamedTuple):
    concept: str
    style: str


def _said(picture: Picture) -> _Said:
    """What the first caption says: "a rose, flat fluent emoji"."""
    concept, comma, style = picture.captions[0].rpartition(", ")
    if not comma:
        raise ConfigError(f"{picture.key}: first caption {picture.captions[0]!r} → 'a concept, a style' expected")
    return _Said(concept, style)


def _pair(picture: Picture) -> Pair:
    return Pair(_said(picture).concept, picture.columns["style"])


def _pixels(image: Image.Image, size: int) -> UInt8[Tensor, "3 h w"]:
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return torch.as_tensor(np.array(image)).permute(2, 0, 1).contiguous()


HEADS = ("pairs", "right", "this model", "ceiling: real pictures", "concept, other style", "style, any concept")
COLUMNS = ("made", "ceiling", "other_style", "same_style")


def rows_of(told: Mapping[str, Any]) -> list[tuple[str, ...]]:  # Any: JSON
    """The table of a `Recombination` as a dict, under HEADS: shares with their intervals, in percent."""
    return [
        (name, measure.replace("_", " "), *(_share(side[column][measure]) for column in COLUMNS))
        for name, side in (("held-out", told["held_out"]), ("seen", told["seen"]))
        for measure in ("concept", "concept_in_5", "style", "both")
    ]


def _share(value: Mapping[str, float]) -> str:
    return f"{value['value']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
