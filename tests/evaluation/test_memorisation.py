"""Copies are found, what is merely near is not, and a picture that is twice in the training set hides nothing."""

import pytest
import torch
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.memorisation import copies


def drawn(n: int, seed: int) -> Tensor:
    return torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))


def test_planted_copies_are_counted() -> None:
    """30 of 200 pictures are training pictures with a little noise; independent ones are about as far from two."""
    training, made = drawn(500, 0), drawn(200, 1)
    made[::7] = training[100:129] + 0.1 * drawn(29, 2)
    found = copies(made, training)
    assert found.is_copy.nonzero()[:, 0].equal(torch.arange(0, 200, 7))
    assert (found.rate.hits, found.rate.of, found.duplicates) == (29, 200, 0)
    assert found.place[::7].equal(torch.arange(100, 129))
    exact = (made[::7] - training[100:129]).double().square().sum(1).sqrt()
    torch.testing.assert_close(found.distance[::7], exact, rtol=1e-6, atol=0)
    assert copies(drawn(200, 3), training).rate.hits == 0


def test_the_threshold_is_a_third_of_the_second_distance() -> None:
    training = torch.tensor([[0.0, 0.0], [4.0, 0.0], [100.0, 0.0]])
    made = torch.tensor([[0.99, 0.0], [1.0, 0.0], [1.01, 0.0], [0.0, 0.0]])
    found = copies(made, training)
    assert found.ratio[1] == pytest.approx(1 / 3, rel=1e-12)
    assert found.is_copy[[0, 2, 3]].equal(torch.tensor([True, False, True]))
    assert copies(made, training, threshold=0.5).rate.hits == 4


def test_a_picture_that_is_twice_in_the_set_hides_no_copy() -> None:
    """By the bare rule its two twins are equally near, so that the copy is called none."""
    training = torch.cat([drawn(100, 0), drawn(100, 0)[:10]])
    made = training[:5] + 0.01 * drawn(5, 1)
    found = copies(made, training)
    assert (found.rate.hits, found.duplicates) == (5, 10)
    assert found.place.equal(torch.arange(5))  # places of the set as it was given, the earlier twin
    two = torch.cdist(made.double(), training.double()).sort(dim=1).values
    assert not bool((two[:, 0] / two[:, 1] < 1 / 3).any())


def test_a_set_without_a_second_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer than two different training pictures"):
        copies(drawn(3, 0), drawn(1, 1).repeat(4, 1))
    with pytest.raises(ConfigError, match="made features are not all finite"):
        copies(drawn(3, 0) * torch.nan, drawn(9, 1))
