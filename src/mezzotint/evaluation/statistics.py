"""Mean and covariance of features: summed in chunks, merged in any order, kept in one file that says what they are of.

A chunk has a place: the number of its first work unit (a picture that was made or read). Chunks are summed in the
order of their places, so that any number of workers that made them gives the same statistics; and numbers that were
computed without one chunk after the other give a confidence interval without a second pass. That takes chunks that are
alike: work units must come in an order that has nothing to do with what they show, or be dealt (`statistics_of`).

Everything is float64. A chunk keeps its mean and the scatter around it, not the plain sum of outer products: features
whose mean is a thousand times their deviation would lose six digits to that. Sums in float32 miss variances of 1e-6
altogether.

A file holds `first` and `n` [c], `mean` [c d] and `scatter` [c d(d+1)/2] (upper triangles, row by row); or, for
statistics of other programs, `mean` [d] and `covariance` [d d]. Their metadata is the provenance.

Letters: n pictures, d feature width, c chunks.
Source: Chan, Golub and LeVeque 1979, Stanford STAN-CS-79-773 (merging of means and scatters).
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.checkpoints.files import read_header, read_state, write_state
from mezzotint.data.order import keyed
from mezzotint.errors import CheckpointError, ConfigError

SCHEMA = 1
SUFFIX = ".stats.safetensors"
SYMMETRY = 1e-6  # how far, relative to the largest entry, a covariance of another program may be from its transpose


class Chunk(NamedTuple):
    """Sums over the features of the n work units `first` … `first + n - 1`."""

    first: int
    n: int
    mean: Float[Tensor, "d"]
    scatter: Float[Tensor, "d d"]  # sum of (x - mean) (x - mean)^T


class Moments(NamedTuple):
    """What the Fréchet distance needs; n is None if whoever wrote the file did not say."""

    n: int | None
    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]  # divided by n - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What statistics are of. Two can be compared only if `extractor`, `extractor_sha256` and `protocol` agree.

    None means that nobody knows (files of other programs); such a part disagrees with nothing, but is said.
    """

    extractor: str | None  # "inception", "clip", …
    extractor_sha256: str | None  # of the extractor's weights
    protocol: str | None  # how a picture becomes the extractor's input: "tf1", "clean", …
    prompts_sha256: str | None = None  # of the list of prompts; None for real pictures too
    settings: Mapping[str, str] = field(default_factory=dict[str, str])  # seeds, guidance, sampler, model, dtype, …
    tool: str = field(default_factory=lambda: f"mezzotint {version('mezzotint')}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Statistics:
    """Chunks in the order of their places; or the moments that another program wrote, which cannot be taken apart.

    Raises: ConfigError if there are neither or both, chunks overlap, or their widths differ.
    """

    provenance: Provenance
    chunks: tuple[Chunk, ...] = ()
    given: Moments | None = None

    def __post_init__(self) -> None:
        """Put the chunks into their order and check that they fit together."""
        if bool(self.chunks) == (self.given is not None):
            raise ConfigError("statistics: either chunks or given moments are needed")
        ordered = tuple(sorted(self.chunks, key=lambda chunk: chunk.first))
        for one, other in pairwise(ordered):
            if other.first < one.first + one.n:
                span = f"{other.first} … {min(one.first + one.n, other.first + other.n) - 1}"
                raise ConfigError(f"statistics: work units {span} are in two chunks; each may be counted once")
        if len(widths := {len(chunk.mean) for chunk in ordered}) > 1:
            raise ConfigError(f"statistics: features of different widths ({', '.join(map(str, sorted(widths)))})")
        object.__setattr__(self, "chunks", ordered)

    @property
    def count(self) -> int | None:
        """Pictures; None if unknown."""
        return self.given.n if self.given else sum(chunk.n for chunk in self.chunks)

    @property
    def width(self) -> int:
        """Numbers in one feature."""
        return len(self.given.mean if self.given else self.chunks[0].mean)

    def moments(self) -> Moments:
        """Mean and covariance (n - 1) of everything. Raises: ConfigError for fewer than two pictures."""
        return self.given or moments_of(self.chunks)

    def blocks(self, most: int) -> tuple[Chunk, ...]:
        """At most `most` chunks of about equal size, each of neighbours; none for given moments."""
        if len(self.chunks) <= most:
            return self.chunks
        edges = [len(self.chunks) * i // most for i in range(most + 1)]
        return tuple(pooled(self.chunks[i:j]) for i, j in pairwise(edges))

    def digest(self) -> str:
        """SHA-256 that names the pictures, however they were cut into chunks.

        Of their number and four sums to six digits: the cut moves digits after the twelfth.
        """
        found = self.moments()
        sums = [found.mean.sum(), found.mean.square().sum(), found.covariance.trace(), found.covariance.square().sum()]
        told = " ".join([f"{found.n} {len(found.mean)}", *(f"{float(total):.5e}" for total in sums)])
        return hashlib.sha256(told.encode()).hexdigest()


def chunk_of(features: Float[Tensor, "n d"], first: int = 0) -> Chunk:
    """The sums of the features of work units `first`, `first + 1`, …; computed in float64 whatever the features are.

    Raises: ConfigError if there are no features, or one is not finite: the message names the work unit.
    """
    if len(features) == 0:
        raise ConfigError("statistics: a chunk without features")
    x = features.detach().to("cpu", torch.float64)
    if not bool((good := x.isfinite().all(1)).all()):
        row = int((~good).nonzero()[0])
        raise ConfigError(
            f"statistics: the features of work unit {first + row} are not finite; is the picture damaged?"
        )
    mean = x.mean(0)
    x = x - mean
    return Chunk(first, len(x), mean, x.T @ x)


def chunks_of(features: Float[Tensor, "n d"], size: int, first: int = 0) -> tuple[Chunk, ...]:
    """Chunks of `size` features each; the last may be smaller."""
    return tuple(chunk_of(features[i : i + size], first + i) for i in range(0, len(features), size))


def pooled(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk in place of several; its `first` is the lowest. The order in which they are given changes nothing."""
    ordered = sorted(chunks, key=lambda chunk: chunk.first)
    count = sum(chunk.n for chunk in ordered)
    mean, scatter = torch.zeros_like(ordered[0].mean), torch.zeros_like(ordered[0].scatter)
    for chunk in ordered:
        mean += chunk.mean * (chunk.n / count)
    for chunk in ordered:
        apart = chunk.mean - mean
        scatter += chunk.scatter
        scatter.addr_(apart, apart, alpha=chunk.n)
    return Chunk(ordered[0].first, count, mean, scatter)


def reduced(whole: Chunk, part: Chunk) -> Chunk:
    """What `whole` is without one of the chunks that it was pooled from; costs the digits that a subtraction costs."""
    n = whole.n - part.n
    mean = (whole.mean * whole.n - part.mean * part.n) / n
    apart = part.mean - mean
    scatter = (whole.scatter - part.scatter).addr_(apart, apart, alpha=-n * part.n / whole.n)
    return Chunk(whole.first, n, mean, scatter)


def moments_of(chunks: Sequence[Chunk]) -> Moments:
    """Mean and covariance (n - 1). Raises: ConfigError for fewer than two pictures."""
    whole = pooled(chunks)
    if whole.n < 2:
        raise ConfigError("statistics: one picture has no covariance; at least 2 are needed, thousands are useful")
    return Moments(whole.n, whole.mean, whole.scatter / (whole.n - 1))


def statistics_of(
    features: Float[Tensor, "n d"], provenance: Provenance, *, size: int = 500, seed: int | None = 0
) -> Statistics:
    """Statistics of features that are all there, dealt into chunks of `size` by chance; seed None keeps their order.

    The places of such chunks are those after dealing: pictures sorted by what they show still give alike chunks.
    """
    if seed is not None:
        features = features[torch.randperm(len(features), generator=keyed(seed, "statistics"))]
    return Statistics(provenance=provenance, chunks=chunks_of(features, size))


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts, the same in whatever order they come.

    Raises: ConfigError if their provenance differs, they overlap, or one cannot be taken apart (another program's).
    """
    parts = list(parts)
    if not parts:
        raise ConfigError("merge: no statistics")
    for part in parts:
        if part.given:
            raise ConfigError("merge: statistics of another program have no chunks; they can be compared, not merged")
        for name in (entry.name for entry in fields(Provenance)):
            one, other = getattr(parts[0].provenance, name), getattr(part.provenance, name)
            if one != other:
                raise ConfigError(
                    f"merge: {name} differs ({one!r} and {other!r}); parts of one evaluation are expected"
                )
    return Statistics(provenance=parts[0].provenance, chunks=tuple(chunk for part in parts for chunk in part.chunks))


def check_comparable(one: Statistics, other: Statistics) -> tuple[str, ...]:
    """What is unknown about either, as sentences; empty if everything that decides the number is known to agree.

    Raises: ConfigError if extractor, its weights, protocol or width are known to differ; names both.
    """
    doubts: list[str] = []
    for name, advice in (
        ("extractor", "numbers of different networks have nothing to do with each other"),
        ("extractor_sha256", "use the same weights for both"),
        ("protocol", "the same pictures give another number under another protocol; make both under one"),
    ):
        first, second = getattr(one.provenance, name), getattr(other.provenance, name)
        if first is None or second is None:
            doubts.append(f"{name} unknown ({first or 'unknown'} and {second or 'unknown'})")
        elif first != second:
            raise ConfigError(f"statistics cannot be compared: {name} is {first!r} and {second!r}; {advice}")
    if one.width != other.width:
        raise ConfigError(f"statistics cannot be compared: features of {one.width} and {other.width} numbers")
    doubts += ["number of pictures unknown"] if one.count is None or other.count is None else []
    return tuple(doubts)


def write_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write the file, all of it or nothing; equal statistics give equal bytes.

    Raises: CheckpointError if it cannot be written.
    """
    told = json.dumps(asdict(statistics.provenance), sort_keys=True, ensure_ascii=False)
    metadata = {"schema": str(SCHEMA), "provenance": told}
    if statistics.given:
        metadata["n"] = str(statistics.given.n)
        tensors = {"mean": statistics.given.mean, "covariance": statistics.given.covariance}
    else:
        chunks = statistics.chunks
        rows, columns = torch.triu_indices(statistics.width, statistics.width).unbind()
        tensors = {
            "first": torch.tensor([chunk.first for chunk in chunks]),
            "n": torch.tensor([chunk.n for chunk in chunks]),
            "mean": torch.stack([chunk.mean for chunk in chunks]),
            "scatter": torch.stack([chunk.scatter[rows, columns] for chunk in chunks]),
        }
    write_state(path, tensors, metadata)


def read_statistics(path: str | Path, foreign: Provenance | None = None) -> Statistics:
    """Statistics from a file of ours, or from the `.npz` of pytorch-fid, clean-fid, ADM or EDM (by its ending).

    An `.npz` says nothing about itself: `foreign` is what the reader knows (protocol, extractor); None: nothing.
    Raises: CheckpointError if the file is missing, damaged, something else, or of a later version.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return Statistics(provenance=foreign or _nobody_knows(path), given=_read_npz(path))
    header = read_header(path)
    if "provenance" not in header.metadata or "mean" not in header.tensors:
        raise CheckpointError(f"{path} holds no statistics; `mezzotint evaluate` writes such files")
    if (schema := header.metadata.get("schema")) != str(SCHEMA):
        raise CheckpointError(f"{path}: statistics of schema {schema} → {SCHEMA} expected; update mezzotint")
    try:
        provenance = Provenance(**json.loads(header.metadata["provenance"]))
        state = read_state(path)
        if "covariance" in state:
            count = header.metadata["n"]
            given = Moments(None if count == "None" else int(count), state["mean"], state["covariance"])
            return Statistics(provenance=provenance, given=given)
        return Statistics(provenance=provenance, chunks=_unpacked(state))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged statistics ({error}); make the file again") from error


def _unpacked(state: Mapping[str, Tensor]) -> tuple[Chunk, ...]:
    width = state["mean"].shape[1]
    rows, columns = torch.triu_indices(width, width).unbind()
    chunks: list[Chunk] = []
    for i, (first, count) in enumerate(zip(state["first"].numpy(), state["n"].numpy(), strict=True)):
        scatter = state["scatter"].new_empty(width, width)
        scatter[rows, columns] = state["scatter"][i]
        scatter[columns, rows] = state["scatter"][i]
        chunks.append(Chunk(int(first), int(count), state["mean"][i].clone(), scatter))
    return tuple(chunks)


def _read_npz(path: Path) -> Moments:
    """`mu` and `sigma` of a NumPy archive, and `n` or `N` if it has one; objects (pickles) are refused by NumPy."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            held = cast("Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]", archive)  # NumPy says Any
            if absent := {"mu", "sigma"} - set(held):
                has = ", ".join(sorted(held)) or "nothing"
                raise CheckpointError(f"{path}: no {min(absent)!r} in it ({has}); arrays mu and sigma are expected")
            mean = torch.tensor(held["mu"].astype(np.float64).reshape(-1))
            covariance = torch.tensor(held["sigma"].astype(np.float64))
            count = next((int(held[name]) for name in ("n", "N") if name in held), None)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a NumPy archive of statistics: {error}") from error
    if covariance.shape != (len(mean), len(mean)):
        shape = tuple(covariance.shape)
        raise CheckpointError(f"{path}: sigma {shape} does not fit mu of {len(mean)}; both must be of one width")
    apart = float((covariance - covariance.T).abs().max())
    if not apart <= SYMMETRY * float(covariance.abs().max()) or not bool(mean.isfinite().all()):
        raise CheckpointError(f"{path}: not the mean and covariance of anything (not symmetric or not finite)")
    return Moments(count, mean, (covariance + covariance.T) / 2)


def _nobody_knows(path: Path) -> Provenance:
    return Provenance(extractor=None, extractor_sha256=None, protocol=None, tool=f"unknown ({path.name})")
