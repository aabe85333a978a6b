"""The report for people: one HTML file with numbers, plots and pictures inside, which opens anywhere.

Best and worst prompts stand with their pictures, since a mean hides both; copies stand beside what they may be of.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any  # Any: JSON

from PIL import Image

from mezzotint.evaluation import plot

SHOWN = 20  # prompts in each gallery
SIDE = 160  # pixels of a picture in the page

Read = Callable[[str, str], Image.Image | None]
"""(set, name of a picture) -> the picture; None if it is not at hand."""


def page(report: Mapping[str, Any], folder: Path, read: Read) -> str:
    """The whole document."""
    sets: Sequence[Mapping[str, Any]] = report["sets"]
    told = report["settings"]
    what = told["model"] or ", ".join(told["pictures"])
    parts = [f"<h1>{_text(what)}</h1>", _facts(report)]
    if not plot.has_matplotlib():
        parts.append(f"<p class=note>{_text(plot.LACKING)}</p>")
    elif (drawn := plot.sweep(sets)) is not None:
        parts.append(f"<h2>Sweep</h2>{drawn}")
    if report.get("best"):
        rows = [(name, first["set"], _number(first["value"])) for name, first in sorted(report["best"].items())]
        parts.append("<h2>Best settings, by each number</h2>" + _table(("by", "setting", "value"), rows))
    for one in sets:
        parts += _set(one, folder, read)
    title = _text(f"Evaluation of {what}")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>{STYLE}"
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def rows_of(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The numbers of a set as texts: name, value, interval, pictures, protocol, features, remark."""
    rows: list[tuple[str, ...]] = []
    for entry in told["metrics"]:
        name = entry.get("name") or entry["metric"]
        if entry["value"] is None:
            rows.append((name, "-", "", "", entry["protocol"], entry["features"], str(entry["why"])))
            continue
        bounds = (entry["low"], entry["high"])
        interval = "none" if None in bounds else " … ".join(_number(bound) for bound in bounds)
        remark = "; ".join(entry.get("notes") or ()) or entry["how"]
        count = f"{entry['count']:,}"
        rows.append((name, _number(entry["value"]), interval, count, entry["protocol"], entry["features"], remark))
    return rows


def cut_of(told: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Prompts of a set that are longer than the CLIP reads, with the words that were not read."""
    return next((entry["cut"] for entry in told["metrics"] if entry.get("cut")), ())


HEADS = ("number", "value", "95 % interval", "pictures", "protocol", "features", "remark")


def _facts(report: Mapping[str, Any]) -> str:
    told = report["settings"]
    rows = [("written by", report["tool"])]
    rows += [
        (name, ", ".join(map(str, value)) if isinstance(value, list) else value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # JSON
        for name, value in told.items()
        if value not in (None, [], "", False)
    ]
    for one in report["extractors"]:
        rows.append((f"features {one['extractor']}", f"{one['weights']} · {one['protocol']} {one['protocol_digest']}"))
    for name in ("against", "training"):
        if other := report.get(name):
            count = other.get("pictures")
            rows.append((f"{name}: pictures", f"{count:,}" if count else "statistics only"))
    return "<details><summary>Protocol and settings</summary>" + _table(("", ""), rows) + "</details>"


def _set(one: Mapping[str, Any], folder: Path, read: Read) -> list[str]:
    name = one["name"]
    parts = [f"<h2>{_text(name)}: {one['pictures']:,} pictures</h2>", _table(HEADS, rows_of(one))]
    if one["left_out"]:
        parts.append("<h3>Left out</h3>" + _table(("picture", "why"), one["left_out"][:SHOWN]))
    if one["notes"]:
        parts.append(
            f"<p class=note>{len(one['notes'])} pictures converted, such as {_text(': '.join(one['notes'][0]))}</p>"
        )
    if one["repeated"]:
        parts.append(f"<p class=note>{one['repeated']} pictures are the same, pixel by pixel, as others</p>")
    if cut := cut_of(one):
        rows = [(entry["prompt"], " ".join(entry["words"])) for entry in cut[:SHOWN]]
        parts.append(f"<h3>{len(cut)} prompts longer than the CLIP reads</h3>" + _table(("prompt", "not read"), rows))
    table = _prompts(folder / "sets" / name / "prompts.tsv")
    if plot.has_matplotlib():
        drawn = (plot.extrapolation(one["metrics"]), plot.histogram([float(row["cosine"]) for row in table]))
        parts += [text for text in drawn if text is not None]
    if table:
        best, worst = table[:SHOWN], table[::-1][:SHOWN]
        parts.append("<h3>Best prompts</h3>" + _gallery(_shown(row, "best", name, read) for row in best))
        parts.append("<h3>Worst prompts</h3>" + _gallery(_shown(row, "worst", name, read) for row in worst))
    if one["nearest"]:
        cells = [
            _figure(read(name, row["picture"]), row["picture"])
            + _figure(
                read("training", row["training"]),
                f"{row['training']}, ratio {row['ratio']:.2f}" + " copy" * row["is_copy"],
            )
            for row in one["nearest"]
        ]
        parts.append("<h3>Nearest training pictures</h3>" + _gallery(cells))
    return parts


def _shown(row: Mapping[str, str], which: str, name: str, read: Read) -> str:
    return _figure(read(name, row[which]), f"{float(row['cosine']):.3f} {row['prompt']}")


def _figure(picture: Image.Image | None, words: str) -> str:
    if picture is None:
        return f"<figure><figcaption>{_text(words)}</figcaption></figure>"
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    alt = html.escape(words, quote=True)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"><figcaption>{_text(words)}</figcaption></figure>'
    )


def _gallery(cells: Iterable[str]) -> str:
    return f"<div class=gallery>{''.join(cells)}</div>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _prompts(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    lines = [line.split("\t") for line in file.read_text("utf-8").splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _number(value: float) -> str:
    return f"{value:.5g}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=False)


STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td:nth-child(2) { font-variant-numeric: tabular-nums; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: 160px; font-size: 12px; }
img { max-width: 160px; image-rendering: pixelated; display: block; }
.note { color: #664; }
svg { max-width: 100%; height: auto; }
</style>"""
