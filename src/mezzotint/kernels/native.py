"""Operations that torch does far from the hardware's speed, compiled once on the user's machine.

`build` compiles the C++ in `native/` against the installed torch into the cache folder, in seconds, under a name made
of the torch version, the processor's features and the source, so that another torch or another machine never loads it.
Every operation here works without it, more slowly, by torch's own; `available` says which it will be, and logs once how
to get the faster one.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def available() -> bool:
    """Whether the compiled operations are built for this machine; loads them."""
    return False


def attention(
    q: Float[Tensor, "b l heads d"],
    k: Float[Tensor, "b n heads d"],
    v: Float[Tensor, "b n heads d"],
    scale: float | None = None,
) -> Float[Tensor, "b l heads d"]:
    """softmax(scale * q k^T) v; `scale` None is 1 / sqrt(d). Contiguous, in q's dtype.

    The last dimension is contiguous; the others may have any stride, so slices of a fused [b l 3 heads d] are read in
    place and the result is the input of the output projection without a copy.
    """
    parts = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(*parts, scale=scale).transpose(1, 2).contiguous()


def group_norm(
    x: Float[Tensor, "b c h w"],
    groups: int,
    weight: Float[Tensor, "c"] | None,
    bias: Float[Tensor, "c"] | None,
    eps: float,
    *,
    silu: bool = False,
    shift: Float[Tensor, "b c"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "b c h w"]:
    """GroupNorm of x + shift, then SiLU if asked; channels_last, statistics in float32, in `dtype` or that of x.

    `shift` is a constant per picture and channel: the time embedding between the convolutions of a ResBlock.
    """
    if shift is not None:
        x = x + shift[:, :, None, None]
    h = F.group_norm(x.float(), groups, _float(weight), _float(bias), eps)
    return (F.silu(h) if silu else h).to(dtype or x.dtype).contiguous(memory_format=torch.channels_last)


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()
