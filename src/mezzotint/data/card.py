"""The card of a curated set: its rule, counts at every gate and what is left, as data with a hash. No torch.

The hash belongs into the checkpoint of what was trained on the set: card.json says how the set was made, and `verify`
whether pictures are still the ones that it speaks of.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mezzotint.data.filters import Filters, Passed, distinct, passed
from mezzotint.data.sample import Picture
from mezzotint.errors import MezzotintError
from mezzotint.storage import atomic

SCHEMA = 1


class Gated(NamedTuple):
    """Counts of one gate: judged, of those without the value, refused (missing ones included), and left."""

    gate: str
    judged: int
    missing: int
    refused: int
    left: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """How a set came about. Equal rules on equal pictures give equal cards, in whatever order either was written."""

    rule: dict[str, Any]  # Any: the set fields of Filters as JSON
    source: str  # digest of what was judged
    pictures: int  # judged, repeats counted
    captions_dropped: int  # of pictures that were judged
    gates: tuple[Gated, ...]
    kept: int  # pictures left, repeats counted
    content: str  # digest of what is left, pictures included if the rule reads them

    @property
    def hash(self) -> str:
        """SHA-256 of the card as JSON."""
        return hashlib.sha256(_canonical(self._data()).encode()).hexdigest()

    def _data(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "gates": [gate._asdict() for gate in self.gates]}

    def to_json(self) -> str:
        """The card with its hash, for card.json."""
        return json.dumps({**self._data(), "hash": self.hash}, indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write card.json, whole or not at all."""
        with atomic(path) as file:
            file.write(self.to_json().encode())

    def verify(self, pictures: Sequence[Picture]) -> None:
        """Whether these are the pictures that the card speaks of.

        Raises: MezzotintError if they are not.
        """
        if len(pictures) != self.kept:
            raise MezzotintError(
                f"the card speaks of {self.kept} pictures, there are {len(pictures)}; curate them again"
            )
        if digest(pictures, has_bytes=bool(self.rule["readable"])) != self.content:
            raise MezzotintError(f"the {self.kept} pictures are not those of card {self.hash[:12]}; curate them again")


class Curated(NamedTuple):
    """What the filters left, in the order of the set, and its card."""

    pictures: tuple[Picture, ...]
    card: Card


def curate(pictures: Sequence[Picture], filters: Filters) -> Curated:
    """The pictures that pass every gate. The same picture several times (repeats) is judged once and stays repeated.

    Raises: MezzotintError if nothing is left, with the gate that refused the most.
    """
    once = {id(picture): picture for picture in pictures}
    said = {name: filters.said(picture) for name, picture in once.items()}
    names = {id(picture): name for name, picture in said.items()}
    dropped = sum(len(once[name].captions) - len(said[name].captions) for name in once)
    left, gates = list(said.values()), list[Gated]()
    for gate in filters.gates():
        found = passed(left, gate)
        gates.append(_gated(gate.name, found))
        left = found.pictures
    if filters.duplicates is not None:
        exact, near = distinct(left, filters.duplicates)
        gates.append(_gated("duplicates", exact))
        if filters.duplicates.distance is not None:
            gates.append(_gated("near duplicates", near))
        left = near.pictures
    if not left:
        worst = max(gates, key=lambda gate: gate.refused, default=None)
        blame = f"; {worst.gate} refused {worst.refused} of {worst.judged}" if worst else ""
        raise MezzotintError(f"none of {len(pictures)} pictures passes the filters{blame}")
    chosen = {names[id(picture)]: picture for picture in left}
    kept = tuple(chosen[id(picture)] for picture in pictures if id(picture) in chosen)
    card = Card(
        rule=_rule(filters), source=digest(pictures, has_bytes=False), pictures=len(pictures), captions_dropped=dropped,
        gates=tuple(gates), kept=len(kept), content=digest(kept, has_bytes=filters.readable),
    )  # fmt: skip
    return Curated(kept, card)


def read_card(path: Path) -> Card:
    """The card in a file.

    Raises: MezzotintError if it is no card, of a higher schema, or was changed after it was written.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
        schema, said = data.pop("schema"), data.pop("hash")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise MezzotintError(f"{path}: no data card ({error!r})") from None
    if schema != SCHEMA:
        raise MezzotintError(f"{path}: card of schema {schema}; this version reads {SCHEMA}")
    try:
        card = Card(**data | {"gates": tuple(Gated(**gate) for gate in data["gates"])})
    except (KeyError, TypeError) as error:
        raise MezzotintError(f"{path}: no data card ({error!r})") from None
    if card.hash != said:
        raise MezzotintError(f"{path}: the card was changed; its hash is {card.hash[:12]}, it says {str(said)[:12]}")
    return card


def digest(pictures: Iterable[Picture], *, has_bytes: bool) -> str:
    """SHA-256 over names, captions and other columns, and with `has_bytes` encoded pictures; in any order."""
    lines: dict[int, str] = {}
    listed = list(pictures)
    for picture in listed:
        if id(picture) not in lines:
            said = _canonical([picture.key, picture.captions, dict(picture.columns), dict(picture.numbers)])
            lines[id(picture)] = said + (hashlib.sha256(picture.read()).hexdigest() if has_bytes else "")
    return hashlib.sha256("\n".join(sorted(lines[id(picture)] for picture in listed)).encode()).hexdigest()


def _gated(name: str, found: Passed) -> Gated:
    return Gated(name, found.judged, found.missing, found.refused, len(found.pictures))


def _rule(filters: Filters) -> dict[str, Any]:
    return {name: value for name, value in asdict(filters).items() if value not in (None, {})}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
