"""CLIP score: how near pictures are to what was asked for, as a CLIP sees both.

Programs scale the same cosine differently, so all scalings are told, beside the name and hash of the CLIP:

    cosine      mean of cos(picture, text): what papers with open_clip's large models print
    x100        100 * mean of cos, or 0 if that is negative: what torchmetrics prints
    weighted    mean of w * max(cos, 0) with w = 2.5: the paper's, which also has the prefix "A photo depicts "

A text longer than the tower is cut before its closing token, which is what the tower pools at; cutting after it, as
torchmetrics does, leaves a text without an end and a number without meaning. Cut prompts are listed.

Intervals are 95 % by the delete-one jackknife over prompts: pictures of one prompt are no independent samples.

Letters: n pictures, p projected width, m prompts.
Source: Hessel et al. 2021, arXiv:2104.08718; R-precision: Xu et al. 2018, arXiv:1711.10485, section 4.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.order import key
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.evaluation.accuracy import before
from mezzotint.evaluation.estimate import Estimate, Share, jackknife, share
from mezzotint.models.clip import CLIP
from mezzotint.prompts.tokenizer import Tokenizer

WEIGHT = 2.5
CANDIDATES = 100  # captions that a picture must tell its own from: R-precision's usual number
CHUNK = 32  # texts at once


class Cut(NamedTuple):
    """A prompt that is longer than the text tower, and its words that were not read."""

    prompt: str
    words: tuple[str, ...]


class Texts(NamedTuple):
    """Features of length 1 for distinct prompts, in order of first appearance, and those that were cut."""

    prompts: tuple[str, ...]
    features: Float[Tensor, "m p"]
    cut: tuple[Cut, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScore:
    """All scalings, how far pictures differ, and how often a picture finds its own caption among `candidates`."""

    pictures: int
    prompts: int
    weight: float
    cosine: Estimate
    x100: Estimate
    weighted: Estimate
    deviation: float  # of the cosine, over pictures
    r_precision: Share | None  # None with a single prompt: there is nothing to choose from
    candidates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One prompt of the table: its pictures' cosines, and the best and the worst of them."""

    prompt: str
    pictures: int
    cosine: float
    weighted: float
    best: int  # position of the picture
    worst: int


@torch.no_grad()
def read_texts(clip: CLIP, tokenizer: Tokenizer, prompts: Sequence[str], *, prefix: str = "") -> Texts:
    """Text features in the network's dtype; `prefix` stands before every prompt and counts for its length.

    Raises: CheckpointError if the tokenizer belongs to another model.
    """
    tower = clip.text
    room = tower.config.positions - 2
    distinct = tuple(dict.fromkeys(prompts))
    rows = [tokenizer.chunk(prefix + prompt, length=tower.config.positions) for prompt in distinct]
    if rows and (highest := max(map(max, rows))) >= tower.config.vocabulary:
        raise CheckpointError(
            f"the tokenizer gives id {highest}, the CLIP has {tower.config.vocabulary} tokens; they belong to "
            "different models"
        )
    if tokenizer.eos != tower.config.eos:
        raise CheckpointError(
            f"the tokenizer closes a text with id {tokenizer.eos}, the CLIP pools at id {tower.config.eos}"
        )
    features: list[Tensor] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        longest = (
            max(row.index(tokenizer.eos) for row in chunk) + 1
        )  # what follows an end cannot change its pooled state
        features.append(F.normalize(tower(torch.tensor([row[:longest] for row in chunk])).pooled, dim=-1))
    dropped = [(prompt, tokenizer.dropped(prefix + prompt, room=room)) for prompt in distinct]
    return Texts(
        prompts=distinct,
        features=torch.cat(features) if features else torch.zeros(0, tower.config.projection or tower.config.width),
        cut=tuple(Cut(prompt, words) for prompt, words in dropped if words),
    )


def cosines(pictures: Float[Tensor, "n p"], texts: Texts, said: Sequence[str]) -> Float[Tensor, "n"]:
    """cos(picture, its prompt) in float64; `said` is the prompt of every picture.

    Raises: ConfigError if there is not one prompt for each picture.
    """
    _check(pictures, said)
    own = texts.features[[texts.prompts.index(prompt) for prompt in said]]
    return (F.normalize(pictures.double(), dim=-1) * F.normalize(own.double(), dim=-1)).sum(-1)


