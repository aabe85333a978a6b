"""What a U-Net in training is told besides x and t: text of one or several towers, sizes, a noisy picture embedding.

Everything frozen is computed once and cached. What is dropped, so that guidance can work, becomes the null that the
recipe names: the empty text, or zeros; of several towers together, or each by its own draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from mezzotint.data.buckets import Placement
from mezzotint.data.cache import cached, digest_of
from mezzotint.data.filters import COLUMNS
from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet
from mezzotint.data.sample import Picture
from mezzotint.errors import ConfigError
from mezzotint.models.clip import ImageTower
from mezzotint.models.unet import SIZE_WIDTH, sized_vector
from mezzotint.pipeline.unclip import Statistics, clip_pixels, noised_vector
from mezzotint.prompts.encode import TowerRule, encode_chunks
from mezzotint.training.inherited import Reader
from mezzotint.training.part import Batch

CHUNK = 64  # pictures or texts at once without gradients
NOISE_LEVELS = 1000  # of unCLIP's picture embeddings
REFINER_SIZES = 5
NEUTRAL_SCORE = 6.0  # aesthetic score that the refiner is told of pictures without one


class Text(NamedTuple):
    """What the towers say of b texts: token states side by side, and the last pooled text."""

    context: Float[Tensor, "b n d"]
    pooled: Float[Tensor, "b p"] | None


@dataclass(frozen=True, slots=True)
class Texts:
    """Every text of a run as each tower encodes it; row 0 is the empty text, the last row zeros."""

    row: Mapping[str, int]
    context: tuple[Float[Tensor, "texts n d"], ...]
    pooled: Float[Tensor, "texts p"] | None

    def told(self, rows: Sequence[Sequence[int]], dtype: torch.dtype) -> Text:
        """The texts at `rows`, a list for each tower. The pooled text is the last tower's."""
        states = [states[list(chosen)] for states, chosen in zip(self.context, rows, strict=True)]
        pooled = None if self.pooled is None else self.pooled[list(rows[-1])].to(dtype)
        return Text(torch.cat(states, dim=-1).to(dtype), pooled)

    @property
    def zeros(self) -> int:
        """The row of zeros."""
        return len(self.row)


def read_texts(readers: Sequence[Reader], rules: Sequence[TowerRule], said: Sequence[str], cache: Path) -> Texts:
    """All texts, in bfloat16.

    Raises: CheckpointError if a tower and its tokenizer do not belong together.
    """
    texts = ["", *sorted(set(said) - {""})]
    context: list[Tensor] = []
    pooled: list[Tensor] = []
    for reader, rule in zip(readers, rules, strict=True):
        tower = reader.tower

        def states(rows: range, reader: Reader = reader, rule: TowerRule = rule) -> Tensor:
            parts: list[Tensor] = []
            for start in range(rows.start, rows.stop, CHUNK):
                ids = [reader.tokenizer.encode(text) for text in texts[start : min(start + CHUNK, rows.stop)]]
                found = encode_chunks(ids, reader.tower, reader.tokenizer, rule)
                told = found.context.flatten(1)  # [k n*d]
                parts.append(told if found.pooled is None else torch.cat([told, found.pooled], dim=1))
            return torch.cat(parts).to(torch.bfloat16)

        depends_on = {
            "what": "texts", "version": 2, "texts": texts, "tower": digest_of(tower),
            "vocabulary": reader.tokenizer.engine.to_str(), "rule": str(rule),
        }  # fmt: skip
        with torch.no_grad():
            found = cached(cache, depends_on, len(texts), states)
        found = torch.cat([found, torch.zeros_like(found[:1])])
        width = tower.config.positions * tower.config.width
        context.append(found[:, :width].reshape(len(found), tower.config.positions, tower.config.width))
        if rule.pooled:
            pooled.append(found[:, width:])
    return Texts({text: row for row, text in enumerate(texts)}, tuple(context), pooled[-1] if pooled else None)


def drops(
    batch: Batch, seed: int, share: float, towers: int, together: Bool[Tensor, "b"], *, is_each: bool
) -> list[list[bool]]:
    """For each tower, whose text is dropped: `together` for all, or each tower by draws of its own."""
    rows = [[bool(dropped) for dropped in together]]
    for tower in range(1, towers):
        draws = [float(torch.rand((), generator=keyed(seed, "dropout", tower, p))) for p in batch.positions]
        rows.append([draw < share for draw in draws] if is_each else rows[0])
    return rows


