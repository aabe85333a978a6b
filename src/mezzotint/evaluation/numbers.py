"""Every number of an evaluation from its features: what a report holds, as plain data.

A metric that cannot be computed (one picture, no features of the reference) is an entry with a reason in place of a
value, so that it costs none of the others.

Letters: n pictures, d features.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.clip_score import Texts, clip_score, cosines, per_prompt
from mezzotint.evaluation.cmmd import cmmd
from mezzotint.evaluation.estimate import Estimate
from mezzotint.evaluation.features import Extractor
from mezzotint.evaluation.fid import INCEPTION, fid, fid_infinity, name_of
from mezzotint.evaluation.inception_score import inception_score
from mezzotint.evaluation.kid import kid
from mezzotint.evaluation.manifold import manifold
from mezzotint.evaluation.memorisation import copies
from mezzotint.evaluation.pictures import Problem
from mezzotint.evaluation.statistics import Provenance, Statistics, statistics_of
from mezzotint.evaluation.work import WorkSet

BLOCKS = 20  # of the jackknife of a Frechet distance
NEAREST = 12  # copies, or what comes nearest to one, that are listed

Entry = dict[str, Any]  # Any: JSON
"""One number: metric, name, features, protocol, value, low, high, count, how, and what else belongs to the metric."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """All features of a set by one extractor."""

    names: tuple[str, ...]
    pixels: tuple[str, ...]
    tensors: dict[str, Float[Tensor, "n d"]]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    def statistics(self, extractor: Extractor, *, what: str = "features", blocks: int = BLOCKS) -> Statistics:
        """In at most so many chunks, whatever files the features were in."""
        rows = self.tensors[what]
        return statistics_of(rows, provenance_of(extractor, what), size=max(1, -(-len(rows) // blocks)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The other side of distances: features, or statistics alone."""

    features: Features | None = None
    statistics: Statistics | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What CLIP score needs of one set."""

    extractor: Extractor
    clip: str  # what the CLIP is called
    texts: Texts
    said: Sequence[str]
    weight: float
    candidates: int
    prefix: str
    features: Features


@dataclass(kw_only=True, slots=True)
class Numbers:
    """Entries as they are found, and the tables behind them."""

    entries: list[Entry] = field(default_factory=list[Entry])
    prompts: list[Entry] = field(default_factory=list[Entry])
    nearest: list[Entry] = field(default_factory=list[Entry])

    def add(self, metric: str, about: Entry, compute: Callable[[], list[Entry]]) -> None:
        """The entries that `compute` gives, or one with the reason why it cannot."""
        try:
            self.entries += [{"metric": metric, **about, **entry} for entry in compute()]
        except ConfigError as error:
            self.entries.append({"metric": metric, **about, "value": None, "why": str(error)})


def gathered(work: WorkSet, extractor: Extractor) -> Features:
    """The features of a set from all its chunks, in order.

    Raises: CheckpointError if a chunk is missing; ConfigError if no picture could be read.
    """
    chunks = list(work.read(extractor))
    kept = [chunk for chunk in chunks if chunk.names]
    if not kept:
        raise ConfigError(f"{work.name}: none of {len(work.source.names)} pictures can be read")
    return Features(
        names=tuple(name for chunk in chunks for name in chunk.names),
        pixels=tuple(digest for chunk in chunks for digest in chunk.pixels),
        tensors={name: torch.cat([chunk.tensors[name] for chunk in kept]) for name in kept[0].tensors},
        problems=tuple(problem for chunk in chunks for problem in chunk.problems),
        notes=tuple(note for chunk in chunks for note in chunk.notes),
    )


def provenance_of(extractor: Extractor, what: str = "features") -> Provenance:
    """What statistics of these features say of themselves."""
    is_inception = extractor.distance == "FID" and what == "features"
    name = INCEPTION if is_inception else extractor.name if what == "features" else f"{extractor.name}-{what}"
    protocol = extractor.protocol.label + ("" if extractor.dtype == "float32" else f" {extractor.dtype}")
    return Provenance(extractor=name, extractor_sha256=extractor.weights, protocol=protocol)


def said_of(extractor: Extractor) -> Entry:
    """Which features an entry is of."""
    return {
        "features": f"{extractor.name}:{extractor.digest}",
        "protocol": extractor.protocol.label,
        "protocol_digest": extractor.protocol.digest,
    }


def distances(
    found: Numbers, chosen: frozenset[str], extractor: Extractor, made: Features, reference: Reference
) -> None:
    """Everything that compares a set with the reference, by one extractor's features."""
    about = said_of(extractor)
    other = reference.features
    if "fid" in chosen:
        found.add(
            "fid", {**about, "name": name_of(provenance_of(extractor))}, lambda: _frechet(extractor, made, reference)
        )
    if "sfid" in chosen and "spatial" in made.tensors:
        found.add("sfid", {**about, "name": "sFID"}, lambda: _frechet(extractor, made, reference, what="spatial"))
    paired: dict[str, Callable[[Tensor, Tensor], list[Entry]]] = {"pr": _precision, "dc": _coverage}
    if extractor.name in {"clip", "evaluator"}:
        paired["cmmd"] = lambda x, y: [{"name": f"CMMD-{extractor.name}:{extractor.digest}", **_told(cmmd(x, y))}]
    for metric, compute in paired.items():
        if metric in chosen:
            found.add(metric, about, lambda compute=compute: compute(made.tensors["features"], _features(other)))


