"""Where forward and backward run: float32 weights themselves, or bfloat16 copies that are made once per step.

Autocast would cast every weight at every use. Copies cost one pass over the weights per step, and gradients come back
into float32 before anything is accumulated in them. Copies are quickened where the processor's kernels are built
(`kernels/training.py`). Where that does not compute attention, it is written out as two matrix products over short
sequences, because the backward pass of PyTorch's CPU flash attention is several times slower there.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.kernels.training import TrainingKernels, quicken

SHORT = 1024  # positions up to which written-out attention is faster on a CPU


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, the scores kept for the backward pass."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [b heads l n]
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ v


_attention = F.scaled_dot_product_attention


def _chosen(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # Any: all that PyTorch's takes
    is_short = q.device.type == "cpu" and q.shape[-2] <= SHORT and k.shape[-2] <= SHORT
    if is_short and not args and kwargs.keys() <= {"is_causal"}:
        return explicit_attention(q, k, v, **kwargs)
    return _attention(q, k, v, *args, **kwargs)


class ExplicitAttention:
    """Within it, attention of short sequences on a CPU is written out, in whatever module of the process asks for it.

    It replaces PyTorch's function, because a TorchFunctionMode is set aside while the backward pass runs, where
    checkpointed activations are computed again and must be computed alike.
    """

    def __enter__(self) -> None:
        self._before = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = _chosen  # pyright: ignore[reportAttributeAccessIssue]  # takes the same

    def __exit__(self, *error: object) -> None:
        F.scaled_dot_product_attention = self._before


class Working:
    """`networks`: the masters' working copies. In float32 they are the masters themselves."""

    def __init__(
        self, masters: Mapping[str, nn.Module], dtype: torch.dtype, kernels: TrainingKernels = "torch"
    ) -> None:
        self.masters = masters
        self.is_copy = dtype != torch.float32
        self.networks = dict(masters)
        if self.is_copy:
            self.networks = {name: copy.deepcopy(module).to(dtype) for name, module in masters.items()}
            if kernels == "native":
                self.networks = {name: quicken(network) for name, network in self.networks.items()}

    @torch.no_grad()
    def refresh(self, name: str) -> None:
        """Bring one network up to date with its master."""
        if self.is_copy:
            for worker, master in zip(self.networks[name].parameters(), self.masters[name].parameters(), strict=True):
                worker.copy_(master)

    def clear(self) -> None:
        """Forget all gradients."""
        for network in (*self.networks.values(), *self.masters.values()):
            network.zero_grad(set_to_none=True)

    def collect(self, name: str) -> None:
        """Give the gradients of a working network to its master, in float32, adding to what is there."""
        if not self.is_copy:
            return
        for master, worker in zip(self.masters[name].parameters(), self.networks[name].parameters(), strict=True):
            if worker.grad is not None:
                grad = worker.grad.to(torch.float32, memory_format=torch.contiguous_format)
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                worker.grad = None
