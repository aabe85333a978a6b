"""Inception v3 as the Frechet Inception distance defines it: TensorFlow's network of 2015-12-05."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class InceptionOutput(NamedTuple):
    """float32 [n 2048], [n 1008] without the bias, [n 2023]."""

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"]
    spatial: Float[Tensor, "n e"]


class Inception:
    """The network, its batch norms folded into its convolutions."""

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        raise NotImplementedError

    def __call__(self, x: Float[Tensor, "n 3 299 299"]) -> InceptionOutput:
        """Of pictures that a protocol has prepared."""
        raise NotImplementedError
