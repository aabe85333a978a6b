"""Work units and the files that they leave: pictures that are given or made, and their features in chunks.

A unit is a picture: a file, or a (prompt, seed) that a model makes one from. Units have a canonical order, chunks are
runs of it, and every chunk's features are one file that appears whole or not at all, so that any number of workers,
shards and crashes leaves the same bytes. A set's folder:

    set.json               what it is; a folder is continued only with the same
    pictures/000000.png    of made sets: each with its recipe inside
    features/KEY/00000.safetensors   KEY names weights, precision and protocol

Letters: n pictures, d features.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.checkpoints.files import read_header, read_json, read_state, write_json, write_state
from mezzotint.data.pictures import read_pictures
from mezzotint.errors import CheckpointError, MezzotintError, RequestError
from mezzotint.evaluation.features import Extractor
from mezzotint.evaluation.pictures import Pixels, Problem, Unreadable, decode, list_pictures
from mezzotint.evaluation.spec import REFERENCE, TRAINING
from mezzotint.images import read_metadata, write_file
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System

SETS = "sets"
TABLES = {".parquet", ".tar", ".toml"}  # captioned picture sets of the data room
SHOWN = 5  # broken pictures named in an error

Told = Callable[[int], None]
"""Called with the number of units that were just finished."""


class BrokenPictures(MezzotintError):
    """Pictures that cannot be read; everything else has been done and is kept."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        count, rest = len(problems), len(problems) - SHOWN
        lines = "; ".join(f"{problem.name} {problem.what}" for problem in problems[:SHOWN])
        more = f"; and {rest} more" if rest > 0 else ""
        super().__init__(
            f"{count} picture{'s' if count > 1 else ''} cannot be used: {lines}{more}\nmend or remove them and run the "
            "same command again (what is done is kept), or leave them out with --skip-broken"
        )
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type["BrokenPictures"], tuple[tuple[Problem, ...]]]:
        return BrokenPictures, (self.problems,)


class Unit(NamedTuple):
    """A decoded picture and the note that decoding it left, or, without pixels, why there is none."""

    name: str
    pixels: Pixels | None
    note: str


