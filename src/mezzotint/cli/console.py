"""What verbs share at the terminal: data goes to stdout, progress and warnings to stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any  # Any: whatever json can print

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def print_json(data: Any) -> None:  # Any: whatever json can print
    """Data as one JSON document on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def table(title: str | None, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout; nothing when there are no rows."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=any(heads))
    for head in heads:
        shown.add_column(head, overflow="fold")
    for row in rows:
        shown.add_row(*row)
    if shown.row_count:
        stdout.print(shown)


def warn(message: str) -> None:
    """One line on stderr that does not stop anything."""
    stderr.print(f"[yellow]warning:[/yellow] {message}", soft_wrap=True)


def progress_bar() -> Progress:
    """The live bar: what is being made, steps, time spent and time left. Silent where stderr is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=stderr,
        disable=not sys.stderr.isatty(),
        transient=True,
    )
