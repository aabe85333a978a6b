"""Lists of prompts that pictures are made from: built-in sets by name, or a file. No torch.

    partiprompts  1,632 prompts of Parti with category and challenge: what people use to look at models
    mlperf-coco   5,000 COCO 2014 captions, the list of MLPerf's text-to-image benchmark; references are those pictures
    icons         24 prompts that the packaged model was watched with

A file has one prompt a line, or is a .tsv whose first line names a column `prompt` (or `caption`). Quotation marks in
a .tsv are part of the text.

Source: Yu et al. 2022, arXiv:2206.10789 (PartiPrompts); https://github.com/mlcommons/inference (the COCO list).
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mezzotint.errors import RequestError, unknown

SETS = {"partiprompts": "partiprompts.tsv.gz", "mlperf-coco": "mlperf-coco.tsv.gz", "icons": "icons.txt"}
PROMPT_COLUMNS = ("prompt", "caption")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Prompts in their order; `columns` are the other columns of a table, each as long as `prompts`."""

    name: str
    prompts: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]

    @property
    def sha256(self) -> str:
        """Names the list in reports: other prompts, or another order, give another hash."""
        return hashlib.sha256(json.dumps(self.prompts, ensure_ascii=False).encode()).hexdigest()

    def first(self, count: int | None) -> "PromptSet":
        """The same, cut to the first `count`; None keeps all."""
        columns = {name: values[:count] for name, values in self.columns.items()}
        return PromptSet(name=self.name, prompts=self.prompts[:count], columns=columns)


def read_prompts(name: str | Path) -> PromptSet:
    """The built-in set of this name, or the prompts of a file.

    Raises: RequestError if there is neither, or nothing in it.
    """
    if str(name) in SETS:
        packed = (resources.files("mezzotint") / "assets" / "prompts" / SETS[str(name)]).read_bytes()
        text = gzip.decompress(packed) if SETS[str(name)].endswith(".gz") else packed
        return _parsed(str(name), text.decode(), is_table=".tsv" in SETS[str(name)])
    path = Path(name).expanduser()
    if not path.is_file():
        raise RequestError(f"prompts {str(name)!r}: no such file, and {unknown('prompt set', str(name), SETS)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts {str(path)!r} cannot be read: {error}") from None
    return _parsed(str(path), text, is_table=path.suffix == ".tsv")


def _parsed(name: str, text: str, *, is_table: bool) -> PromptSet:
    lines = text.split("\n")  # not splitlines: prompts may hold other separators
    if not is_table:
        prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not prompts:
            raise RequestError(f"prompts {name!r}: there is no prompt in this file")
        return PromptSet(name=name, prompts=prompts, columns={})
    heads = [head.strip().lower() for head in lines[0].split("\t")]
    rows = [line.rstrip("\r").split("\t") for line in lines[1:] if line.strip()]
    chosen = next((column for column in PROMPT_COLUMNS if column in heads), None)
    if chosen is None:
        raise RequestError(
            f"prompts {name!r}: columns {', '.join(heads)} → one called {' or '.join(PROMPT_COLUMNS)} expected"
        )
    if uneven := next((i for i, row in enumerate(rows) if len(row) != len(heads)), None) is not None:
        raise RequestError(f"prompts {name!r}: row {uneven + 1} has not the {len(heads)} columns of the first line")
    if not rows:
        raise RequestError(f"prompts {name!r}: there is no prompt in this file")
    columns = {head: _column(rows, i) for i, head in enumerate(heads)}
    return PromptSet(name=name, prompts=columns.pop(chosen), columns=columns)


def _column(rows: Sequence[Sequence[str]], i: int) -> tuple[str, ...]:
    return tuple(row[i] for row in rows)
