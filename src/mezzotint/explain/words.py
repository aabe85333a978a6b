"""Words → tokens → numbers: what the tokenizer makes of a prompt, and what the text towers make of the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mezzotint.explain.attention import Groups
from mezzotint.explain.blocks import Block, Section, bars, code_of, matrix, sizes, strip, table, text
from mezzotint.models.attention import Attention
from mezzotint.models.clip import TextTower
from mezzotint.models.unet import Conditioning, sized_vector
from mezzotint.pipeline.condition import encoded
from mezzotint.pipeline.request import Request
from mezzotint.prompts.encode import encode_chunks
from mezzotint.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

START, END = "‹start›", "‹end›"
WORD_END = "</w>"
MOST_COLUMNS = 768  # of a heat strip
MOST_WORDS = 16  # that are left out one at a time
SPREAD = 3.0  # deviations that colours reach


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One slot of the tower's input. `word` counts from 0; None for the opening, closing and padding tokens."""

    slot: int
    id: int
    piece: str
    word: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A prompt as one tokenizer reads it: its tokens up to the closing one, its words, and what fell off."""

    tokens: tuple[Token, ...]
    words: tuple[str, ...]
    slots: int
    dropped: tuple[str, ...]

    @property
    def groups(self) -> Groups:
        """Tokens by word, the opening one first; the closing one and all padding are one group, the last."""
        last = len(self.words) + 1
        of = [0 if token.slot == 0 else last if token.word is None else token.word + 1 for token in self.tokens]
        return Groups((START, *self.words, END), (*of, *([last] * (self.slots - len(of)))))


def read(prompt: str, tokenizer: Tokenizer, slots: int) -> Read:
    """The tokens of a prompt and the words that they spell; a word ends where a piece closes one."""
    found = tokenizer.tokens(prompt)
    ids, starts = found.ids[: slots - 2], [*found.starts, len(found.text)]
    words: list[str] = []
    tokens = [Token(slot=0, id=tokenizer.bos, piece=START, word=None)]
    is_new = True
    for place, number in enumerate(ids):
        piece = tokenizer.engine.id_to_token(number) or "?"
        written = found.text[starts[place] : starts[place + 1]].strip() or piece.removesuffix(WORD_END)
        if is_new:
            words.append(written)
        else:
            words[-1] += written
        is_new = piece.endswith(WORD_END)
        tokens.append(Token(slot=place + 1, id=number, piece=written, word=len(words) - 1))
    tokens.append(Token(slot=len(tokens), id=tokenizer.eos, piece=END, word=None))
    dropped = tokenizer.dropped(prompt, room=slots - 2)
    return Read(tokens=tuple(tokens), words=tuple(words), slots=slots, dropped=dropped)


def tokens_section(system: "System", request: Request) -> tuple[Section, Read]:
    """Section 1: the prompt as chips on the ruler of slots."""
    tokenizer, tower = system.tokenizers[0], system.text[0]
    begun = perf_counter()
    found = read(request.prompt, tokenizer, tower.config.positions)
    ms = round(1000 * (perf_counter() - begun), 2)
    used = len(found.tokens)
    chips = [
        {"slot": token.slot, "id": token.id, "piece": token.piece, "word": token.word, "weight": 1.0}
        for token in found.tokens
    ]
    blocks: list[Block] = [
        {"kind": "tokens", "chips": chips, "slots": found.slots, "used": used, "dropped": list(found.dropped)}
    ]
    if len(system.text) > 1:
        blocks.append(text(f"This model has {len(system.text)} text towers; each reads the same pieces."))
    if request.negative:
        other = read(request.negative, tokenizer, tower.config.positions)
        rows = [(token.slot, token.id, token.piece) for token in other.tokens]
        blocks.append(table(("slot", "id", "piece"), rows, "The negative prompt"))
    section = Section(
        id="tokens",
        title="Words become tokens",
        lead=f"A network reads numbers. The prompt is cut into pieces that stand in a list of "
        f"{tower.config.vocabulary:,}; each piece is replaced by its place in the list. There is room for "
        f"{found.slots}: an opening piece, {found.slots - 2} pieces of text, a closing one. {used} are used here, "
        "the rest is filled up.",
        formula=f"ids = [start, piece 1 … piece {used - 2}, end, padding …]   length {found.slots}",
        shapes=(f"text of {len(request.prompt)} characters", f"ids [1 {found.slots}] int64"),
        ms=ms,
        code=(code_of(Tokenizer.tokens, "encoding ="), code_of(Tokenizer.frame, "fill =")),
        blocks=blocks,
    )
    return section, found


@torch.no_grad()
def numbers_section(system: "System", request: Request, found: Read, told: Conditioning) -> Section:
    """Section 2: the states of the text towers. Its time is that of all towers, for all that the picture was told."""
    begun = perf_counter()
    encoded(system, request)
    ms = round(1000 * (perf_counter() - begun), 1)
    context = told.context
    assert context is not None  # every model of the family is told text
    is_alone = len(system.text) == 1
    states = context[0].float().cpu()[: found.slots]  # [n d]
    rows = [token.piece for token in found.tokens] + ["·"] * (found.slots - len(found.tokens))
    shown = _binned(states)
    spread = SPREAD * float(shown.std())
    blocks = [strip(shown, rows, f"{found.slots} tokens, {states.shape[1]} numbers each", spread)]
    vectors = _word_vectors(states, found)
    if len(found.words) > 1:
        unit = F.normalize(vectors, dim=1)
        names = told_apart(found.words)
        alike = unit @ unit.T
        low = min(0.9, float(alike.min()))
        blocks.append(
            matrix(
                names,
                names,
                alike,
                "How alike the words have become (cosine: 1 is the same, 0 nothing in common)",
                low=low,
            )
        )
        changes = _without_each(system, request, found)
        if changes:
            items = [(word, change, f"{change:.3f}") for word, change in zip(names, changes, strict=False)]
            blocks.append(
                bars(
                    items,
                    "How much the whole prompt changes when one word is left out "
                    f"(1 - cosine{'' if is_alone else ' in the first tower'}: 0 is not at all)",
                )
            )
    shapes = [f"context {sizes(context)}"]
    vector = told.vector
    if vector is not None:
        shapes.append(f"vector {sizes(vector)}")
        what = "the pooled text and a sinusoid of every size" if request.reference is None else "the noisy embedding"
        width = vector.shape[1]
        row = _binned(vector.float().cpu())
        spread = SPREAD * float(row.std())
        blocks.append(strip(row.expand(6, -1), [""] * 6, f"The vector, {width} numbers: {what}", spread))
    towers = " and ".join(f"{tower.config.layers} layers of width {tower.config.width}" for tower in system.text)
    these = (
        f"A text tower ({towers}) lets" if is_alone else f"{len(system.text)} text towers ({towers}), side by side, let"
    )
    said = (
        "Besides, it is told one vector of everything that has no place in the picture." if vector is not None else ""
    )
    return Section(
        id="numbers",
        title="Tokens become numbers that know their neighbours",
        lead=f"Every token starts as a row of learnt numbers. {these} each token look at the ones "
        "before it, so that a word differs with what stands in front of it. These rows are all that the picture "
        f"network learns of the prompt. {said}".strip(),
        formula="state = token + place;   at each layer: state += attention(state) + perceptron(state)",
        shapes=shapes,
        ms=ms,
        code=(
            code_of(TextTower.forward, "states ="),
            code_of(Attention.forward, "k, v =") if is_alone else code_of(sized_vector),
        ),
        blocks=blocks,
    )


def _word_vectors(states: Float[Tensor, "n d"], found: Read) -> Float[Tensor, "words d"]:
    """The mean state of each word's tokens."""
    slots = [[t.slot for t in found.tokens if t.word == word] for word in range(len(found.words))]
    return torch.stack([states[chosen].mean(0) for chosen in slots]) if slots else states[:1]


