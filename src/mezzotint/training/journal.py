"""The log of a run: one JSON object a line, and the same numbers for TensorBoard if it is installed.

Lines after the step that a run continues from are dropped first, so that every step is told once.
"""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path


class Journal:
    """Appends to `log.jsonl` in a run's folder."""

    def __init__(self, folder: Path, *, keep_until: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        kept = [line for line in self._lines() if _step(line) <= keep_until]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(kept), "utf-8")
        partial.replace(self.path)
        self._board = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=keep_until + 1)

    def _lines(self) -> list[str]:
        return self.path.read_text("utf-8").splitlines(keepends=True) if self.path.exists() else []

    def add(self, step: int, what: str, values: Mapping[str, float], pace: Mapping[str, float]) -> None:
        """One record. `values` are the same whenever the run is repeated; `pace` is not."""
        record = (
            {"step": step, "what": what, **values, "pace": pace} if pace else {"step": step, "what": what, **values}
        )
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in {**values, **pace}.items():
                self._board.add_scalar(f"{what}/{name}", value, step)  # pyright: ignore[reportUnknownMemberType]  # untyped
            self._board.flush()


def _step(line: str) -> float:
    """Step of a line; infinity for one that was cut off in writing."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")
