"""Rows of several pictures in one call of the network: for accelerators, where one picture leaves most of them idle.

Off by default. The call always has the same number of rows, filled up with copies, so that the same kernels run
whatever the load; still, a kernel may sum in another order than it does for two rows. Pictures made so equal their
solo runs to the tolerance that docs/reference/serving.md states, not to the bit. On processors it gains little.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from mezzotint.diffusion.sampling import Row
from mezzotint.models.unet import UNet
from mezzotint.pipeline.drive import Predictor, evaluated, split

Tree = TypeVar("Tree")


class Asked(NamedTuple):
    """The rows that one picture waits for, and who would answer them alone."""

    predict: Predictor
    rows: list[Row]


def can_merge(asked: Asked) -> bool:
    """Whether these rows can share a call: one network, run as it is, that nobody looks at.

    What is made ready for a processor runs alone.
    """
    names = {row.network for row in asked.rows}
    return len(names) == 1 and asked.predict.watch is None and isinstance(asked.predict.networks[names.pop()].run, UNet)


def kind(asked: Asked) -> Hashable:
    """Equal for pictures whose rows can share a call: same network, sizes and sorts of conditioning."""
    if not can_merge(asked):
        return object()
    network = asked.predict.networks[asked.rows[0].network]
    prepared = asked.predict.prepared(network, asked.rows)
    shapes: list[tuple[int, ...]] = []
    _mapped([prepared], lambda tensors: shapes.append(tuple(tensors[0].shape[1:])) or tensors[0])
    kinds = (prepared.emb is None, prepared.guidance is None, prepared.concat is None, prepared.control is None)
    return id(network.unet), tuple(asked.rows[0].x.shape[1:]), tuple(shapes), kinds


@torch.no_grad()
def merged(pictures: Sequence[Asked], rows: int) -> list[list[Tensor]]:
    """x0 for the rows of each picture, all of one `kind`, by one call of the network with exactly `rows` rows.

    Raises: ValueError if there are more rows than that.
    """
    wanted = [row for asked in pictures for row in asked.rows]
    if len(wanted) > rows:
        raise ValueError(f"{len(wanted)} rows do not fit into a call of {rows}")
    network = pictures[0].predict.networks[wanted[0].network]
    parts = [asked.predict.prepared(network, asked.rows) for asked in pictures]
    spare = rows - len(wanted)

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat([*tensors, tensors[-1][-1:].expand(spare, *[-1] * (tensors[-1].ndim - 1))])

    whole = _mapped(parts, joined)
    x0 = split(evaluated(network, [*wanted, *wanted[-1:] * spare], whole), wanted)
    answers = iter(x0)
    return [[next(answers) for _ in asked.rows] for asked in pictures]


def _mapped(parts: Sequence[Tree], join: Callable[[list[Tensor]], Tensor]) -> Tree:
    """One structure from several of the same form: nested tuples, None and tensors, which `join` makes one of."""
    first = parts[0]
    if isinstance(first, Tensor):
        return cast(Tree, join(cast(list[Tensor], list(parts))))  # a Tree that is a tensor
    if not isinstance(first, tuple):
        return first
    columns = zip(*cast(Sequence[tuple[object, ...]], parts), strict=True)  # a Tree that is a tuple
    made = [_mapped(list(column), join) for column in columns]
    return cast(Tree, first._make(made) if hasattr(first, "_make") else tuple(made))  # pyright: ignore  # NamedTuple's