def _without_each(system: "System", request: Request, found: Read) -> list[float]:
    """1 - cosine of the closing token's state, in the first tower, with and without each word."""
    ids = [token.id for token in found.tokens if token.word is not None]
    words = [token.word for token in found.tokens if token.word is not None]
    chunks = [ids] + [
        [number for number, word in zip(ids, words, strict=True) if word != left]
        for left in range(min(len(found.words), MOST_WORDS))
    ]
    tower, tokenizer, rule = system.text[0], system.tokenizers[0], system.rules[0]
    context = encode_chunks(chunks, tower, tokenizer, rule, clip_skip=request.clip_skip).context.float().cpu()
    ends = torch.stack([context[i, len(chunk) + 1] for i, chunk in enumerate(chunks)])
    alike = F.cosine_similarity(ends[1:], ends[:1])
    return [round(1 - float(value), 4) for value in alike]


def _binned(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d2"]:
    """Columns as they are or, of very wide rows, means of neighbours."""
    width = values.shape[1]
    return values if width <= MOST_COLUMNS else F.adaptive_avg_pool1d(values[None], MOST_COLUMNS)[0]


def told_apart(words: Sequence[str]) -> list[str]:
    """The words, with a number behind those that occur twice."""
    seen: dict[str, int] = {}
    named: list[str] = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        named.append(word if seen[word] == 1 else f"{word} ({seen[word]})")
    return named
