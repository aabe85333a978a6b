"""Architectures drawn: as text for a terminal, as SVG for a page; several side by side with what differs marked."""

import html
from collections.abc import Sequence

from mezzotint.explain.architecture import Architecture, Row

PANEL, GAP, LEFT = 476, 28, 20  # px: width of a model, between models, margin
HEAD, ROW, BOX, LINE = 118, 92, 74, 21  # px: heights of the head, a level, a box, a line of facts
NARROW, WIDE = 172, 214  # px: width of the box with the fewest and the most channels
BAR = 24  # characters of the widest bar in a terminal

STYLE = """
  .ground { fill: #fbfaf7 } .ink { fill: #1d1c1a } .soft { fill: #625e57 } .mark { fill: #b3471d; font-weight: 700 }
  .plain { fill: #e7e4dc; stroke: #b9b3a6 } .attn { fill: #f7cfae; stroke: #c2703a }
  .wire { stroke: #8a857b; fill: none }
  .skip { stroke: #b9b3a6; stroke-dasharray: 4 4; fill: none } .changed { stroke: #b3471d; stroke-width: 3 }
  text { font: 12.5px system-ui, "DejaVu Sans", sans-serif } .name { font-size: 19px; font-weight: 700 }
  .big { font-size: 13.5px; font-weight: 600 } .small { font-size: 11px }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #16151a } .ink { fill: #eceae4 } .soft { fill: #a8a39a } .mark { fill: #f4935f }
    .plain { fill: #2c2a33; stroke: #5b5764 } .attn { fill: #5a3620; stroke: #c77b45 } .changed { stroke: #f4935f }
    .wire { stroke: #8f8a98 } .skip { stroke: #5b5764 }
  }"""


def drawn_text(models: Sequence[Architecture]) -> str:
    """Every model as a U of bars, then a table of what they are; ≠ marks rows in which they differ."""
    parts = [_terminal(model) for model in models]
    names = [model.name for model in models]
    facts = list(models[0].facts)
    columns = [["", *facts]] + [[model.name, *(model.facts[fact] for fact in facts)] for model in models]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        ("≠ " if i and len({column[i] for column in columns[1:]}) > 1 else "  ")
        + "  ".join(column[i].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        for i in range(len(facts) + 1)
    ]
    legend = ["≠ rows in which they differ"] if len(names) > 1 else []
    return "\n\n".join([*parts, "\n".join([*lines, *legend])])


def _terminal(model: Architecture) -> str:
    most = max(row.channels for row in model.rows)
    lines = [
        f"{model.name}: {model.title}",
        f"U-Net, {model.parameters:,} parameters, {_flops(model.flops)} an evaluation",
    ]
    for row in model.rows:
        bar = "█" * max(1, round(BAR * row.channels / most))
        arrow = {"down": "↓", "up": "↑", "": " "}[row.resample]
        blocks = f"{row.blocks} ResBlocks"
        size = f"{row.h}x{row.w}"
        lines.append(
            f"  {row.way:6} {size:>9}  {bar:{BAR}} {row.channels:>5} channels  {blocks}, {row.attention:22} "
            f"{row.parameters / 1e6:>9,.1f} M  {_flops(row.flops):>11} {arrow}".rstrip()
        )
    return "\n".join(lines)


def drawn_svg(models: Sequence[Architecture]) -> str:
    """Every model as a U: down on the left, up on the right, the middle at the bottom, skips between; facts below.

    Boxes with attention are coloured; what differs from the first model is marked.
    """
    depth = max(len(_ways(model)[0]) for model in models)
    facts = list(models[0].facts)
    tall = HEAD + (depth + 1) * ROW + 18 + len(facts) * LINE + 30
    wide = 2 * LEFT + len(models) * PANEL + (len(models) - 1) * GAP
    title = html.escape("The U-Net of " + ", ".join(model.name for model in models))
    panels = [
        _panel(model, models[0], LEFT + i * (PANEL + GAP), depth, is_first=i == 0) for i, model in enumerate(models)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}">'
        f"<title>{title}</title><style>{STYLE}\n</style>"
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="soft" d="M0 0 L8 4 L0 8 z"/></marker></defs>'
        f'<rect class="ground" width="{wide}" height="{tall}"/>{"".join(panels)}</svg>\n'
    )


