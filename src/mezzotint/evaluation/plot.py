"""Plots of a report as SVG texts, by matplotlib, which is in the extra `eval`; the same report gives the same bytes.

- sweep: Frechet distance against CLIP score, one point for each setting, with intervals: the front, not one setting
- histogram: how the cosines of prompts are spread
- extrapolation: the Frechet distance against 1 / n, and the line that FID-infinity is the end of
"""

import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any  # Any: JSON, and matplotlib, whose types are partly unknown

LACKING = "matplotlib is not installed: pip install 'mezzotint[eval]' adds the plots"
SIZE_IN = (6.0, 4.0)


def has_matplotlib() -> bool:
    """Whether plots can be drawn here."""
    return find_spec("matplotlib") is not None


def sweep(sets: Sequence[Mapping[str, Any]]) -> str | None:
    """Frechet distance (lower is better) against CLIP score (higher is better); None with fewer than two such sets."""
    found = [(told["name"], _first(told, "fid"), _first(told, "clip")) for told in sets]
    points = [(name, x, y) for name, y, x in found if x is not None and y is not None]
    if len(points) < 2:
        return None
    figure, axes = _figure()
    for name, x, y in points:
        axes.errorbar(
            x["value"], y["value"], xerr=_arms(x), yerr=_arms(y), fmt="o", color="C0", ecolor="0.75", capsize=2
        )
        axes.annotate(name, (x["value"], y["value"]), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.plot([x["value"] for _, x, _ in points], [y["value"] for _, _, y in points], color="C0", alpha=0.4)
    _named(axes, f"CLIP score, cosine ({points[0][1]['clip']})", f"{points[0][2]['name']} ({points[0][2]['protocol']})")
    return _svg(figure)


def histogram(cosines: Sequence[float]) -> str | None:
    """Cosines of prompts; None for fewer than five."""
    if len(cosines) < 5:
        return None
    figure, axes = _figure()
    axes.hist(cosines, bins=min(40, max(5, len(cosines) // 5)), color="C0")
    _named(axes, "cosine of picture and prompt", "prompts")
    return _svg(figure)


def extrapolation(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """The points of FID-infinity; None if there is none."""
    entry = next((entry for entry in metrics if entry.get("points") and entry.get("value") is not None), None)
    if entry is None:
        return None
    figure, axes = _figure()
    x, y = zip(*((1 / count, value) for count, value in entry["points"]), strict=True)
    axes.plot(x, y, "o", color="C0")
    axes.plot([0, x[0]], [entry["value"], y[0]], "--", color="C0", alpha=0.5)
    arms = _arms(entry)
    axes.errorbar([0], [entry["value"]], yerr=arms, fmt="s", color="C1", capsize=3)
    _named(axes, "1 / number of pictures", entry["name"].removesuffix("-infinity"))
    return _svg(figure)


def _first(told: Mapping[str, Any], metric: str) -> Mapping[str, Any] | None:
    """The first number of a metric; of CLIP score the cosine."""
    return next((e for e in told["metrics"] if e["metric"] == metric and e.get("value") is not None), None)


def _arms(entry: Mapping[str, Any]) -> list[list[float]] | None:
    if entry.get("low") is None or entry.get("high") is None:
        return None
    return [[max(0.0, entry["value"] - entry["low"])], [max(0.0, entry["high"] - entry["value"])]]


def _figure() -> tuple[Any, Any]:  # Any: matplotlib
    figure = import_module("matplotlib.figure").Figure(figsize=SIZE_IN, layout="constrained")
    return figure, figure.subplots()


def _named(axes: Any, x: str, y: str) -> None:  # Any: matplotlib
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)


def _svg(figure: Any) -> str:  # Any: matplotlib
    matplotlib = import_module("matplotlib")
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "mezzotint", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
