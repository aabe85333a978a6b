"""Inception score: pictures that a classifier is sure about, of many classes. Knows no reference, so says no more.

Depends on the number of pictures in a split (small splits score lower) and, for pictures sorted by class, on their
order: they are shuffled first. It is Inception's only if the logits are.

Letters: n pictures, k classes.
Source: Salimans et al. 2016, arXiv:1606.03498, section 4; Barratt and Sharma 2018, arXiv:1801.01973 (what it misses).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, deviation, mean

SPLITS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class InceptionScore:
    """The mean of the splits' scores; papers print their deviation (n - 1 here) beside it."""

    score: Estimate
    deviation: float | None  # None for one split
    splits: int


def inception_score(logits: Float[Tensor, "n k"], *, splits: int = SPLITS, seed: int | None = 0) -> InceptionScore:
    """exp of the mean divergence of a picture's classes from those of its split; seed None keeps the order.

    Raises: ConfigError if there are fewer pictures than splits, or logits are not finite.
    """
    if logits.dim() != 2 or not 1 <= splits <= len(logits):
        raise ConfigError(f"inception score: {splits} splits of logits of shape {tuple(logits.shape)}")
    if not bool(logits.isfinite().all()):
        raise ConfigError("inception score: logits are not all finite; is a picture damaged?")
    order = torch.arange(len(logits))
    if seed is not None:
        order = torch.randperm(len(logits), generator=keyed(seed, "inception score"))
    logs = logits.double().log_softmax(1)
    scores = [_score(logs[rows]) for rows in order.tensor_split(splits)]
    apart = deviation(scores) if splits > 1 else None
    return InceptionScore(score=mean(scores, len(logits), "splits"), deviation=apart, splits=splits)


def _score(logs: Tensor) -> float:
    """exp E KL(p(y|x) || p(y)) of log-probabilities."""
    chances = logs.exp()
    # xlogy: a class that no picture has counts nothing
    common = torch.xlogy(chances.mean(0), chances.mean(0)).sum()
    return float(((chances * logs).sum(1).mean() - common).exp())
