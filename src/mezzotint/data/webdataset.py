"""WebDataset tars: members that share a name up to its first dot are one sample. No torch.

A tar is never unpacked. It is indexed once (where each member's bytes lie), after which any sample is one seek and one
read. Members named like 000031.jpg, 000031.txt, 000031.json give a picture, its captions (a line each) and its other
columns.

Source: the naming of https://github.com/webdataset/webdataset; columns as img2dataset writes them.
"""

import json
import logging
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from mezzotint.data.sample import SUFFIXES, Picture, picture_of
from mezzotint.errors import MezzotintError

log = logging.getLogger(__name__)


class Span(NamedTuple):
    """Where a member's bytes lie in its tar."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        """The bytes.

        Raises: OSError if the file ends before.
        """
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.length)
        if len(data) < self.length:
            raise OSError(f"{self.path} ends {self.length - len(data)} bytes too early")
        return data


def tars(path: Path) -> list[Path]:
    """The tar itself, or the tars directly in a folder in the order of their names."""
    return [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))


def read_tars(path: Path) -> list[Picture]:
    """The samples of a tar or of a folder of tars, in order; what is damaged costs a line in the log.

    Raises: MezzotintError if a tar is compressed or none at all.
    """
    return [picture for tar in tars(path) for picture in _pictures(tar)]


def _pictures(path: Path) -> Iterator[Picture]:
    samples: dict[str, dict[str, Span]] = {}
    for name, span in _members(path):
        folder, slash, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        sample = samples.setdefault(folder + slash + stem, {})
        if sample.setdefault(ending.lower(), span) is not span:
            log.warning("%s: %s is there twice; the first is used", path, name)
    for key, members in samples.items():
        image = next((span for ending, span in members.items() if f".{ending}" in SUFFIXES), None)
        if image is None:
            log.warning("%s: sample %s has no picture and is left out", path, key)
            continue
        try:
            yield _picture(path, key, members, image)
        except (OSError, ValueError) as error:
            log.warning("%s: sample %s cannot be read and is left out: %s", path, key, error)


def _members(path: Path) -> Iterator[tuple[str, Span]]:
    try:
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        yield member.name, Span(path, member.offset_data, member.size)
                is_whole = Span(path, archive.offset, tarfile.BLOCKSIZE).read() == bytes(tarfile.BLOCKSIZE)
            except (tarfile.ReadError, OSError):
                is_whole = False
            if not is_whole:  # tarfile ends without a word at a header that it cannot read
                log.warning("%s is damaged at byte %d; what comes before is used", path, archive.offset)
    except tarfile.ReadError:
        raise MezzotintError(f"{path}: no plain tar; compressed tars cannot be read in place, unpack them") from None


def _picture(path: Path, key: str, members: dict[str, Span], image: Span) -> Picture:
    found: object = json.loads(members["json"].read()) if "json" in members else {}
    if not isinstance(found, dict):
        raise ValueError("its .json is no object")
    row = cast("dict[str, Any]", found)  # keys of a JSON object are strings
    if "txt" in members:
        row["captions"] = members["txt"].read().decode("utf-8").strip().splitlines()
    return picture_of(row, f"{path.stem}/{key}", partial(Span.read, image))
