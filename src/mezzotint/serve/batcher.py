"""Whose turn it is: decides which pictures go into the next call of the network, and touches no tensor.

Every running job gets the same share of time, counted in what its steps really took: the job that has had least is
next. A job that begins starts level with those that have had least, so that it neither waits for their past nor may
catch up with it. A small job is thus done after about its own time multiplied by the number of jobs running, however
large the others are; and nobody waits longer for a turn than one turn of every other.

Source: the fair queueing of Demers, Keshav and Shenker 1989, with time in place of bytes.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


@dataclass
class Batcher:
    """The running jobs and how much time each has had."""

    _had: dict[str, float] = field(default_factory=dict[str, float], init=False)  # seconds, in order of arrival

    def __len__(self) -> int:
        return len(self._had)

    def add(self, job: str) -> None:
        """A job begins."""
        self._had[job] = min(self._had.values(), default=0.0)

    def remove(self, job: str) -> None:
        """A job has ended."""
        self._had.pop(job, None)

    def turn(self) -> str | None:
        """The job that is next; None if there is none."""
        return min(self._had, key=self._had.__getitem__, default=None)

    def group(self, kind: Callable[[str], Hashable], rows: Callable[[str], int], most: int) -> list[str]:
        """The job that is next and, in the order of their turns, others of its kind whose rows fit into one call."""
        first, *others = sorted(self._had, key=self._had.__getitem__)
        taken, room = [first], most - rows(first)
        for job in others:
            if rows(job) <= room and kind(job) == kind(first):
                taken.append(job)
                room -= rows(job)
        return taken

    def charge(self, jobs: list[str], seconds: float) -> None:
        """A call for these jobs took so long: each bears its part."""
        for job in jobs:
            if job in self._had:
                self._had[job] += seconds / len(jobs)