def clip_score(
    pictures: Float[Tensor, "n p"],
    texts: Texts,
    said: Sequence[str],
    *,
    weight: float = WEIGHT,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> ClipScore:
    """The score of pictures, in any scaling, with intervals over prompts.

    Raises: ConfigError if there is not one prompt for each picture, or none at all.
    """
    found = cosines(pictures, texts, said)
    if not len(found):
        raise ConfigError("CLIP score: no pictures → at least 1 expected")
    cosine = mean_of(found, said)
    hits, among = r_precision(pictures, texts, said, candidates=candidates, seed=seed)
    return ClipScore(
        pictures=len(found),
        prompts=len(set(said)),
        weight=weight,
        cosine=cosine,
        x100=_scaled(cosine),
        weighted=mean_of(weight * found.clamp(min=0), said, floor=0.0),
        deviation=float(found.std()) if len(found) > 1 else 0.0,
        r_precision=share(hits, len(found)) if among > 1 else None,
        candidates=among,
    )


def r_precision(
    pictures: Float[Tensor, "n p"], texts: Texts, said: Sequence[str], *, candidates: int = CANDIDATES, seed: int = 0
) -> tuple[int, int]:
    """(pictures that are nearer to their own prompt than to any other candidate, number of candidates).

    Other candidates are the run's own prompts: all of them, or drawn for each picture by its position. Ties count
    against.
    """
    _check(pictures, said)
    count = min(candidates, len(texts.prompts))
    place = {prompt: i for i, prompt in enumerate(texts.prompts)}
    features = F.normalize(texts.features.double(), dim=-1)
    hits = 0
    for i, (picture, prompt) in enumerate(zip(F.normalize(pictures.double(), dim=-1), said, strict=True)):
        own, rest = place[prompt], len(place) - 1
        # at equal distances from a keyed start: as good as drawn, and quick for thousands
        start = key(seed, "candidates", i) if count - 1 < rest else 0
        others = [(start + j * rest // (count - 1)) % rest for j in range(count - 1)]
        others = [j + (j >= own) for j in others]
        scores = features[[own, *others]] @ picture
        hits += int(before(scores[None], [0])[0] == 0)
    return hits, count


def per_prompt(found: Float[Tensor, "n"], said: Sequence[str], *, weight: float = WEIGHT) -> tuple[Row, ...]:
    """The table: one row for each prompt, best prompts first."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(said):
        members[prompt].append(i)
    rows = [
        Row(
            prompt=prompt,
            pictures=len(places),
            cosine=float(found[places].mean()),
            weighted=float((weight * found[places].clamp(min=0)).mean()),
            best=max(places, key=lambda i: float(found[i])),
            worst=min(places, key=lambda i: float(found[i])),
        )
        for prompt, places in members.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.cosine))


def mean_of(values: Float[Tensor, "n"], said: Sequence[str], *, floor: float = -1.0) -> Estimate:
    """The mean over pictures, with its interval by leaving out one prompt after the other."""
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for value, prompt in zip(map(float, values), said, strict=True):
        sums[prompt] += value
        counts[prompt] += 1
    total, n = math.fsum(sums.values()), len(said)
    without = [(total - sums[prompt]) / (n - counts[prompt]) for prompt in sums] if len(sums) > 1 else []
    found = jackknife(total / n, without, n, floor=floor)
    how = found.how.replace("blocks", "prompts") if without else "one prompt: no interval"
    return replace(found, how=how)


def _scaled(cosine: Estimate) -> Estimate:
    """100 times the mean cosine, not below 0."""
    low, high = (None if end is None else max(100 * end, 0.0) for end in (cosine.low, cosine.high))
    return replace(cosine, value=max(100 * cosine.value, 0.0), low=low, high=high)


def _check(pictures: Tensor, said: Sequence[str]) -> None:
    if len(pictures) != len(said):
        raise ConfigError(f"{len(pictures)} pictures, {len(said)} prompts: one prompt for each picture is expected")
