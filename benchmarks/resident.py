"""How much memory a process has resident at most."""

import threading
import time
from pathlib import Path

EVERY_S = 0.02


class Resident:
    """Follows a process: all of it, by the system's own high-water mark, and what belongs to no file, by looking."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._whole = self._anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self._look():
            time.sleep(EVERY_S)

    def _look(self) -> bool:
        """Take note; False if there is no such process any more."""
        try:
            lines = self._status.read_text(encoding="ascii").splitlines()
        except OSError:
            return False
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
        self._whole = max(self._whole, kib.get("VmHWM", 0))
        self._anonymous = max(self._anonymous, kib.get("RssAnon", 0))
        return "RssAnon" in kib

    def peak_gib(self) -> dict[str, float]:
        """The most so far."""
        self._look()
        return {"resident": round(self._whole / 2**20, 2), "anonymous": round(self._anonymous / 2**20, 2)}
