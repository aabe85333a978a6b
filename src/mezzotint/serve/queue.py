"""Who waits, who is let in, and who comes next: arithmetic of costs, without clock, threads or jobs.

The cost of a job is the pixels that its network evaluations go over, plus decoding; how many seconds that is, is learnt
from what jobs took. The queue holds a bounded cost, waiting and running together; what would go beyond is refused at
once, with the time after which it would fit. The next job is the one with the smallest tag: when it came, or the tag of
the same client's last job that waits if that is later, plus how long it takes. So small jobs overtake large ones, but
no job is overtaken for longer than it takes itself, a client with many jobs does not push others back, and its own jobs
stay in their order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mezzotint.names import SAMPLERS
from mezzotint.pipeline.request import Request

DECODING = 2.0  # evaluations that decoding costs: a VAE goes over 64 times as many positions, but only once
TOLD = 3.0  # times the cost of a picture that is explained: its estimates are decoded, too, and it goes back and forth
MEMORY = 0.8  # of the learnt rate, after every job
LONGEST_RETRY_S = 120  # clients do not wait longer
MOST = 1000  # jobs that wait, however small: each is told its place whenever that changes
SMALL = 4  # a job this many times smaller than what is running does not wait for a free place


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What of a model decides about costs where a request does not say."""

    width: int = 512
    height: int = 512
    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpmpp_2m"


def evaluations(request: Request, defaults: Defaults) -> int:
    """Network evaluations of all pictures of a request."""
    steps = request.steps or defaults.steps
    if request.image is not None and request.start != "comfy":
        steps = max(1, math.ceil(steps * (request.strength or (1.0 if request.mask else 0.8))))
    return SAMPLERS[request.sampler or defaults.sampler].cost(steps) * request.count


def cost(request: Request, defaults: Defaults, *, is_explained: bool = False) -> float:
    """Megapixels that the networks go over for a request: a row of one evaluation counts its pixels."""
    pixels = (request.width or defaults.width) * (request.height or defaults.height) / 1e6
    guidance = defaults.guidance if request.guidance is None else request.guidance
    rows = 1 if guidance == 1 else 2
    made = pixels * (evaluations(request, defaults) * rows + DECODING * request.count)
    return made * TOLD if is_explained else made


@dataclass(frozen=True, slots=True)
class Ticket:
    """A job in the eyes of the queue."""

    job: str
    cost: float
    client: str
    tag: float = 0.0


class Full(Exception):
    """The job does not fit; `retry_after` seconds from now it may."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass
class Queue:
    """Jobs that wait and jobs that run.

    `capacity` is the cost that may be here at a time; `places` is how many jobs run at a time, not counting small ones.
    """

    capacity: float
    places: int = 4
    seconds_per_cost: float | None = None  # None until a job was finished
    waiting: dict[str, Ticket] = field(default_factory=dict[str, Ticket], init=False)
    running: dict[str, Ticket] = field(default_factory=dict[str, Ticket], init=False)
    _beside: set[str] = field(default_factory=set[str], init=False)  # running, without a place

    def offer(self, job: str, cost: float, client: str, now: float) -> None:
        """Let a job in. One that is larger than everything is let in when nothing else is here.

        Raises: Full.
        """
        if len(self.waiting) >= MOST:
            raise Full(max(1, min(LONGEST_RETRY_S, math.ceil(cost * (self.seconds_per_cost or 0)))))
        held = self.held
        if held and held + cost > self.capacity:
            over = min(held, held + cost - self.capacity) * (self.seconds_per_cost or 0)
            raise Full(max(1, min(LONGEST_RETRY_S, math.ceil(over))))
        since = max((ticket.tag for ticket in self.waiting.values() if ticket.client == client), default=now)
        self.waiting[job] = Ticket(job, cost, client, max(now, since) + cost * (self.seconds_per_cost or 0))

    @property
    def held(self) -> float:
        """Cost of all that is here."""
        return sum(ticket.cost for ticket in (*self.waiting.values(), *self.running.values()))

    def order(self) -> list[Ticket]:
        """Those that wait, next one first."""
        return sorted(self.waiting.values(), key=lambda ticket: ticket.tag)

    def next(self, fits: Callable[[str], bool] = lambda job: True) -> str | None:
        """The job that may begin now, which from now on runs; None if all places are taken or nobody waits.

        The first one has to fit, or none begins; of small ones that do not wait for a place, only those that fit.
        """
        order = self.order()
        if order and not fits(order[0].job):
            return None
        if not order:
            return None
        chosen = order[0] if len(self.running) - len(self._beside) < self.places else None
        if chosen is None and len(self.running) < 2 * self.places:
            least = min(ticket.cost for ticket in self.running.values())
            chosen = next((ticket for ticket in order if ticket.cost * SMALL <= least and fits(ticket.job)), None)
            if chosen is not None:
                self._beside.add(chosen.job)
        if chosen is None:
            return None
        self.running[chosen.job] = self.waiting.pop(chosen.job)
        return chosen.job

    def leave(self, job: str) -> None:
        """A job has ended, or will not begin."""
        self.waiting.pop(job, None)
        self.running.pop(job, None)
        self._beside.discard(job)

    def learn(self, cost: float, seconds: float) -> None:
        """So much was done in so much time of the engine."""
        if cost > 0 and seconds > 0:
            found = seconds / cost
            known = self.seconds_per_cost
            self.seconds_per_cost = found if known is None else MEMORY * known + (1 - MEMORY) * found

    def place(self, job: str, done: Mapping[str, float]) -> tuple[int, float | None]:
        """How many wait before this job (0: it is next), and in how many seconds all before it and it will be done.

        `done` is the share of every running job that is finished.
        """
        return self.places_of(done).get(job) or (0, self._seconds(self._left(done)))

    def places_of(self, done: Mapping[str, float]) -> dict[str, tuple[int, float | None]]:
        """`place` of everything that waits, next one first."""
        ahead, found = self._left(done), dict[str, tuple[int, float | None]]()
        for before, ticket in enumerate(self.order()):
            ahead += ticket.cost
            found[ticket.job] = (before, self._seconds(ahead))
        return found

    def _left(self, done: Mapping[str, float]) -> float:
        return sum(ticket.cost * (1 - done.get(ticket.job, 0)) for ticket in self.running.values())

    def _seconds(self, cost: float) -> float | None:
        return None if self.seconds_per_cost is None else cost * self.seconds_per_cost
