"""One job as the server sees it: what was asked for, how far it is, what came of it."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mezzotint.pipeline.request import Request
from mezzotint.serve.events import EventLog

Keep = Literal["gallery", "passing", "memory"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = frozenset({"done", "failed", "cancelled"})


class Made(NamedTuple):
    """A finished picture; `png` only where the job keeps its pictures in memory, `id` only where it does not."""

    entry: dict[str, Any]  # Any: JSON, the data of its event
    seed: int
    png: bytes | None
    id: str | None


@dataclass(kw_only=True)
class Job:
    """Lives in the server's one thread; others only read it."""

    id: str
    requests: list[Request]
    shown: list[dict[str, Any]]  # Any: JSON; the requests as the client stated them
    client: str
    dialect: str
    model: str
    keep: Keep = "gallery"
    wants_preview: bool = True
    is_explained: bool = False
    partials: int = 0
    cost: float = 0.0
    created: float = field(default_factory=time.time)
    state: State = "queued"
    progress: dict[str, Any] | None = None  # Any: JSON
    warnings: list[str] = field(default_factory=list[str])
    error: dict[str, Any] | None = None  # Any: JSON
    made: list[Made] = field(default_factory=list[Made])
    story: dict[str, Any] | None = None  # Any: JSON, the data of its event
    log: EventLog = field(default_factory=EventLog)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    began: float | None = None
    finished: float | None = None
    total: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.total = sum(request.count for request in self.requests)  # pictures of the whole job

    @property
    def fraction(self) -> float:
        """Share that is done."""
        return float(self.progress["fraction"]) if self.progress else 0.0

    def told(self, position: int | None = None, seconds_left: float | None = None) -> dict[str, Any]:  # Any: JSON
        """The job as clients see it."""
        return {
            "id": self.id,
            "state": self.state,
            "position": position,
            "seconds_left": seconds_left,
            "created": self.created,
            "requests": self.shown,
            "total": self.total,
            "images": [made.entry for made in self.made],
            "story": self.story,
            "progress": self.progress,
            "warnings": self.warnings,
            "error": self.error,
        }