def _panel(model: Architecture, first: Architecture, x: int, depth: int, *, is_first: bool) -> str:
    down, middle, up = _ways(model)
    parts = [
        _text(x, 34, model.name, "ink name"),
        _text(x, 56, model.title, "soft"),
        _text(x, 76, f"{model.parameters:,} parameters, {_flops(model.flops)} an evaluation", "ink"),
        _text(x, 96, f"{model.width} x {model.height} pixels, latent {model.rows[0].h} x {model.rows[0].w}", "soft"),
    ]
    most = max(row.channels for row in model.rows)
    left, right = x + WIDE / 2, x + PANEL - WIDE / 2
    others = _ways(first)
    for i, row in enumerate(down):
        y = HEAD + i * ROW
        parts.append(_box(row, left, y, most, is_changed=not is_first and _is_new(row, others[0], i)))
        if i + 1 < len(down):
            parts.append(_wire(left, y + BOX, left, y + ROW - 1))
    for i, row in enumerate(reversed(up)):
        y = HEAD + i * ROW
        parts.append(_box(row, right, y, most, is_changed=not is_first and _is_new(row, others[2][::-1], i)))
        if i + 1 < len(up):
            parts.append(_wire(right, y + ROW - 1, right, y + BOX))
        half = NARROW / 2 + (WIDE - NARROW) / 2 * row.channels / most
        parts.append(f'<path class="skip" d="M{left + half:.0f} {y + BOX / 2:.0f} H{right - half:.0f}"/>')
        parts.append(_text((left + right) / 2, y + BOX / 2 - 6, "skips", "soft small", "middle"))
    y = HEAD + len(down) * ROW
    last = y - ROW + BOX
    if middle is not None:
        centre = (left + right) / 2
        half = NARROW / 2 + (WIDE - NARROW) / 2 * middle.channels / most
        parts.append(_box(middle, centre, y, most, is_changed=not is_first and _is_new(middle, [others[1]], 0)))
        parts.append(
            f'<path class="wire" marker-end="url(#end)" d="M{left} {last} V{y + BOX / 2} H{centre - half - 2:.0f}"/>'
        )
        parts.append(
            f'<path class="wire" marker-end="url(#end)" d="M{centre + half:.0f} {y + BOX / 2} H{right} V{last + 2}"/>'
        )
    else:
        parts.append(f'<path class="wire" marker-end="url(#end)" d="M{left} {last} V{y + 20} H{right} V{last + 2}"/>')
    below = HEAD + (depth + 1) * ROW + 18
    for i, (fact, value) in enumerate(model.facts.items()):
        is_other = not is_first and value != first.facts[fact]
        parts.append(_text(x, below + i * LINE, fact, "soft"))
        parts.append(
            _text(x + 148, below + i * LINE, ("≠ " if is_other else "") + value, "mark" if is_other else "ink")
        )
    return "".join(parts)


def _ways(model: Architecture) -> tuple[list[Row], Row | None, list[Row]]:
    """The rows of the way down, the middle, the rows of the way up."""
    down = [row for row in model.rows if row.way == "down"]
    up = [row for row in model.rows if row.way == "up"]
    return down, next((row for row in model.rows if row.way == "middle"), None), up


def _is_new(row: Row, others: Sequence[Row | None], i: int) -> bool:
    other = others[i] if i < len(others) else None
    return other is None or (row.channels, row.layers, row.heads) != (other.channels, other.layers, other.heads)


def _box(row: Row, centre: float, y: float, most: int, *, is_changed: bool) -> str:
    width = NARROW + (WIDE - NARROW) * row.channels / most
    kind = ("attn" if any(row.layers) else "plain") + (" changed" if is_changed else "")
    lines = (
        (f"{row.channels} channels, {row.h}x{row.w}", "ink big", 18),
        (f"{row.blocks} ResBlocks", "ink", 34),
        (row.attention, "ink", 50),
        (f"{row.parameters / 1e6:,.1f} M, {_flops(row.flops)}", "soft small", 66),
    )
    rect = f'<rect class="{kind}" rx="8" x="{centre - width / 2:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}"/>'
    return rect + "".join(_text(centre, y + dy, said, style, "middle") for said, style, dy in lines)


def _wire(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="wire" marker-end="url(#end)" d="M{x1:.0f} {y1:.0f} L{x2:.0f} {y2:.0f}"/>'


def _text(x: float, y: float, said: str, style: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{style}" text-anchor="{anchor}">{html.escape(said)}</text>'


def _flops(flops: int) -> str:
    return f"{flops / 1e9:,.1f} GFLOP" if flops >= 1e8 else f"{flops / 1e6:,.1f} MFLOP"
