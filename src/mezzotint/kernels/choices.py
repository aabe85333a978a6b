"""Which implementation of each operation a network runs with: a `KernelSet`, and what its names stand for.

A kernel set is part of a picture's recipe: it is recorded by its names, and the same names give the same bits on the
same processor with the same torch and the same number of threads.

Letters: b batch, l positions, n tokens or positions that are looked at, d width of a head, c channels, h w rows and
columns.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast, get_args, get_type_hints
from typing import Literal as OneOf

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ConfigError, unknown
from mezzotint.kernels import native

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [b l heads d], keys and values [b n heads d] -> [b l heads d]; the last dimension is contiguous."""

Normalise = Callable[..., Tensor]
"""x [b c h w], its `nn.GroupNorm`, `is_silu`, `shift` [b c] or None added before -> [b c h w], channels last."""

CHUNK = 256  # queries whose scores are held at once
FEW_TOKENS = 256  # below, torch's own attention is as good

_ops: Any = torch.ops.mkldnn  # Any: torch leaves its operators untyped


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelSet:
    """Names of implementations. The default is what runs everywhere: every module as torch runs it."""

    weights: OneOf["plain", "packed", "int8", "w8a8"] = "plain"  # plain: modules as they are, nothing else applies
    attention: OneOf["torch", "float32", "matmul", "native"] = "torch"
    norm: OneOf["torch", "native"] = "torch"
    convolution: OneOf["packed", "winograd"] = "packed"  # of 3x3, in bfloat16

    def recorded(self) -> dict[str, str]:
        """As it stands in a record."""
        return asdict(self)

    @property
    def attend(self) -> Attend:
        """The function that computes attention."""
        return {
            "torch": by_torch,
            "float32": by_torch_in_float32,
            "matmul": by_matrix_products,
            "native": native.attention,
        }[self.attention]

    @property
    def normalise(self) -> Normalise:
        """The function that computes GroupNorm and SiLU."""
        return {"torch": norm_by_torch, "native": norm_by_native}[self.norm]


APPROXIMATE = ("int8", "w8a8")  # weights that change pictures, and are never chosen unasked
PLAIN = KernelSet()
PACKED = KernelSet(weights="packed")
NATIVE = KernelSet(weights="packed", attention="native", norm="native", convolution="winograd")


def from_record(record: Mapping[str, object] | str) -> KernelSet:
    """The kernel set of a record; "torch" in early ones is PLAIN.

    Raises: ConfigError for a name that this version does not know.
    """
    if isinstance(record, str):
        record = {}
    hints = get_type_hints(KernelSet)
    for key, value in record.items():
        if key not in hints:
            raise ConfigError(f"kernels: {unknown('operation', key, [field.name for field in fields(KernelSet)])}")
        if value not in get_args(hints[key]):
            raise ConfigError(f"kernels: {unknown(key, str(value), get_args(hints[key]))}")
    return KernelSet(**cast("dict[str, Any]", dict(record)))  # Any: checked above


def by_torch(
    q: Float[Tensor, "b l heads d"], k: Float[Tensor, "b n heads d"], v: Float[Tensor, "b n heads d"]
) -> Float[Tensor, "b l heads d"]:
    """As torch does it."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


def by_torch_in_float32(
    q: Float[Tensor, "b l heads d"], k: Float[Tensor, "b n heads d"], v: Float[Tensor, "b n heads d"]
) -> Float[Tensor, "b l heads d"]:
    """As torch does it in float32: faster where the processor's bfloat16 products are emulated."""
    return by_torch(q.float(), k.float(), v.float()).to(q.dtype)


def by_matrix_products(
    q: Float[Tensor, "b l heads d"], k: Float[Tensor, "b n heads d"], v: Float[Tensor, "b n heads d"]
) -> Float[Tensor, "b l heads d"]:
    """Scores in float32, softmax, probabilities in q's dtype, by oneDNN: for processors on which torch uses MKL badly.

    Scores are held for CHUNK queries of one head at a time.
    """
    if k.shape[1] < FEW_TOKENS:
        return by_torch(q, k, v)
    batch, positions, heads, width = q.shape
    out = torch.empty(batch, positions, heads, width, dtype=q.dtype)
    scaled = k.float() / math.sqrt(width)
    queries = q.float()
    for b in range(batch):
        for head in range(heads):
            keys, values = scaled[b, :, head].contiguous(), v[b, :, head].t().contiguous()  # [n d], [d n]
            for first in range(0, positions, CHUNK):
                rows = queries[b, first : first + CHUNK, head]
                scores = cast(Tensor, _ops._linear_pointwise(rows, keys, None, "none", [], ""))
                weights = scores.softmax(-1).to(q.dtype)
                out[b, first : first + CHUNK, head] = _ops._linear_pointwise(weights, values, None, "none", [], "")
    return out


def norm_by_torch(
    x: Float[Tensor, "b c h w"], norm: nn.GroupNorm, *, is_silu: bool, shift: Float[Tensor, "b c"] | None = None
) -> Float[Tensor, "b c h w"]:
    """As torch does it."""
    if shift is not None:
        x = x + shift[:, :, None, None]
    h = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(h, inplace=True) if is_silu else h


def norm_by_native(
    x: Float[Tensor, "b c h w"], norm: nn.GroupNorm, *, is_silu: bool, shift: Float[Tensor, "b c"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Compiled, in two passes over the memory."""
    return native.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, silu=is_silu, shift=shift)
