"""What was measured of a model, as Markdown for its card: reports of `evaluate` and of `evaluate accuracy`, as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mezzotint.checkpoints.fields import Fields
from mezzotint.errors import ConfigError
from mezzotint.evaluation import held_out
from mezzotint.evaluation.report import HEADS, rows_of

SHOWN = 4  # columns of a report: number, value, interval, pictures


def measured(files: Sequence[Path]) -> str:
    """The tables of all files, each with the settings that its numbers belong to.

    Raises: ConfigError for a file that is neither kind of report.
    """
    return "\n\n".join(_section(file, dict(Fields.of(file).values)) for file in files)


def _section(file: Path, told: dict[str, Any]) -> str:  # Any: JSON that we wrote
    if "held_out" in told:
        return _accuracy(told)
    if "sets" in told:
        return _report(told)
    raise ConfigError(
        f"{file}: no report; the output of evaluate (report.json) or of evaluate accuracy --json expected"
    )


def _accuracy(told: dict[str, Any]) -> str:  # Any: JSON that we wrote
    settings = ", ".join(f"{name} {value}" for name, value in told["settings"].items())
    said = (
        f"Concept and style of {told['pairs']} pairs that training held back and of as many that it saw, chosen by "
        f"{told['judge']!r} among {told['concepts']} concepts in {told['styles']} styles; DDIM, {settings}; "
        "95 % intervals."
    )
    return f"{said}\n\n{_table(held_out.HEADS, held_out.rows_of(told))}"


def _report(told: dict[str, Any]) -> str:  # Any: JSON that we wrote
    rows: list[tuple[str, ...]] = []
    for one in told["sets"]:
        rows += [(one["name"], *row[:SHOWN]) for row in rows_of(one)]
    extractors = "; ".join(
        f"{one['extractor']} {str(one['weights'])[:12]}, protocol {one['protocol']} {one['protocol_digest']}"
        for one in told["extractors"]
    )
    kept = ("sampler", "steps", "seed", "per_prompt", "limit", "dtype")
    settings = ", ".join(
        f"{name} {told['settings'][name]}" for name in kept if told["settings"].get(name) not in (None, [])
    )
    said = f"Features: {extractors or 'none'}. {settings}. Written by {told['tool']}."
    return f"{said}\n\n{_table(('set', *HEADS[:SHOWN]), rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])