def kernel_distance(
    found: Numbers, extractor: Extractor, made: Features, reference: Reference, size: int | None
) -> None:
    """KID, under its own name only for Inception's features."""
    name = name_of(provenance_of(extractor), "KID")

    def compute() -> list[Entry]:
        result = kid(made.tensors["features"], _features(reference.features), size=size)
        subsets = {name: getattr(result, name) for name in ("subset_mean", "subset_deviation", "subsets", "size")}
        return [{**_told(result.distance), **subsets}]

    found.add("kid", {**said_of(extractor), "name": name}, compute)


def single(found: Numbers, extractor: Extractor, made: Features) -> None:
    """Inception score: for features with logits."""
    if "logits" not in made.tensors:
        return

    def compute() -> list[Entry]:
        result = inception_score(made.tensors["logits"])
        return [{**_told(result.score), "deviation": result.deviation, "splits": result.splits}]

    found.add("is", {**said_of(extractor), "name": "IS" if extractor.distance == "FID" else "IS-own"}, compute)


def copied(found: Numbers, extractor: Extractor, made: Features, training: Features) -> None:
    """The copy rate, and the pictures that come nearest to a training picture, relative to the second nearest."""
    name = f"copies-{extractor.name}:{extractor.digest}"

    def compute() -> list[Entry]:
        result = copies(made.tensors["features"], training.tensors["features"])
        order = sorted(range(len(made.names)), key=lambda i: float(result.ratio[i]))[:NEAREST]
        found.nearest += [
            {
                "picture": made.names[i],
                "training": training.names[int(result.place[i])],
                "ratio": float(result.ratio[i]),
                "distance": float(result.distance[i]),
                "is_copy": bool(result.is_copy[i]),
                "features": f"{extractor.name}:{extractor.digest}",
            }
            for i in order
        ]
        return [{**_told(result.rate), "hits": result.rate.hits, "duplicates": result.duplicates}]

    found.add("copies", {**said_of(extractor), "name": name}, compute)


def scored(found: Numbers, scorer: Scored) -> None:
    """CLIP score in its scalings, R-precision, and the table by prompt."""
    about = {
        **said_of(scorer.extractor), "clip": scorer.clip, "clip_sha256": scorer.extractor.weights,
        "prefix": scorer.prefix,
    }  # fmt: skip
    rows = scorer.features.tensors["features"]

    def compute() -> list[Entry]:
        result = clip_score(rows, scorer.texts, scorer.said, weight=scorer.weight, candidates=scorer.candidates)
        cut = [{"prompt": prompt, "words": list(words)} for prompt, words in scorer.texts.cut]
        entries = [
            {"name": "CLIP score, cosine", "scaling": "cosine", **_told(result.cosine), "deviation": result.deviation},
            {"name": "CLIP score x100", "scaling": "x100", **_told(result.x100)},
            {
                "name": f"CLIP score w{result.weight:g}",
                "scaling": "weighted",
                "weight": result.weight,
                **_told(result.weighted),
            },
        ]
        entries[0]["prompts"], entries[0]["cut"] = result.prompts, cut
        if (share := result.r_precision) is not None:
            name = f"R-precision among {result.candidates}"
            entries.append({"name": name, "scaling": "r_precision", "candidates": result.candidates, **_told(share)})
        return entries

    found.add("clip", about, compute)
    names = scorer.features.names
    for row in per_prompt(cosines(rows, scorer.texts, scorer.said), scorer.said, weight=scorer.weight):
        found.prompts.append({**asdict(row), "best": names[row.best], "worst": names[row.worst]})


def digest_of(features: Features) -> str:
    """Names a set by its pixels, in order."""
    return hashlib.sha256(json.dumps(features.pixels).encode()).hexdigest()


def _frechet(extractor: Extractor, made: Features, reference: Reference, what: str = "features") -> list[Entry]:
    mine = made.statistics(extractor, what=what)
    other = reference.statistics
    if reference.features is not None:
        other = reference.features.statistics(extractor, what=what)
    assert other is not None
    result = fid(mine, other)
    entry = {
        **_told(result.distance), "means": result.means, "covariances": result.covariances,
        "smallest_eigenvalue": result.smallest, "reference_count": result.reference_count,
        "reference": result.reference, "notes": list(result.notes),
    }  # fmt: skip
    try:
        limit = fid_infinity(mine, other)
    except ConfigError as error:
        return [entry, {"name": f"{result.name}-infinity", "value": None, "why": str(error)}]
    return [
        entry,
        {"name": limit.name, **_told(limit.distance), "points": [list(point) for point in limit.points],
         "reference": result.reference},
    ]  # fmt: skip


def _precision(made: Tensor, real: Tensor) -> list[Entry]:
    result = manifold(made, real)
    return [
        {"name": "precision", "k": result.precision_k, **_told(result.precision)},
        {"name": "recall", "k": result.precision_k, **_told(result.recall)},
    ]


def _coverage(made: Tensor, real: Tensor) -> list[Entry]:
    result = manifold(made, real)
    return [
        {"name": "density", "k": result.coverage_k, **_told(result.density)},
        {"name": "coverage", "k": result.coverage_k, **_told(result.coverage)},
    ]


def _features(features: Features | None) -> Tensor:
    if features is None:
        raise ConfigError(
            "the reference is a statistics file, this needs its pictures or features: give those as against"
        )
    return features.tensors["features"]


def _told(estimate: Estimate) -> Entry:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "count", "how")}
