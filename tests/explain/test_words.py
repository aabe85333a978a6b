"""Prompts as tokens and words."""

import torch

from mezzotint.explain.words import END, START, read, told_apart
from mezzotint.prompts.tokenizer import bundled


def test_pieces_of_one_word_belong_together() -> None:
    found = read("a photograph of an axolotl, mezzotint", bundled(), 77)
    assert found.words == ("a", "photograph", "of", "an", "axolotl", ",", "mezzotint")
    pieces = [token.piece for token in found.tokens if token.word == 6]
    assert len(pieces) > 1
    assert "".join(pieces) == "mezzotint"
    assert [token.slot for token in found.tokens] == list(range(len(found.tokens)))


def test_every_slot_is_in_one_group_and_padding_in_the_last() -> None:
    found = read("a red fox", bundled(), 77)
    groups = found.groups
    assert groups.names == (START, "a", "red", "fox", END)
    assert groups.of_token == (0, 1, 2, 3, *([4] * 73))
    assert torch.equal(groups.matrix(77).sum(1), torch.ones(77))
    assert torch.equal(groups.matrix(80)[79], torch.tensor([0.0, 0, 0, 0, 1]))  # tokens of further chunks


def test_what_does_not_fit_is_named() -> None:
    found = read("word " * 80, bundled(), 77)
    assert len(found.words) == 75
    assert found.dropped == ("word",) * 5


def test_words_that_occur_twice_are_told_apart() -> None:
    assert told_apart(["a", "cat", "a", "a"]) == ["a", "cat", "a (2)", "a (3)"]
