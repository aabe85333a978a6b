"""From rows to x0: the only place where precision changes, and the loop that runs one picture.

The rows that a stage asks for together are one batch (2 with guidance, 1 without), whatever else is being made: a
picture never depends on its neighbours. Several pictures are several `drive` generators, run one after another or in
turn.
"""

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor

from mezzotint.diffusion.parameterisation import Parameterisation, x0_from
from mezzotint.diffusion.sampling import Row, Rows, Stage
from mezzotint.kernels.execution import Execution
from mezzotint.kernels.memory import Memory
from mezzotint.kernels.unet import FastUNet
from mezzotint.models.unet import Conditioning, Prepared, UNet


class Network(NamedTuple):
    """A U-Net, what its output means, and where, how precisely and with which kernels it computes."""

    unet: UNet
    parameterisation: Parameterisation
    dtype: torch.dtype
    device: torch.device
    execution: Execution | None = None

    @property
    def run(self) -> UNet | FastUNet:
        """What is called instead of the U-Net: itself, or the same made ready for this processor."""
        return self.unet if self.execution is None else self.execution.unet(self.unet)

    def asked(self, rows: Sequence[Row], x: Tensor, t: Tensor, prepared: Prepared) -> Tensor:
        """The output for x, already scaled, of these rows; with their picture's memory where it has one."""
        run, memory = self.run, rows[0].memory
        if isinstance(run, FastUNet) and isinstance(memory, Memory):
            return run(x, t, prepared, memory)
        return run(x, t, prepared)


class Evaluation(NamedTuple):
    """One batch of rows and what the network made of it."""

    rows: list[Row]
    x0: list[Tensor]


class Watch(Protocol):
    """Somebody who looks on while a picture is made, and changes nothing."""

    def stage(self, stage: Stage, network: str) -> Stage:
        """The same stage, which may mark its rows with `wants` and look at what is asked and answered."""
        ...

    def batch(self, network: Network, rows: list[Row]) -> AbstractContextManager[object]:
        """Entered around each call of a network whose rows want something."""
        ...


@dataclass
class Predictor:
    """`predict(rows) -> list[x0]` for one picture; remembers what was prepared for each set of slots.

    Float32 in, float32 out; only the network's own input and output are in its dtype.
    """

    networks: Mapping[str, Network]
    watch: Watch | None = None
    _prepared: dict[tuple[str, ...], tuple[list[object], Prepared]] = field(
        default_factory=dict[tuple[str, ...], tuple[list[object], Prepared]], init=False
    )

    @torch.no_grad()
    def __call__(self, rows: list[Row]) -> list[Tensor]:
        """x0 of every row; rows of the same network are one batch, in their order."""
        found: dict[int, Tensor] = {}
        for name in dict.fromkeys(row.network for row in rows):
            places = [place for place, row in enumerate(rows) if row.network == name]
            network, batch = self.networks[name], [rows[place] for place in places]
            is_watched = self.watch is not None and any(row.wants for row in batch)
            prepared = self.prepared(network, batch)
            with self.watch.batch(network, batch) if self.watch and is_watched else nullcontext():
                x0 = evaluated(network, batch, prepared)
            found |= dict(zip(places, split(x0, batch), strict=True))
        return [found[place] for place in range(len(rows))]

    @torch.no_grad()
    def prepared(self, network: Network, rows: list[Row]) -> Prepared:
        """What the network computes once for the conditioning of these rows, from memory if it is known."""
        key = (rows[0].network, *(row.slot for row in rows))
        asked = [row.conditioning for row in rows]
        known = self._prepared.get(key)
        if known is None or any(old is not new for old, new in zip(known[0], asked, strict=True)):
            conditionings = [cast(Conditioning, conditioning) for conditioning in asked]  # opaque in Row
            known = self._prepared[key] = (asked, network.run.prepare(_stacked(conditionings, network)))
        return known[1]


def evaluated(network: Network, rows: Sequence[Row], prepared: Prepared) -> Tensor:
    """x0 of all rows, one after another, by one call of the network. Float32."""
    x = torch.cat([row.x for row in rows])
    t = torch.cat([torch.full((row.x.shape[0],), row.t) for row in rows])
    c_in = torch.cat(
        [row.x.new_full((row.x.shape[0], 1, 1, 1), network.parameterisation(row.sigma).c_in) for row in rows]
    )
    output = network.asked(rows, (c_in * x).to(network.device, network.dtype), t.to(network.device), prepared)
    outputs = split(output.to(x.device, torch.float32), rows)
    return torch.cat(
        [x0_from(out, row.x, row.sigma, network.parameterisation) for out, row in zip(outputs, rows, strict=True)]
    )


def drive(rows: Rows, predict: Callable[[list[Row]], list[Tensor]]) -> Generator[Evaluation, None, Tensor]:
    """Run one picture; yields after every batch, returns the final x. Closing it stops before the next batch."""
    try:
        asked = next(rows)
        while True:
            x0 = predict(asked)
            yield Evaluation(asked, x0)
            asked = rows.send(x0)
    except StopIteration as finished:
        return finished.value
    finally:
        rows.close()


def split(batch: Tensor, rows: Sequence[Row]) -> list[Tensor]:
    """The batch in the parts that its rows gave."""
    ends = list(itertools.accumulate(row.x.shape[0] for row in rows))
    return [batch[end - row.x.shape[0] : end] for end, row in zip(ends, rows, strict=True)]


def _stacked(conditionings: list[Conditioning], network: Network) -> Conditioning:
    """One conditioning for the batch, in the network's dtype and on its device."""

    def joined(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        if not present:
            return None
        whole = torch.cat(present).to(network.device)
        return whole.to(network.dtype) if whole.is_floating_point() else whole

    contexts, vectors, labels, guidances, concats, controls = (
        list(column) for column in zip(*conditionings, strict=True)
    )
    guidance = joined(guidances)
    return Conditioning(
        context=joined(contexts),
        vector=joined(vectors),
        label=joined(labels),
        guidance=None if guidance is None else guidance.float(),
        concat=joined(concats),
        control=controls[0],
    )
