"""What happens to one job, in order, for any number of readers that come, go and come back.

Events carry numbers that count up. Of those that only say how things stand now (FLEETING) the latest is
kept; all others are kept until the log is dropped, so that a reader who gives the number of the last event
that it saw misses nothing that matters.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FLEETING = frozenset({"queued", "progress", "preview", "telling"})
LAST = frozenset({"done", "failed", "cancelled"})
KEEP_ALIVE_S = 15.0


class Event(NamedTuple):
    """One thing that happened."""

    number: int
    kind: str
    data: dict[str, Any]  # Any: JSON

    def sent(self) -> bytes:
        """As server-sent events want it. ASCII, so that no line of it can end where none should."""
        return f"id: {self.number}\nevent: {self.kind}\ndata: {json.dumps(self.data)}\n\n".encode()


@dataclass
class EventLog:
    """The events of one job."""

    _events: list[Event] = field(default_factory=list[Event], init=False)
    _number: int = field(default=0, init=False)
    _news: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def is_closed(self) -> bool:
        """Whether the last event has happened."""
        return bool(self._events) and self._events[-1].kind in LAST

    @property
    def last_number(self) -> int:
        """Of the latest event; 0 before the first."""
        return self._number

    def add(self, kind: str, data: dict[str, Any]) -> None:  # Any: JSON
        """Something happened. After the last event nothing does."""
        if self.is_closed:
            return
        self._number += 1
        fleeting = {kind} if kind in FLEETING else set[str]()
        if kind in LAST:
            fleeting = set(FLEETING)
        if kind == "started":
            fleeting = {"queued"}
        self._events = [event for event in self._events if event.kind not in fleeting]
        self._events.append(Event(self._number, kind, data))
        news, self._news = self._news, asyncio.Event()
        news.set()

    def latest(self, kind: str) -> dict[str, Any] | None:  # Any: JSON
        """Data of the latest event of a kind."""
        return next((event.data for event in reversed(self._events) if event.kind == kind), None)

    def since(self, number: int) -> list[Event]:
        """Events after the one of that number."""
        return [event for event in self._events if event.number > number]

    async def follow(self, after: int = 0, *, patience: float = KEEP_ALIVE_S) -> AsyncIterator[Event | None]:
        """Events as they happen, to the last one; None whenever nothing happened for `patience` seconds."""
        while True:
            news = self._news
            for event in self.since(after):
                after = event.number
                yield event
                if event.kind in LAST:
                    return
            if self.is_closed:
                return
            if self.since(after):
                continue
            try:
                async with asyncio.timeout(patience):
                    await news.wait()
            except TimeoutError:
                yield None
