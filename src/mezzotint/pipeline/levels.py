"""How much of a picture is approximated: `full` nothing, `balanced` and `fast` what is said here, and nothing silently.

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