class Source(Protocol):
    """Where the pictures of a set come from."""

    @property
    def names(self) -> Sequence[str]:
        """One for each unit, in canonical order."""
        ...

    @property
    def prompts(self) -> Sequence[str] | None:
        """What each should show, if that is known."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:  # Any: JSON
        """What decides its pictures, wherever they lie."""
        ...

    @property
    def state(self) -> str:
        """Changes when files change; "" if they cannot."""
        ...

    def read(self, index: int) -> Unit:
        """The picture of a unit; made now, if it has to be."""
        ...


class GivenPictures:
    """Pictures of a folder, a zip, a list of files, or a captioned set of the data room."""

    def __init__(self, where: Sequence[str], limit: int | None, prompts: Sequence[str] | None) -> None:
        path = Path(where[0])
        roots = [Path(place) for place in where]
        captions: Sequence[str | None]
        if len(where) == 1 and path.is_file() and path.suffix in TABLES:
            found = read_pictures(path)
            entries = [(picture.key, picture.read) for picture in found.pictures][:limit]
            captions = [picture.captions[0] for picture in found.pictures][:limit]
        else:
            listed = list_pictures(where[0] if len(where) == 1 else list(where))
            entries = [(source.name, source.read) for source in listed.sources][:limit]
            captions = [None] * len(entries)
            if len(where) == 1 and path.is_dir():
                captions = [_caption(path / name) for name, _ in entries]
                roots = [path / name for name, _ in entries]
        self._folder = path if len(where) == 1 and path.is_dir() else None
        self.names = tuple(name for name, _ in entries)
        self._read = [read for _, read in entries]
        self._captions, self._given, self._roots = captions, prompts, roots

    @property
    def prompts(self) -> Sequence[str] | None:
        """Those given, else captions, else what pictures of ours were made from.

        Raises: RequestError if there is not one for each picture.
        """
        return self._said

    @cached_property
    def _said(self) -> Sequence[str] | None:
        count = len(self.names)
        if self._given is not None:
            if len(self._given) != count:
                raise RequestError(
                    f"{len(self._given)} prompts, {count} pictures: one prompt for each picture is expected, in the "
                    f"order of their names (the first is {self.names[0]!r})"
                )
            return self._given
        said = [caption for caption in self._captions if caption is not None]
        if not said and self._folder is not None:
            return prompts_in(self._folder, self.names)
        if 0 < len(said) < count:
            lacking = next(n for n, caption in zip(self.names, self._captions, strict=True) if caption is None)
            raise RequestError(f"{len(said)} captions, {count} pictures: {lacking!r} has none (a .txt beside it)")
        return said or None

    @property
    def identity(self) -> Mapping[str, Any]:  # Any: JSON
        """Names of the files."""
        return {"kind": "given", "count": len(self.names), "names": _hash(list(self.names))}

    @property
    def state(self) -> str:
        """Size and time of every file."""
        stats = [path.stat() for path in self._roots]
        return _hash([[stat.st_size, stat.st_mtime_ns] for stat in stats])

    def read(self, index: int) -> Unit:
        """The picture, decoded."""
        name = self.names[index]
        try:
            return Unit(name, *decode(self._read[index]()))
        except Unreadable as error:
            return Unit(name, None, str(error))
        except (OSError, ValueError) as error:
            return Unit(name, None, f"cannot be read: {error}")


class StoredPictures:
    """A set of an earlier evaluation, of which the features are there and pictures may not be."""

    prompts: Sequence[str] | None = None

    def __init__(self, folder: Path) -> None:
        told = read_json(folder / "set.json")
        self.identity: Mapping[str, Any] = cast("dict[str, Any]", told["identity"])  # cast, Any: JSON that we wrote
        self.state = str(told["state"])
        self.chunk = int(str(told["chunk"]))
        self.names = tuple(f"{index:06d}" for index in range(int(self.identity["count"])))
        self._folder = folder

    def read(self, index: int) -> Unit:
        """Never there: what is lacking has to be computed where the pictures are."""
        lacking = f"has no features of this network in {self._folder}; measure that evaluation with the same features"
        return Unit(f"picture {index}", None, lacking)


def stored(path: Path) -> Path | None:
    """The folder of the one set that an earlier evaluation measured; None if `path` is none.

    Raises: RequestError if it measured several.
    """
    if not (path / SETS).is_dir():
        return path if (path / "set.json").is_file() else None
    found = [path / SETS / name for name in names_below(path / SETS) if name not in {REFERENCE, TRAINING}]
    if len(found) != 1:
        raise RequestError(f"{path} holds {len(found)} sets; name one: {', '.join(map(str, found))}")
    return found[0]


class MadePictures:
    """Pictures that a model makes: unit i from prompt i // per_prompt with seed + i, whatever the settings.

    Settings of a sweep thus share seeds, and with them the initial noise: what differs is the setting.
    """

    def __init__(
        self,
        system: Callable[[], System],
        fields: Mapping[str, Any],  # Any: fields of Request, which validates them
        prompts: Sequence[str],
        *,
        per_prompt: int,
        seed: int,
        folder: Path,
        model: Mapping[str, Any],  # Any: JSON
    ) -> None:
        self._system, self._fields, self._folder = system, {k: v for k, v in fields.items() if v is not None}, folder
        self.prompts: Sequence[str] = [prompt for prompt in prompts for _ in range(per_prompt)]
        self._seed, self._model = seed, model
        self.names = tuple(f"{index:06d}.png" for index in range(len(self.prompts)))
        Request(**self._fields)  # refuses wrong settings before any work
        self.state = ""

    @property
    def identity(self) -> Mapping[str, Any]:  # Any: JSON
        """The model by its hashes, the request, prompts and seeds."""
        return {
            "kind": "made", "count": len(self.names), "model": self._model, "request": self._fields,
            "seed": self._seed, "prompts": _hash(list(self.prompts)),
        }  # fmt: skip

    def path(self, index: int) -> Path:
        """Where the picture of a unit lies once it was made."""
        return self._folder / self.names[index]

    def read(self, index: int) -> Unit:
        """The picture, from its file; made first if there is none."""
        path = self.path(index)
        if not path.exists():
            made = generate(self._system(), prompt=self.prompts[index], seed=self._seed + index, **self._fields)
            write_file(path, made.png(0))
        try:
            return Unit(path.name, *decode(path.read_bytes()))
        except Unreadable as error:
            return Unit(path.name, None, f"{error}; remove {path} to make it again")


class Chunk(NamedTuple):
    """One file of features."""

    tensors: Mapping[str, Tensor]
    names: tuple[str, ...]
    pixels: tuple[str, ...]  # SHA-256 of each picture's pixels
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]


@dataclass(frozen=True, kw_only=True)
class WorkSet:
    """The pictures of one name and what was computed of them."""

    name: str
    folder: Path
    source: Source
    chunk: int

    def begin(self) -> None:
        """Write what the set is, or see that the folder holds the same. Raises: RequestError if it does not."""
        told = {"identity": dict(self.source.identity), "chunk": self.chunk, "state": self.source.state}
        file = self.folder / "set.json"
        if not file.exists():
            write_json(file, told)
            return
        found = read_json(file)
        if found.get("identity") != json.loads(json.dumps(told["identity"])) or found.get("chunk") != self.chunk:
            raise RequestError(
                f"{self.folder} holds other pictures ({_shown(found.get('identity'))} → {_shown(told['identity'])}); "
                "take another --out"
            )
        if told["state"] and found.get("state") != told["state"]:
            raise RequestError(
                f"{self.name}: pictures have changed since {self.folder} was begun; take another --out, or remove that "
                "folder"
            )

    @property
    def chunks(self) -> int:
        """How many files of features there are when all is done."""
        return -(-len(self.source.names) // self.chunk)

    def units(self, index: int) -> range:
        """Positions of a chunk."""
        return range(index * self.chunk, min((index + 1) * self.chunk, len(self.source.names)))

    def file(self, extractor: Extractor, index: int) -> Path:
        """Where the features of a chunk lie."""
        return self.folder / "features" / key_of(extractor) / f"{index:05d}.safetensors"

    def is_done(self, extractors: Sequence[Extractor], index: int) -> bool:
        """Whether a chunk has been computed for all extractors."""
        return all(self.file(extractor, index).exists() for extractor in extractors)

    def compute(
        self, extractors: Sequence[Extractor], index: int, *, skips_broken: bool, told: Told = lambda count: None
    ) -> None:
        """Features of one chunk's pictures, each decoded once, for every extractor that lacks them.

        Raises: BrokenPictures if some cannot be read; nothing is written then.
        """
        units = [self._read(unit, told) for unit in self.units(index)]
        problems = [Problem(unit.name, unit.note) for unit in units if unit.pixels is None]
        if problems and not skips_broken:
            raise BrokenPictures(problems)
        readable = [unit.pixels for unit in units if unit.pixels is not None]
        pictures = [torch.as_tensor(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in readable]
        about = {
            "names": json.dumps([unit.name for unit in units if unit.pixels is not None]),
            "pixels": json.dumps([_pixel_hash(pixels) for pixels in readable]),
            "problems": json.dumps(problems),
            "notes": json.dumps([(unit.name, unit.note) for unit in units if unit.pixels is not None and unit.note]),
        }
        for extractor in extractors:
            file = self.file(extractor, index)
            if not file.exists():
                write_state(file, outputs(extractor, pictures), {**about, **extractor.provenance})

    def _read(self, unit: int, told: Told) -> Unit:
        found = self.source.read(unit)
        told(1)
        return found

    def read(self, extractor: Extractor) -> Iterator[Chunk]:
        """All chunks in order. Raises: CheckpointError if one is missing or damaged."""
        for index in range(self.chunks):
            yield read_chunk(self.file(extractor, index))


def read_chunk(file: Path) -> Chunk:
    """A file of features. Raises: CheckpointError if it is missing or damaged."""
    about = read_header(file).metadata
    try:
        names, pixels, problems, notes = (json.loads(about[name]) for name in ("names", "pixels", "problems", "notes"))
    except (KeyError, ValueError):
        raise CheckpointError(f"{file}: no features of ours; remove it and run the same command again") from None
    return Chunk(
        tensors=read_state(file),
        names=tuple(names),
        pixels=tuple(pixels),
        problems=tuple(Problem(*problem) for problem in problems),
        notes=tuple(Problem(*note) for note in notes),
    )


def outputs(extractor: Extractor, pictures: Sequence[Tensor]) -> dict[str, Float[Tensor, "n d"]]:
    """Everything that the network says of the pictures, by name."""
    found = list(extractor.batches(pictures))
    if not found:
        return {"features": torch.zeros(0, extractor.dim)}
    parts = {name: [getattr(output, name) for output in found] for name in found[0]._fields}
    return {name: torch.cat(rows) for name, rows in parts.items() if rows[0] is not None}


def key_of(extractor: Extractor) -> str:
    """Names the features of an extractor, whatever it is called."""
    return f"{extractor.digest}-{extractor.protocol.digest}"


def prompts_in(folder: Path, names: Sequence[str]) -> list[str] | None:
    """What pictures of ours were made from, by their own records; None if one has none."""
    said: list[str] = []
    for name in names:
        try:
            record = read_metadata(folder / name).record
        except RequestError:
            return None
        if record is None:
            return None
        said.append(str(record["resolved"]["request"]["prompt"]))
    return said


def _caption(picture: Path) -> str | None:
    file = picture.with_suffix(".txt")
    if file.is_file():
        lines = file.read_text("utf-8").strip().splitlines()
        return lines[0] if lines else None
    return None


def _pixel_hash(pixels: Pixels) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def _shown(identity: object) -> str:
    text = json.dumps(identity, sort_keys=True, default=str)
    return text if len(text) < 160 else f"{text[:157]}…"


def names_below(folder: Path) -> list[str]:
    """Files of a folder, sorted."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []
