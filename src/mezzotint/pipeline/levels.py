"""How much of a picture is approximated: `full` nothing, `balanced` and `fast` what is said here, and nothing silently.

Weights in 8 bits are another approximation, chosen when a model is loaded, and recorded the same way.

A level fills in steps, sampler and spacing only where the request leaves them open. What it changed stands in the
record of every picture, with the error that `mezzotint bench --levels` measured for this model on this machine, if it
was measured.

Sources: Sabour et al. 2024, arXiv:2404.14507 (few steps at optimised noise levels); Ma et al. 2024, arXiv:2312.00858
(blocks that run at some steps only); Lyu et al. 2024, arXiv:2410.19355 (guidance differences that are used again).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any  # Any: JSON

from mezzotint.kernels.choices import APPROXIMATE
from mezzotint.storage import atomic, cache_folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What is done less often than exactly."""

    steps: float = 1.0  # share of the model's usual steps, if the request names none
    has_few_step_spacing: bool = False  # noise levels made for few steps, where the family has them
    guidance_every: int = 1  # steps from one unconditional evaluation to the next
    blocks_every: int = 1  # queries from one run of all blocks to the next
    whole_first: int = 0  # queries at the start at which all blocks run

    def recorded(self) -> dict[str, object]:
        """As it stands in a record."""
        return asdict(self)


LEVELS: Mapping[str, Level] = {
    "full": Level(),
    "balanced": Level(steps=0.75, has_few_step_spacing=True, guidance_every=2),
    "fast": Level(steps=0.6, has_few_step_spacing=True, guidance_every=2, blocks_every=2, whole_first=3),
}

FEW_STEP_SPACINGS = {"sd15": "ays", "sdxl": "ays_sdxl"}  # by preset; others keep their own
FEW_STEP_SAMPLER = "dpmpp_2m"


def approximated(level: str, execution: Mapping[str, Any], unet_sha256: str) -> dict[str, Any] | None:
    """What a picture's level did less often than exactly, its weights, and what both were measured to cost; or None."""
    weights = execution["kernels"]["weights"]
    found: dict[str, Any] = {"level": level, **LEVELS[level].recorded(), "measured": measured_error(unet_sha256, level)}
    if weights in APPROXIMATE:
        return {**found, "weights": {"kind": weights, "measured": measured_error(unet_sha256, weights)}}
    return None if level == "full" else found


def said(found: Mapping[str, Any]) -> str:
    """What `approximated` found, in one line, for people."""
    parts = [] if found["level"] == "full" else [f"level {found['level']} ({_cost(found['measured'])})"]
    if weights := found.get("weights"):
        parts.append(f"weights {weights['kind']} ({_cost(weights['measured'])})")
    return "approximated: " + ", ".join(parts)


def _cost(measured: Mapping[str, Any] | None) -> str:
    if measured is None:
        return "not measured on this model: `mezzotint bench --levels` does"
    return f"{measured['psnr']:.1f} dB to the full picture, median of {measured['pictures']}"


def remember_errors(unet_sha256: str, errors: Mapping[str, Mapping[str, object]]) -> None:
    """Keep what was measured of the levels of one model."""
    try:
        with atomic(_file(unet_sha256)) as file:
            file.write(json.dumps(errors, indent=1).encode())
    except OSError as error:
        _log.warning("the measured errors of the levels could not be kept: %s", error)


def measured_error(unet_sha256: str, level: str) -> object:
    """What was measured of a level of this model; None if nothing was."""
    try:
        return json.loads(_file(unet_sha256).read_text(encoding="utf-8")).get(level)
    except (OSError, ValueError, AttributeError):
        return None


def _file(unet_sha256: str) -> Path:
    return cache_folder() / "levels" / f"{unet_sha256[:16]}.json"
