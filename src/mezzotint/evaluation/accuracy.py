"""Whether pictures show what was asked for: concept and style, told by a CLIP that only judges; and retrieval.

The judge should know all pictures of the set and must never have conditioned the model or given it a loss. It is asked
a forced choice: of every concept in every style, which caption is nearest to the picture. Numbers mean nothing without
what they lie between, so `table` adds the ceiling (what the judge says of the real pictures) and two models that
learnt nothing new: one that repeats the concept in another style, one that paints any picture of the style.

Ties count against the picture: features that say nothing score nothing. Intervals are Wilson's, 95 %, for independent
pictures.

Letters: n pictures, d feature width, k concepts, s styles, p projected width.
Source: Radford et al. 2021, arXiv:2103.00020 (zero-shot choice, retrieval).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.errors import ConfigError, unknown
from mezzotint.evaluation.estimate import Share, share
from mezzotint.models.clip import CLIP, normalised
from mezzotint.prompts.encode import padded_ids
from mezzotint.prompts.tokenizer import Tokenizer

TRIES = 5
CHUNK = 64  # pictures or texts at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Of pictures: their concept was chosen first, or among the first 5; their style was; both were, first."""

    concept: Share
    concept_in_5: Share
    style: Share
    both: Share


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Pictures that a model made, beside what the number can be and what comes for nothing."""

    made: Accuracy
    ceiling: Accuracy  # the real pictures
    other_style: Accuracy  # real pictures of the concepts, each in another style
    same_style: Accuracy  # real pictures of the styles, of any concept


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Share of texts that find their picture, and of pictures that find their text, in 1 try and in 5."""

    picture: Share
    picture_in_5: Share
    text: Share
    text_in_5: Share


class Pair(NamedTuple):
    """What a picture shows, or should."""

    concept: str
    style: str


class Judge(NamedTuple):
    """The features of a caption for every concept in every style, of length 1."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    grid: Float[Tensor, "k s d"]


@torch.no_grad()
def judge_of(clip: CLIP, tokenizer: Tokenizer, concepts: Sequence[str], styles: Mapping[str, str]) -> Judge:
    """A CLIP that knows captions such as "a red apple, noto emoji"; `styles` are phrases by name."""
    texts = [f"{concept}, {phrase}" for concept in concepts for phrase in styles.values()]
    grid = text_features(clip, tokenizer, texts).view(len(concepts), len(styles), -1)
    return Judge(tuple(concepts), tuple(styles), grid)


@torch.no_grad()
def picture_features(clip: CLIP, pixels: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n p"]:
    """Features of length 1. Raises: ConfigError if the pictures do not have the size that this CLIP sees."""
    size = clip.image.config.size
    if pixels.shape[-2:] != (size, size):
        raise ConfigError(f"pictures of {pixels.shape[-1]} x {pixels.shape[-2]} pixels → {size} x {size} expected")
    dtype = clip.logit_scale.dtype
    found = [clip.image(normalised(chunk).to(dtype)).embedding.float() for chunk in torch.split(pixels, CHUNK)]
    return F.normalize(torch.cat(found), dim=-1)


@torch.no_grad()
def text_features(clip: CLIP, tokenizer: Tokenizer, texts: Sequence[str]) -> Float[Tensor, "n p"]:
    """Features of length 1."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    found = [clip.text(padded_ids(tokenizer, chunk)).pooled.float() for chunk in chunks]
    return F.normalize(torch.cat(found), dim=-1)


