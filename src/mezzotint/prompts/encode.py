"""Prompt -> what the U-Net is conditioned on: which layer of which text tower each model reads, and empty prompts.

A prompt is encoded in chunks: lists of at most 75 ids, each framed to 77 and read alone. `encode_prompt` makes one
chunk and tells what did not fit; whoever weights words or takes longer prompts makes other chunks, calls
`encode_chunks` for each tower and `joined` once.

Letters: k chunks, n tokens of a chunk (77), d token width, p pooled width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.errors import CheckpointError, ConfigError, RequestError
from mezzotint.models.clip import TextTower
from mezzotint.prompts.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerRule:
    """How a model reads one text tower.

    `clip_skip` replaces `layer` by -clip_skip: it counts layers from the end, as AUTOMATIC1111 does. 1 is the last
    layer, what SD 1 uses; 2 the one before it, what SD 2 and SDXL use; `final_norm` and the pooled text stay as they
    are. diffusers' clip_skip counts from what the model uses: it is 1 less on SD 1, 2 less on SD 2 and SDXL.
    """

    layer: int = -1  # counted from the end of the tower as it was trained: -1 the last, -2 the one before
    final_norm: bool = True  # whether the state passes through the tower's last norm
    pooled: bool = False  # whether the model also reads the pooled text
    pad: int | None = None  # padding if the tokenizer's files state none; None is the closing token
    depth: int | None = None  # layers as trained, where files may lack those that are not read; None: as it is


LAST = TowerRule()
# Files from Hugging Face hold 23 of SD 2's 24 layers, original ones all: both are read at layer 23.
PENULTIMATE_NORMED = TowerRule(layer=-2, depth=24, pad=0)
PENULTIMATE = TowerRule(layer=-2, final_norm=False)
PENULTIMATE_POOLED = TowerRule(layer=-2, final_norm=False, pooled=True, pad=0)

RULES: dict[str, tuple[TowerRule, ...]] = {
    **dict.fromkeys(("sd15", "sd15-inpaint", "sd15-ip2p", "tiny"), (LAST,)),
    **dict.fromkeys(
        ("sd2", "sd2-v", "sd2-inpaint", "sd2-depth", "sd2-unclip-l", "sd2-unclip-h", "x4-upscaler"),
        (PENULTIMATE_NORMED,),
    ),
    **dict.fromkeys(("sdxl", "sdxl-inpaint", "sdxl-ip2p", "tiny-xl"), (PENULTIMATE, PENULTIMATE_POOLED)),
    "sdxl-refiner": (PENULTIMATE_POOLED,),
}
"""Per preset, one rule for each tower."""

EmptyNegative = Literal["encode", "zeros_if_none", "zeros_if_empty", "zeros_if_any_empty"]
"""What an SDXL model gets for a negative prompt that is not there (None) or empty ("").

