"""Several processes train one run: started by torchrun, they share out the micro-batches of every step.

    torchrun --nproc-per-node 2 --no-python mezzotint train icons-unet --data icons64 --out runs/unet

How many there are changes nothing but the order of sums: order, draws and strata belong to positions, and one process
computes a micro-batch whole. Gradients and losses are summed in float32. There are two ways to hold the networks:

* Whole, in every process. This is what DistributedDataParallel does, written out because parts use other methods of a
  network than `forward`, and because gradients of bfloat16 copies must be float32 before they are added.
* Sharded, for what does not fit: FSDP2 leaves each process 1/n of weights, gradients, optimiser and averages, and
  gathers a network's weights while they are used.

SIGTERM to one process stops all at the same step, with everything saved; torchrun turns their exit code 75 into its 1.
"""

import atexit
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mezzotint.errors import CheckpointError, ConfigError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)  # others wait while the first one exports and evaluates
BUCKET_BYTES = 25 << 20  # of gradients sent at once


@dataclass(frozen=True, slots=True)
class Processes:
    """All processes of a run, seen from number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes what exists once."""
        return self.rank == 0

    def share(self, micro_batches: Sequence[T]) -> Sequence[T]:
        """What this process computes of a step: an equal, contiguous part.

        Raises: ConfigError if it cannot be equal.
        """
        size, rest = divmod(len(micro_batches), self.count)
        if rest:
            raise ConfigError(
                f"gradient_accumulation_steps {len(micro_batches)}: {self.count} processes need a multiple of "
                f"{self.count}; raise it and lower train_batch_size, so that their product stays"
            )
        return micro_batches[self.rank * size : (self.rank + 1) * size]

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each float32 tensor by its sum over all processes: the same bits in every one."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for index, tensor in enumerate(tensors):
            bucket.append(tensor)
            if index + 1 < len(tensors) and sum(t.nbytes for t in bucket) < BUCKET_BYTES:
                continue
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat)  # pyright: ignore[reportUnknownMemberType]  # partly untyped
            for t, total in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(total.view_as(t))
            bucket = []

    def any(self, said: bool) -> bool:
        """Whether at least one process says so."""
        if self.count == 1:
            return said
        flag = torch.tensor(int(said))
        dist.all_reduce(flag, dist.ReduceOp.MAX)  # pyright: ignore[reportUnknownMemberType]  # partly untyped
        return bool(flag)

    @contextmanager
    def agreed(self) -> Generator[None]:
        """Leave the block together: if it fails in one process, it fails in all.

        Raises: CheckpointError where it succeeded but not everywhere.
        """
        try:
            yield
        except Exception:
            self.any(True)
            raise
        if self.any(False):
            raise CheckpointError("another process could not do its part; its log says why")

    @contextmanager
    def first_alone(self) -> Generator[None]:
        """The first process leaves the block before the others enter it: what it caches is there for them."""
        if not self.is_first:
            self.any(False)  # waits for all
        yield
        if self.is_first:
            self.any(False)

    def gathered(self, value: T) -> list[T]:
        """What every process says, by rank."""
        found: list[T] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(found, value)  # pyright: ignore[reportUnknownMemberType]  # takes Any
        return found


ALONE = Processes()


def joined() -> Processes:
    """The processes that torchrun started, or whoever has set up a process group; ALONE otherwise."""
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return ALONE
        dist.init_process_group("gloo", timeout=TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), dist.get_world_size())


def shard(network: nn.Module) -> None:
    """Leave each process its rows of every weight, in place. Gradients arrive as sums, made in float32.

    The network may only be used by calling it or its `prepare`, as U-Nets are.
    """
    fully_shard(network, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32), reshard_after_forward=True)
    assert isinstance(network, FSDPModule)
    network.set_gradient_divide_factor(1.0)
    network.set_force_sum_reduction_for_comms(True)  # gloo has no other
    if hasattr(network, "prepare"):
        register_fsdp_forward_method(network, "prepare")
    # Keys and values that `prepare` returns are views; nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def spread(whole: Tensor, like: Tensor) -> Tensor:
    """This process's rows of a tensor that every process knows, if `like` is sharded; else the tensor."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, if it is sharded. All must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
