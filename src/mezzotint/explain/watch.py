"""What is seen of one picture while it is made: queries, answers, guidance, attention, the U-Net's activations.

A `Watching` is the `Watch` of a picture. Its stage passes every query and every answer on as they are; its batch puts
hooks on the network for the length of one call.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.diffusion.sampling import Query, Row, Stage
from mezzotint.explain.attention import Maps, cross_attention
from mezzotint.models.unet import Conditioning, UNet
from mezzotint.pipeline.drive import Network

ATTENTION, ACTIVATIONS = "attention", "activations"  # what a row may want
MAP_SIDE = 32  # of an activation's picture


class Moment(NamedTuple):
    """One query of a sampler and its answer: everything that happened at one step."""

    query: Query
    x0: dict[str, Tensor]  # per slot
    answer: Tensor  # x0 as the sampler was told it: guided, and whatever else stages do
    seconds: float  # in the network
    network: str


class Activation(NamedTuple):
    """What one block of the U-Net gave."""

    name: str
    shape: tuple[int, ...]
    seconds: float
    strength: float  # mean absolute value
    map: Tensor  # [h w], mean absolute value over channels


@dataclass
class Watching:
    """What was seen; only the moments of `steps` are kept, the first query of each."""

    steps: frozenset[int]
    maps: Maps | None  # of the conditional row
    activations_at: int
    moments: dict[int, Moment] = field(default_factory=dict[int, Moment])
    seconds: dict[int, float] = field(default_factory=dict[int, float])  # in the network, per step
    activations: list[Activation] = field(default_factory=list[Activation])
    evaluations: int = 0
    told: Conditioning | None = None  # what the first conditional row said besides x and t
    _step: int = 0
    _first: dict[str, int] = field(default_factory=dict[str, int])  # of each network, its first step
    _spent: float = 0.0

    def stage(self, stage: Stage, network: str) -> Stage:
        """`stage` whose rows want to be looked at, and whose answers are remembered."""

        def watching(query: Query) -> Generator[list[Row], list[Tensor], Tensor]:
            first = self._first.setdefault(network, max(self.seconds, default=-1) + 1)
            self._step, self._spent = first + query.step, 0.0
            asked, slots = stage(query), dict[str, Tensor]()
            rows = next(asked)
            told = next((row.conditioning for row in rows if row.slot == "conditional"), None)
            if self.told is None and isinstance(told, Conditioning):
                self.told = told
            while True:
                x0 = yield [row._replace(wants=row.wants | self._wants()) for row in rows]
                slots |= {row.slot: answer for row, answer in zip(rows, x0, strict=True)}
                try:
                    rows = asked.send(x0)
                except StopIteration as finished:
                    answer: Tensor = finished.value
                    break
            if self._step in self.steps and self._step not in self.moments:
                self.moments[self._step] = Moment(query, slots, answer, self._spent, network)
            self.seconds[self._step] = self.seconds.get(self._step, 0.0) + self._spent
            return answer

        return watching

    def _wants(self) -> frozenset[str]:
        wants = {ATTENTION} if self.maps is not None else set[str]()
        if self._step == self.activations_at and not self.activations:
            wants.add(ACTIVATIONS)
        return frozenset(wants)

    @contextmanager
    def batch(self, network: Network, rows: list[Row]) -> Generator[None]:
        """Look at one call of a network, and time it without the looking."""
        places = [place for place, row in enumerate(rows) if row.slot == "conditional" and ATTENTION in row.wants]
        before = self.maps.seconds if self.maps is not None else 0.0
        with ExitStack() as looking:
            if self.maps is not None and places and cross_attention(network.unet):
                prefix = "" if rows[0].network == "base" else f"{rows[0].network}."
                looking.enter_context(self.maps.captured(network.unet, places, self._step, prefix))
            if any(ACTIVATIONS in row.wants for row in rows):
                looking.enter_context(seen(network.unet, self.activations, places[0] if places else 0))
            begun = perf_counter()
            yield
            self._spent += perf_counter() - begun
        self._spent -= (self.maps.seconds if self.maps is not None else 0.0) - before
        self.evaluations += 1


def parts(unet: UNet) -> list[tuple[str, nn.Module]]:
    """Everything that a U-Net runs one after another, by name."""
    found: list[tuple[str, nn.Module]] = [("conv_in", unet.conv_in)]
    for i, level in enumerate(unet.down):
        found += [(f"down.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks)]
        found += [(f"down.{i}.resample", level.resample)] if level.resample is not None else []
    found += [("middle", unet.middle)] if unet.middle is not None else []
    for i, level in enumerate(unet.up):
        found += [(f"up.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks)]
        found += [(f"up.{i}.resample", level.resample)] if level.resample is not None else []
    return [*found, ("conv_out", unet.conv_out)]


@contextmanager
def seen(unet: UNet, into: list[Activation], place: int) -> Generator[None]:
    """Within it, a call of the U-Net leaves shape, time and strength of every part, for one row of the batch.

    Parts run one after another, so that the time of each is the time since the one before. Fast kernels may compute
    rows that cannot differ yet only once.
    """
    marks = [perf_counter()]

    def after(name: str, part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seconds = perf_counter() - marks[-1]
        one = output[min(place, len(output) - 1)].detach().float()
        size = (min(MAP_SIDE, one.shape[-2]), min(MAP_SIDE, one.shape[-1]))
        picture = F.adaptive_avg_pool2d(one.abs().mean(0)[None], size)[0].cpu()
        into.append(Activation(name, tuple(one.shape), seconds, float(one.abs().mean()), picture))
        marks.append(perf_counter())

    hooks = [part.register_forward_hook(partial(after, name)) for name, part in parts(unet)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def chosen(steps: int, most: int) -> tuple[int, ...]:
    """At most `most` of so many steps, first and last among them, evenly."""
    if steps <= most:
        return tuple(range(steps))
    return tuple(dict.fromkeys(round(i * (steps - 1) / (most - 1)) for i in range(most)))
