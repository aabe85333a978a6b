"""Two evaluations side by side: every number that both have, their difference, and whether it is significant.

Numbers of other features, another protocol or another reference mean nothing beside each other and are refused;
distances of unequal numbers of pictures are biased differently and get no difference. CLIP scores of the same prompts
are compared prompt by prompt, which removes what the prompts have in common: much smaller differences become visible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: JSON

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, difference, is_significant, mean
from mezzotint.evaluation.evaluate import TABLE, read_report
from mezzotint.evaluation.work import SETS

BIASED = {"fid", "sfid", "cmmd", "pr", "dc", "is"}  # depend on the number of pictures
MUST_AGREE = {
    "features": "numbers of different networks have nothing to do with each other",
    "protocol": "the same pictures give another number under another protocol; measure both under one",
    "protocol_digest": "the protocol's rules have changed between versions; measure both with one",
    "prefix": "score both with one --prefix",
}

Entry = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One number of both. `difference` is first - second; None with the reason in `why`."""

    sets: tuple[str, str]
    name: str
    protocol: str
    first: float | None
    second: float | None
    difference: Estimate | None
    is_significant: bool
    why: str


def compare(one: str | Path, other: str | Path) -> tuple[Line, ...]:
    """What two evaluations, output folders or report files, have in common.

    Raises: ConfigError for mixed protocols, features or references, or nothing in common; CheckpointError: no report.
    """
    reports = (read_report(one), read_report(other))
    places = tuple(path if path.is_dir() else path.parent for path in (Path(one), Path(other)))
    lines = [
        line for first, second in _pairs(*(r["sets"] for r in reports)) for line in _compared(first, second, places)
    ]
    if not lines:
        measured = [sorted({e["metric"] for told in r["sets"] for e in told["metrics"]}) for r in reports]
        raise ConfigError(
            f"no number in common: {one} has {', '.join(measured[0])}; {other} has {', '.join(measured[1])}"
        )
    return tuple(lines)


def _pairs(ones: Sequence[Entry], others: Sequence[Entry]) -> list[tuple[Entry, Entry]]:
    if len(ones) == 1 or len(others) == 1:
        return [(first, second) for first in ones for second in others]
    named = {told["name"]: told for told in others}
    return [(told, named[told["name"]]) for told in ones if told["name"] in named]


def _compared(one: Entry, other: Entry, places: tuple[Path, ...]) -> list[Line]:
    lines: list[Line] = []
    for metric in dict.fromkeys(entry["metric"] for entry in one["metrics"]):
        mine = {_key(entry): entry for entry in one["metrics"] if entry["metric"] == metric}
        theirs = {_key(entry): entry for entry in other["metrics"] if entry["metric"] == metric}
        common = mine.keys() & theirs.keys()
        if mine and theirs and not common:
            _refuse(metric, next(iter(mine.values())), next(iter(theirs.values())))
        for key in (key for key in mine if key in common):
            first, second = mine[key], theirs[key]
            if (a := first.get("reference")) != (b := second.get("reference")):
                raise ConfigError(
                    f"{metric} cannot be compared: reference {str(a)[:8]} and {str(b)[:8]}; measure both against the "
                    "same pictures"
                )
            paired = _paired(one, other, places) if first.get("scaling") in {"cosine", "x100", "weighted"} else None
            lines.append(_line(first, second, (one["name"], other["name"]), paired))
    return lines


def _key(entry: Entry) -> tuple[object, ...]:
    return (entry.get("scaling") or entry.get("name"), *(entry.get(name) for name in MUST_AGREE))


def _refuse(metric: str, first: Entry, second: Entry) -> None:
    for name, advice in MUST_AGREE.items():
        if first.get(name) != second.get(name):
            told = f"{first.get(name)!r} and {second.get(name)!r}"
            raise ConfigError(f"{metric} cannot be compared: {name} {told}; {advice}")


def _line(first: Entry, second: Entry, sets: tuple[str, str], paired: Sequence[float] | None) -> Line:
    found, why = None, ""
    if first["value"] is None or second["value"] is None:
        why = str(first.get("why") or second.get("why"))
    elif _is_biased(first) and first["count"] != second["count"]:
        why = f"{first['count']} and {second['count']} pictures: fewer give another bias; use FID-infinity or KID"
    elif first.get("weight") != second.get("weight"):
        why = f"weights {first.get('weight')} and {second.get('weight')}"
    elif paired is not None:
        scale = {"cosine": 1.0, "x100": 100.0, "weighted": float(first.get("weight") or 1.0)}[first["scaling"]]
        found = mean([scale * value for value in paired], len(paired), "prompts, paired")
    else:
        found = difference(_estimate(first), _estimate(second))
    return Line(
        sets=sets,
        name=first.get("name") or first["metric"],
        protocol=first["protocol"],
        first=first["value"],
        second=second["value"],
        difference=found,
        is_significant=found is not None and is_significant(found),
        why=why or (found.how if found else ""),
    )


def _is_biased(entry: Entry) -> bool:
    return entry["metric"] in BIASED and "infinity" not in str(entry.get("name"))


def _estimate(entry: Entry) -> Estimate:
    return Estimate(**{name: entry[name] for name in ("value", "low", "high", "count", "how")})


def _paired(one: Entry, other: Entry, places: tuple[Path, ...]) -> list[float] | None:
    """Differences of the mean cosine, prompt by prompt; None if the prompts are not the same."""
    tables = [_cosines(place / SETS / told["name"] / TABLE) for place, told in zip(places, (one, other), strict=True)]
    if len(tables[0]) < 2 or tables[0].keys() != tables[1].keys():
        return None
    return [tables[0][prompt] - tables[1][prompt] for prompt in sorted(tables[0])]


def _cosines(file: Path) -> dict[str, float]:
    if not file.is_file():
        return {}
    heads, *rows = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    prompt, cosine = heads.index("prompt"), heads.index("cosine")
    return {row[prompt]: float(row[cosine]) for row in rows}
