"""Inception score in closed forms, and as a peer computes it."""

import math

import pytest
import torch

from evaluation.peers import CASES, GOLDEN, golden_features
from mezzotint.errors import ConfigError
from mezzotint.evaluation.inception_score import inception_score


def test_sure_and_even_is_the_number_of_classes_and_unsure_is_one() -> None:
    sure = 200 * torch.eye(7).repeat(10, 1)
    assert inception_score(sure, splits=1).score.value == pytest.approx(7, rel=1e-12)
    assert inception_score(torch.zeros(30, 7)).score.value == pytest.approx(1, rel=1e-12)
    assert inception_score(200 * torch.eye(7)[[2] * 30]).score.value == pytest.approx(1, rel=1e-12)


def test_two_pictures_of_two_classes() -> None:
    """p and 1 - p against halves: exp(log 2 - entropy of p)."""
    p = 0.9
    logits = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log()
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    found = inception_score(logits, splits=1)
    assert found.score.value == pytest.approx(math.exp(math.log(2) - entropy), rel=1e-12)
    assert (found.score.low, found.deviation) == (None, None)


@pytest.mark.parametrize("case", CASES)
def test_a_peer_agrees(case: str) -> None:
    """torch-fidelity's deviation is divided by n, ours by n - 1."""
    made, _ = golden_features(case)
    if len(made) % 10 == 0:  # elsewhere it cuts elsewhere
        found, theirs = inception_score(8 * made.double(), seed=None), GOLDEN[case]["inception score"]
        assert found.score.value == pytest.approx(theirs["mean"], rel=1e-9)
        assert found.deviation == pytest.approx(theirs["deviation"] * math.sqrt(10 / 9), rel=1e-9)


def test_sorted_pictures_are_shuffled() -> None:
    """Ten classes in order: each split would hold one class alone and score 1."""
    logits = 200 * torch.eye(10).repeat_interleave(100, 0)
    assert inception_score(logits, seed=None).score.value == pytest.approx(1, rel=1e-9)
    found = inception_score(logits)
    assert found.score.low is not None
    assert found.score.low > 9
    assert found == inception_score(logits)


def test_more_splits_than_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"inception score: 10 splits of logits of shape \(9, 3\)"):
        inception_score(torch.zeros(9, 3))
    with pytest.raises(ConfigError, match="logits are not all finite"):
        inception_score(torch.full((20, 3), torch.nan))
