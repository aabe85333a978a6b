"""What the networks are told of a request: text, sizes, and the picture to vary."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mezzotint.errors import RequestError
from mezzotint.models.unet import Conditioning, sized_vector
from mezzotint.pipeline.request import Request
from mezzotint.prompts.encode import EmptyNegative, Encoded, encode_pair

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

BASE_SIZES, REFINER_SIZES = 6, 5
SIZE_WIDTH = 256
REMEMBERED_PROMPTS = 32  # pairs of prompt and negative prompt; 0.5 MB each for XL


class Sides(NamedTuple):
    """Both sides of guidance, and what of the prompts could not be told."""

    conditional: Conditioning
    unconditional: Conditioning
    warnings: tuple[str, ...]


@torch.no_grad()
def told(system: "System", request: Request) -> Sides:
    """The conditioning of a resolved request on one system.

    Raises: RequestError if a prompt does not fit and the request is strict.
    """
    key = (request.prompt, *_opposite(system, request), request.clip_skip)
    if (known := system.prompts.get(key)) is None:
        known = system.prompts[key] = encoded(system, request)
        if len(system.prompts) > REMEMBERED_PROMPTS:
            system.prompts.popitem(last=False)
    system.prompts.move_to_end(key)
    positive, negative = known
    warnings = tuple(
        f"{name}: {len(encoded.dropped)} words do not fit into the text encoder and were left out: "
        f"{' '.join(encoded.dropped)}"
        for name, encoded in (("prompt", positive), ("negative", negative))
        if encoded.dropped
    )
    if warnings and request.strict:
        raise RequestError("; ".join(warnings))
    guidance = torch.tensor([request.guidance]) if system.unet.config.guidance else None
    return Sides(
        Conditioning(positive.context, _vector(system, request, positive, request.aesthetic), guidance=guidance),
        Conditioning(negative.context, _vector(system, request, negative, request.negative_aesthetic)),
        warnings,
    )


def encoded(system: "System", request: Request) -> tuple[Encoded, Encoded]:
    """Prompt and negative prompt as all text towers read them; the latter only where there is guidance."""
    unwanted, empty = _opposite(system, request)
    return encode_pair(
        request.prompt,
        unwanted,
        system.text,
        system.tokenizers,
        system.rules,
        empty=empty,
        clip_skip=request.clip_skip,
    )


def _opposite(system: "System", request: Request) -> tuple[str | None, EmptyNegative]:
    """The negative prompt, and the rule for an empty one."""
    if request.guidance == 1 or system.unet.config.guidance:
        return None, "zeros_if_none"
    return request.negative, request.empty_negative or system.empty_negative


def _vector(system: "System", request: Request, encoded: Encoded, aesthetic: float) -> Tensor | None:
    """SDXL's pooled text and numbers; None for models that are told no sizes.

    Base: height and width before resizing, crop top and left, height and width wanted. Refiner: an aesthetic score
    instead of the last two.
    """
    if encoded.pooled is None:
        return None
    numbers = (system.unet.config.vector - encoded.pooled.shape[1]) // SIZE_WIDTH
    width, height = request.original_size or (0, 0)
    left, top = request.crop
    end = (aesthetic,) if numbers == REFINER_SIZES else (request.height or 0, request.width or 0)
    return sized_vector(encoded.pooled, torch.tensor([[height, width, top, left, *end]], dtype=torch.float32))