def sizes_of(picture: Picture, views: Sequence[Placement], count: int) -> Float[Tensor, "views count"]:
    """What XL is told of each view: original size, crop, target size; the refiner an aesthetic score for the last."""
    rows = [view.refiner_ids(score_of(picture)) if count == REFINER_SIZES else view.ids for view in views]
    return torch.tensor(rows, dtype=torch.float32)


def score_of(picture: Picture) -> float:
    """The picture's aesthetic score, from a column of one of the usual names."""
    found = (value for name, value in picture.numbers.items() if name.lower() in COLUMNS["aesthetic"])
    return next(found, NEUTRAL_SCORE)


def neutral_sizes(size: int, count: int) -> Float[Tensor, "1 count"]:
    """Sizes of an uncropped square picture."""
    end = [NEUTRAL_SCORE] if count == REFINER_SIZES else [size, size]
    return torch.tensor([[size, size, 0, 0, *end]], dtype=torch.float32)


def size_count(vector: int, pooled: int) -> int:
    """How many sizes a vector of this width holds behind the pooled text.

    Raises: ConfigError if it does not hold any.
    """
    count, rest = divmod(vector - pooled, SIZE_WIDTH)
    if rest or count < 1:
        raise ConfigError(f"model.vector {vector}: expected pooled text {pooled} and {SIZE_WIDTH} for each size")
    return count


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of the training and of the held-out pictures, and the statistics in which noise is added to them."""

    train: Float[Tensor, "pictures p"]
    held: Float[Tensor, "held p"]
    statistics: Statistics

    def vectors(self, embedding: Float[Tensor, "b p"], batch: Batch, seed: int, drop: float) -> Float[Tensor, "b v"]:
        """unCLIP's vectors: noised to levels drawn evenly, some replaced by zeros, level included; v = 2 p.

        Source: Stability-AI/stablediffusion, `ImageEmbeddingConditionedLatentDiffusion`.
        """
        rows: list[Tensor] = []
        for one, position in zip(embedding, batch.positions, strict=True):
            generator = keyed(seed, "embedding", position)
            level = int(torch.randint(NOISE_LEVELS, (), generator=generator))
            noise = torch.randn(1, len(one), generator=generator)
            keep = float(torch.rand((), generator=generator)) >= drop
            rows.append(noised_vector(one[None], self.statistics, level, noise) * keep)
        return torch.cat(rows)


def read_embeddings(
    tower: ImageTower, known: Statistics | None, train: PictureSet, held: PictureSet, size: int, cache: Path
) -> Embedded:
    """What the image tower says of all pictures, cut to squares of `size`; statistics are measured if unknown."""

    def embeddings(pictures: PictureSet) -> Tensor:
        def rows_of(rows: range) -> Tensor:
            parts: list[Tensor] = []
            for sample in rows:
                square = Image.fromarray(pictures.pixels([sample], size)[0].permute(1, 2, 0).numpy())
                parts.append(tower(clip_pixels(square, tower.config.size)).embedding)
            return torch.cat(parts)

        said = {
            "what": "embeddings", "version": 1, "pictures": pictures.fingerprint(), "size": size,
            "tower": digest_of(tower),
        }  # fmt: skip
        with torch.no_grad():
            return cached(cache, said, len(pictures), rows_of)

    found = embeddings(train)
    measured = Statistics(found.mean(0, keepdim=True), found.std(0, keepdim=True).clamp(min=1e-6))
    return Embedded(found, embeddings(held), known or measured)


def fitting(rule: TowerRule, reader: Reader) -> TowerRule:
    """The rule for a tower of another depth than the published one: layers are counted from its own end."""
    depth = rule.depth
    return replace(rule, depth=None) if depth is not None and reader.tower.config.layers + 1 < depth else rule


def vector_of(
    pooled: Float[Tensor, "b p"] | None, sizes: Float[Tensor, "b k"] | None, picture: Float[Tensor, "b v"] | None
) -> Float[Tensor, "b v"] | None:
    """`Conditioning.vector`: pooled text and sizes, or the picture's, or none."""
    if pooled is not None and sizes is not None:
        return sized_vector(pooled, sizes)
    return picture
