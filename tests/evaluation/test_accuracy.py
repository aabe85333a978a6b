"""Accuracy and retrieval on features whose confusions are known, and on a CLIP of random weights."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.accuracy import (
    Accuracy,
    Judge,
    Pair,
    accuracy,
    baselines,
    judge_of,
    picture_features,
    retrieval,
    table,
    text_features,
)
from mezzotint.evaluation.estimate import Share, share
from mezzotint.models.clip import CLIP, ImageConfig, TextConfig, initialise
from mezzotint.prompts.tokenizer import bundled

CONCEPTS, STYLES = ("cat", "dog", "sun", "car", "key", "hat", "bus"), ("flat", "3d", "bw")
PAIRS = [Pair(concept, style) for concept in CONCEPTS for style in STYLES]
AXES = torch.eye(len(CONCEPTS) + len(STYLES), dtype=torch.float64)


def shown(pair: Pair) -> Tensor:
    """What a picture of the pair looks like: an axis for each of its two sides."""
    return AXES[CONCEPTS.index(pair.concept)] + AXES[len(CONCEPTS) + STYLES.index(pair.style)]


def features(pairs: list[Pair]) -> Tensor:
    return torch.stack([shown(pair) for pair in pairs])


JUDGE = Judge(CONCEPTS, STYLES, F.normalize(features(PAIRS), dim=-1).view(len(CONCEPTS), len(STYLES), -1))


def values(found: Accuracy) -> tuple[float, float, float, float]:
    return found.concept.value, found.concept_in_5.value, found.style.value, found.both.value


def test_right_pictures_are_right() -> None:
    assert values(accuracy(JUDGE, features(PAIRS), PAIRS)) == (1, 1, 1, 1)


def test_known_confusions_are_counted() -> None:
    """3 of 21 pictures in a wrong style, 6 others of a wrong concept, 1 more of both; their length does not matter."""
    made = list(PAIRS)
    for i in (0, 3, 6):
        made[i] = Pair(PAIRS[i].concept, "3d")
    for i in (1, 4, 7, 10, 13, 16):
        made[i] = Pair(PAIRS[(i + 3) % 21].concept, PAIRS[i].style)
    made[20] = Pair("cat", "flat")
    found = accuracy(JUDGE, features(made) * torch.linspace(0.1, 9, 21)[:, None], PAIRS)
    assert (found.concept.hits, found.style.hits, found.both.hits) == (14, 17, 11)
    assert found.concept.of == 21


def test_second_choice_counts_within_five_tries() -> None:
    """A cat that looks more like 1, 4 or 5 other things is within five tries for the first two."""
    pairs = [Pair("cat", "bw")] * 3
    made = features(pairs)
    for row, others in enumerate((1, 4, 5)):
        made[row, 1 : 1 + others] = 2
    found = accuracy(JUDGE, made, pairs)
    assert (found.concept.hits, found.concept_in_5.hits, found.style.hits) == (0, 2, 3)


def test_features_that_say_nothing_score_nothing() -> None:
    """A judge that counts only what scores strictly higher as wrong would call every one of these right."""
    same = torch.ones(len(PAIRS), AXES.shape[0], dtype=torch.float64)
    assert values(accuracy(JUDGE, same, PAIRS)) == (0, 0, 0, 0)
    said = [f"{pair}" for pair in PAIRS]
    found = retrieval(same, same, said)
    assert found.picture_in_5.hits == found.text_in_5.hits == 0
    scores = same @ same.T
    assert bool(((scores > scores.diagonal()[:, None]).sum(1) == 0).all())  # the mistake that this is about


def test_table_of_a_copier_and_of_real_pictures() -> None:
    """The ceiling is full; another style is never both; a random picture of the style is right by chance of the set."""
    known = [pair for pair in PAIRS if pair not in PAIRS[::7]]
    wanted = PAIRS[::7] * 200
    made = [Pair(pair.concept, "flat") for pair in wanted]
    found = table(JUDGE, wanted, features(made), features(wanted), known, features(known), seed=3)
    assert values(found.ceiling) == (1, 1, 1, 1)
    assert values(found.other_style) == (1, 1, 0, 0)
    assert found.same_style.style.value == 1
    assert found.same_style.both.value == found.same_style.concept.value == 0  # the very pair is not among the known
    assert values(found.made) == (1, 1, 1 / 3, 1 / 3)


def test_baselines_are_what_they_are_called() -> None:
    other_style, same_style = baselines(PAIRS, PAIRS * 30, seed=1)
    drawn = [(PAIRS[i], PAIRS[j]) for i, j in zip(other_style, same_style, strict=True)]
    assert all(
        one.concept == pair.concept and one.style != pair.style and other.style == pair.style
        for (one, other), pair in zip(drawn, PAIRS * 30, strict=True)
    )
    assert len({one for one, _ in drawn}) == len({other for _, other in drawn}) == len(PAIRS)
    assert baselines(PAIRS, PAIRS, seed=1) == baselines(PAIRS, PAIRS, seed=1) != baselines(PAIRS, PAIRS, seed=2)


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown concept 'catt'; did you mean 'cat'"):
        accuracy(JUDGE, features(PAIRS[:1]), [Pair("catt", "flat")])
    with pytest.raises(ConfigError, match="unknown style 'oil'"):
        accuracy(JUDGE, features(PAIRS[:1]), [Pair("cat", "oil")])
    with pytest.raises(ConfigError, match="no known picture of 'cat' in another style"):
        baselines([Pair("cat", "bw"), Pair("dog", "3d")], [Pair("cat", "bw")], seed=0)
    with pytest.raises(ConfigError, match="no known picture of style 'bw'"):
        baselines([Pair("cat", "flat"), Pair("dog", "3d")], [Pair("cat", "bw")], seed=0)


def test_retrieval_counts_known_hits() -> None:
    """Twelve pairs; texts 0 … 2 point at the next picture, so that the pictures 1 … 3 hear two voices."""
    texts = torch.eye(12, dtype=torch.float64)
    pictures = texts.clone()
    for i in range(3):
        texts[i, i + 1] = 2
    found = retrieval(pictures, texts, [str(i) for i in range(12)])
    assert (found.picture.hits, found.picture_in_5.hits) == (9, 12)
    # text i points at i + 1 with 2/sqrt(5) = 0.894; the own text of picture 3 with 1, those of 1 and 2 with 0.447
    assert (found.text.hits, found.text_in_5.hits) == (10, 12)


def test_directions_of_retrieval_are_not_the_same_thing() -> None:
    """One picture that every text likes best costs all texts but one their picture, and no picture its text."""
    texts = torch.eye(8, dtype=torch.float64) + 0.1
    pictures = torch.eye(8, dtype=torch.float64)
    scores = retrieval(pictures, texts, [str(i) for i in range(8)])
    assert scores.picture.hits == scores.text.hits == 8
    pictures[:, 0] += 3 * torch.tensor([1.0] + [0.0] * 7)
    texts[:, 0] += 5
    found = retrieval(pictures, texts, [str(i) for i in range(8)])
    assert (found.picture.hits, found.text.hits) == (1, 8)


def test_equal_texts_are_no_wrong_answers() -> None:
    texts = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    pictures = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    assert retrieval(pictures, texts, ["a sun", "a sun", "a key"]).picture.hits == 3
    told_apart = retrieval(pictures, texts, ["a sun", "another sun", "a key"])
    assert (told_apart.picture.hits, told_apart.text.hits) == (2, 1)


def small_clip() -> CLIP:
    tower: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "mlp": 32, "activation": "gelu", "projection": 8}
    clip = CLIP(TextConfig(**tower), ImageConfig(**tower, patch=8, size=16))
    initialise(clip, torch.Generator().manual_seed(0))
    return clip.requires_grad_(False)


def test_features_are_unit_and_each_picture_its_own() -> None:
    clip = small_clip()
    pixels = torch.randint(256, (70, 3, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = picture_features(clip, pixels)
    torch.testing.assert_close(found.square().sum(-1), torch.ones(70))
    torch.testing.assert_close(found[66:67], picture_features(clip, pixels[66:67]))
    with pytest.raises(ConfigError, match="pictures of 24 x 16 pixels → 16 x 16 expected"):
        picture_features(clip, torch.zeros(1, 3, 16, 24, dtype=torch.uint8))


def test_judge_reads_every_concept_in_every_style() -> None:
    clip, tokenizer = small_clip(), bundled()
    judge = judge_of(clip, tokenizer, CONCEPTS, {"flat": "flat emoji", "bw": "bold line icon"})
    assert judge.styles == ("flat", "bw")
    alone = text_features(clip, tokenizer, ["sun, bold line icon"])[0]
    torch.testing.assert_close(judge.grid[CONCEPTS.index("sun"), 1], alone)
    # seen by its own captions, each is found: the grid is in the order of its names
    wanted = [Pair(concept, style) for concept in CONCEPTS for style in judge.styles]
    assert accuracy(judge, judge.grid.flatten(0, 1), wanted).both == share(14, 14)


def test_chance_is_chance() -> None:
    """Random features: one concept in seven, one style in three, within four standard errors."""
    noise = torch.randn(2100, AXES.shape[0], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = accuracy(JUDGE, noise, PAIRS * 100)
    for part, chance in ((found.concept, 1 / 7), (found.style, 1 / 3), (found.both, 1 / 21)):
        assert isinstance(part, Share)
        assert abs(part.value - chance) < 4 * math.sqrt(chance * (1 - chance) / 2100)