encode              the encoding of the empty text
zeros_if_none       zeros for None; "" is encoded
zeros_if_empty      zeros for None and ""
zeros_if_any_empty  zeros for None and "", and for an empty prompt too
"""

EMPTY_NEGATIVE: dict[str, tuple[EmptyNegative, EmptyNegative]] = {
    "diffusers": ("zeros_if_none", "encode"),  # as the folders say: force_zeros_for_empty_prompt
    "sgm": ("zeros_if_empty", "encode"),
    "a1111": ("zeros_if_empty", "zeros_if_empty"),
    "forge": ("zeros_if_empty", "zeros_if_empty"),
    "invokeai": ("zeros_if_any_empty", "encode"),
    "comfyui": ("encode", "encode"),
    "sd-scripts": ("encode", "encode"),
}
"""Per program: the rule for SDXL and the rule for its refiner. Every program encodes with SD 1 and SD 2."""


class Chunks(NamedTuple):
    """What one tower gives for k chunks."""

    context: Float[Tensor, "k n d"]
    pooled: Float[Tensor, "k p"] | None


class Encoded(NamedTuple):
    """What the U-Net is conditioned on, and the words of the text that no tower or not every tower could read."""

    context: Float[Tensor, "1 n d"]
    pooled: Float[Tensor, "1 p"] | None
    dropped: tuple[str, ...] = ()


def encode_prompt(
    text: str,
    towers: Sequence[TextTower],
    tokenizers: Sequence[Tokenizer],
    rules: Sequence[TowerRule],
    *,
    clip_skip: int | None = None,
) -> Encoded:
    """The text as the towers together encode it, cut to one chunk; the words that were cut off are in `dropped`.

    Raises: RequestError for a clip_skip that a tower has no layer for; CheckpointError if tokenizer and tower differ.
    """
    parts = [
        encode_chunks([tokenizer.encode(text)], tower, tokenizer, rule, clip_skip=clip_skip)
        for tower, tokenizer, rule in zip(towers, tokenizers, rules, strict=True)
    ]
    return joined(parts, dropped=max(dropped_words(text, towers, tokenizers), key=len))


def encode_pair(
    prompt: str,
    negative: str | None,
    towers: Sequence[TextTower],
    tokenizers: Sequence[Tokenizer],
    rules: Sequence[TowerRule],
    *,
    empty: EmptyNegative = "encode",
    clip_skip: int | None = None,
) -> tuple[Encoded, Encoded]:
    """The encodings of prompt and negative prompt, with `empty` deciding about a negative that is None or "".

    clip_skip holds for both; diffusers leaves the negative of SDXL at its usual layer.
    """
    positive = encode_prompt(prompt, towers, tokenizers, rules, clip_skip=clip_skip)
    if is_zeros(negative, empty):
        opposite = zeros_like(positive)
    else:
        opposite = encode_prompt(negative or "", towers, tokenizers, rules, clip_skip=clip_skip)
    if prompt == "" and empty == "zeros_if_any_empty":
        positive = zeros_like(positive)
    return positive, opposite


def encode_chunks(
    chunks: Sequence[Sequence[int]],
    tower: TextTower,
    tokenizer: Tokenizer,
    rule: TowerRule,
    *,
    clip_skip: int | None = None,
) -> Chunks:
    """What the tower gives for each list of ids, framed by the tokenizer and cut to the tower's positions.

    Raises: RequestError for a clip_skip that the tower has no layer for; CheckpointError if tokenizer and tower differ.
    """
    pad = rule.pad if tokenizer.pad is None else tokenizer.pad
    rows = [tokenizer.frame(ids, length=tower.config.positions, pad=pad) for ids in chunks]
    embedding = tower.token_embedding
    if (highest := max(map(max, rows))) >= embedding.num_embeddings:
        raise CheckpointError(
            f"the tokenizer gives id {highest}, the text encoder has {embedding.num_embeddings} tokens; "
            "they belong to different models"
        )
    if rule.pooled and tower.config.eos != tokenizer.eos:
        raise CheckpointError(
            f"the tokenizer closes a text with id {tokenizer.eos}, the text encoder pools at id {tower.config.eos}"
        )
    index = _layer(rule, tower.config.layers, clip_skip)
    states, pooled = tower(torch.tensor(rows, device=embedding.weight.device))
    context = tower.final_norm(states[index]) if rule.final_norm else states[index]
    return Chunks(context, pooled if rule.pooled else None)


def padded_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Int[Tensor, "b n"]:
    """Token ids up to the longest text: what comes after a text's end cannot change its pooled output."""
    chunks = [tokenizer.chunk(text) for text in texts]
    longest = max(chunk.index(tokenizer.eos) for chunk in chunks) + 1
    return torch.tensor([chunk[:longest] for chunk in chunks])


def joined(parts: Sequence[Chunks], *, dropped: tuple[str, ...] = ()) -> Encoded:
    """One conditioning from what each tower gave: chunks one after the other, towers side by side in token width.

    Pooled is that of the first chunk, from the last tower that gives one.
    """
    context = torch.cat([part.context.flatten(0, 1) for part in parts], dim=-1)[None]  # [1 k*n d]
    pooled = [part.pooled[:1] for part in parts if part.pooled is not None]
    return Encoded(context, pooled[-1] if pooled else None, dropped)


def dropped_words(
    text: str, towers: Sequence[TextTower], tokenizers: Sequence[Tokenizer]
) -> tuple[tuple[str, ...], ...]:
    """Per tower, the words of the text that do not fit into one chunk, as they were written."""
    return tuple(
        tokenizer.dropped(text, room=tower.config.positions - 2)
        for tower, tokenizer in zip(towers, tokenizers, strict=True)
    )


def zeros_like(encoded: Encoded) -> Encoded:
    """The conditioning of the same size that is zero everywhere, pooled text included."""
    context, pooled, _ = encoded
    return Encoded(torch.zeros_like(context), None if pooled is None else torch.zeros_like(pooled))


def is_zeros(negative: str | None, empty: EmptyNegative) -> bool:
    """Whether the rule replaces this negative prompt by zeros. Blanks are not empty: every program encodes them."""
    return empty != "encode" and (negative is None or (negative == "" and empty != "zeros_if_none"))


def empty_negative(preset: str, program: str = "diffusers") -> EmptyNegative:
    """The rule by which a program treats an empty negative prompt on a model of this preset."""
    base, refiner = EMPTY_NEGATIVE[program]
    if len(RULES[preset]) == 2:
        return base
    return refiner if preset == "sdxl-refiner" else "encode"


def _layer(rule: TowerRule, layers: int, clip_skip: int | None) -> int:
    """Index into the tower's states (0 is the embedded input, `layers` the last that the file holds)."""
    depth = rule.depth or layers
    if clip_skip is None:
        index = depth + 1 + rule.layer
        if not 0 < index <= layers:
            raise ConfigError(f"the model reads layer {index} of a text encoder that has {layers}")
        return index
    least = depth - layers + 1
    if not least <= clip_skip <= depth:
        raise RequestError(
            f"clip_skip = {clip_skip}: counts layers from the end of a text encoder of {depth}; {least} to {depth}"
        )
    return depth + 1 - clip_skip