def accuracy(judge: Judge, features: Float[Tensor, "n d"], wanted: Sequence[Pair]) -> Accuracy:
    """How often the judge chooses what was wanted; a concept or a style counts by its best caption.

    Raises: ConfigError if something wanted is not among the choices.
    """
    concepts = [_place(judge.concepts, "concept", pair.concept) for pair in wanted]
    styles = [_place(judge.styles, "style", pair.style) for pair in wanted]
    before_concept, before_style = torch.empty(len(wanted)), torch.empty(len(wanted))
    for start in range(0, len(wanted), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = torch.einsum("nd,ksd->nks", F.normalize(features[rows].float(), dim=-1), judge.grid.float())
        before_concept[rows] = before(scores.amax(2), concepts[rows])
        before_style[rows] = before(scores.amax(1), styles[rows])
    return Accuracy(
        concept=_first(before_concept, 1),
        concept_in_5=_first(before_concept, TRIES),
        style=_first(before_style, 1),
        both=_first(torch.maximum(before_concept, before_style), 1),
    )


def table(
    judge: Judge,
    wanted: Sequence[Pair],
    made: Float[Tensor, "n d"],
    real: Float[Tensor, "n d"],
    known: Sequence[Pair],
    known_features: Float[Tensor, "m d"],
    *,
    seed: int = 0,
) -> Table:
    """Accuracy of made pictures, of the real ones of the same pairs, and of known (training) pictures instead."""
    other_style, same_style = baselines(known, wanted, seed)
    return Table(
        made=accuracy(judge, made, wanted),
        ceiling=accuracy(judge, real, wanted),
        other_style=accuracy(judge, known_features[other_style], wanted),
        same_style=accuracy(judge, known_features[same_style], wanted),
    )


def baselines(known: Sequence[Pair], wanted: Sequence[Pair], seed: int) -> tuple[list[int], list[int]]:
    """For every wanted pair, by chance: a known picture of its concept in another style, and one of its style.

    Raises: ConfigError if there is none.
    """
    of_concept: dict[str, list[int]] = defaultdict(list)
    of_style: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(known):
        of_concept[pair.concept].append(i)
        of_style[pair.style].append(i)
    other_style: list[int] = []
    same_style: list[int] = []
    for i, pair in enumerate(wanted):
        others = [j for j in of_concept[pair.concept] if known[j].style != pair.style]
        if not others or not of_style[pair.style]:
            what = f"style {pair.style!r}" if others else f"{pair.concept!r} in another style"
            raise ConfigError(f"baselines: no known picture of {what}")
        draw = keyed(seed, "baseline", i)
        for chosen, places in ((other_style, others), (same_style, of_style[pair.style])):
            chosen.append(places[int(torch.randint(len(places), (), generator=draw))])
    return other_style, same_style


def retrieval(pictures: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], said: Sequence[str]) -> Retrieval:
    """Row i of both belong together; a picture that the same text was said of is neither right nor wrong."""
    scores = F.normalize(texts.float(), dim=-1) @ F.normalize(pictures.float(), dim=-1).T  # [texts pictures]
    same = torch.tensor([[one == other for other in said] for one in said])
    own = range(len(said))
    to_picture, to_text = before(scores, own, same), before(scores.T, own, same)
    return Retrieval(
        picture=_first(to_picture, 1),
        picture_in_5=_first(to_picture, TRIES),
        text=_first(to_text, 1),
        text_in_5=_first(to_text, TRIES),
    )


def before(
    scores: Float[Tensor, "n m"], wanted: Sequence[int], ignored: Bool[Tensor, "n m"] | None = None
) -> Float[Tensor, "n"]:
    """How many other columns score at least as high as the wanted one, in each row."""
    rows = torch.arange(len(scores))
    columns = torch.tensor([*wanted])
    ahead = scores >= scores[rows, columns][:, None]
    ahead[rows, columns] = False
    return (ahead if ignored is None else ahead & ~ignored).sum(1).float()


def _first(ahead: Tensor, tries: int) -> Share:
    """The share of rows with fewer than `tries` ahead of what was wanted."""
    return share(int((ahead < tries).sum()), len(ahead))


def _place(known: Sequence[str], what: str, name: str) -> int:
    if name not in known:
        raise ConfigError(f"accuracy: {unknown(what, name, known)}")
    return known.index(name)
