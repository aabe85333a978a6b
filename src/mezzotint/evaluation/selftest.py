"""Whether the evaluator computes what it says on this machine: laws that need no data, in seconds.

Each check is a statement and the number that it was decided by. A machine on which one fails (a broken BLAS, too few
digits) gives numbers that nobody should print.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.errors import MezzotintError
from mezzotint.evaluation.clip_score import Texts, clip_score
from mezzotint.evaluation.features import extractor
from mezzotint.evaluation.fid import INCEPTION, frechet, frechet_of_features
from mezzotint.evaluation.kid import kid
from mezzotint.evaluation.protocols import INCEPTION as PROTOCOLS
from mezzotint.evaluation.resize import resize
from mezzotint.evaluation.statistics import Moments, Provenance, merge, statistics_of

WIDTH, COUNT = 24, 600
SIDES = ((0.6, 0.8, 0.0), (0.0, 1.0, 0.0), (0.8, 0.0, -0.6))  # texts whose cosines with the axes are 0.6, 1, -0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A statement, whether it holds here, and by which number that was decided."""

    says: str
    is_right: bool
    found: str


def selftest() -> tuple[Check, ...]:
    """Every check; those of networks only where their weights are."""
    checks: list[Check] = []
    for check in (
        _itself,
        _closed_form,
        _few,
        _order,
        _accumulators,
        _unbiased,
        _scalings,
        _kernels,
        _judge,
        _inception,
    ):
        found = check()
        checks += [found] if found else []
    return tuple(checks)


def _drawn(name: str, count: int = COUNT, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=keyed("selftest", name), dtype=torch.float64)


def _at_most(says: str, value: float, limit: float) -> Check:
    return Check(says=says, is_right=value <= limit, found=f"{value:.2e} ≤ {limit:.0e}")


def _itself() -> Check:
    moments = statistics_of(_drawn("x"), _whose()).moments()
    relative = abs(frechet(moments, moments).value) / float(moments.covariance.trace())
    return _at_most("the Frechet distance of a set to itself is 0", relative, 1e-9)


def _closed_form() -> Check:
    one = Moments(None, torch.zeros(WIDTH).double(), torch.eye(WIDTH).double())
    other = Moments(None, torch.full((WIDTH,), 0.5).double(), 4 * torch.eye(WIDTH).double())
    exact = WIDTH * (0.25 + 1)  # |m1 - m2|² + Tr (S1 + S2 - 2 (S1 S2)^½)
    return _at_most(
        "of two known normal distributions it is the closed form", abs(frechet(one, other).value / exact - 1), 1e-12
    )


def _few() -> Check:
    x, y = _drawn("few", 10), _drawn("others", 12)
    by_moments = frechet(statistics_of(x, _whose()).moments(), statistics_of(y, _whose()).moments()).value
    apart = abs(by_moments / frechet_of_features(x, y).value - 1)
    return _at_most("with fewer pictures than numbers in a feature, two ways agree", apart, 1e-7)


def _order() -> Check:
    whole = statistics_of(_drawn("x"), _whose(), size=50)
    halves = [
        type(whole)(provenance=whole.provenance, chunks=chunks) for chunks in (whole.chunks[6:], whole.chunks[:6])
    ]
    apart = (merge(halves).moments().covariance - whole.moments().covariance).abs().max()
    return _at_most("the order of merging changes nothing", float(apart), 0.0)


def _accumulators() -> Check:
    scaled = _drawn("x") * 1e-3 + 1
    exact = statistics_of(scaled, _whose()).moments().covariance
    rough = scaled.float()
    wrong = (rough.T @ rough).double() / COUNT - torch.outer(rough.mean(0), rough.mean(0)).double()
    apart = float((wrong - exact).abs().max() / exact.abs().max())
    return Check(
        says="sums in float32 would be wrong and are not what is used", is_right=apart > 1e-3, found=f"{apart:.2e}"
    )


def _unbiased() -> Check:
    values = [kid(_drawn(f"k{i}", 100), _drawn(f"l{i}", 100), subsets=2).distance.value for i in range(40)]
    mean = sum(values) / len(values)
    error = (sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    return _at_most(
        "the kernel distance of equal distributions is 0 on average (in standard errors)", abs(mean) / error, 4
    )


def _scalings() -> Check:
    pictures, texts = torch.eye(3).double(), torch.tensor(SIDES, dtype=torch.float64)
    prompts = ("a", "b", "c")
    found = clip_score(pictures, Texts(prompts, texts, ()), prompts)
    exact = ((0.6 + 1 - 0.6) / 3, 100 / 3, 2.5 * 1.6 / 3)
    values = (found.cosine.value, found.x100.value, found.weighted.value)
    apart = max(abs(a - b) for a, b in zip(values, exact, strict=True))
    return _at_most("CLIP score is w * max(cos, 0), before the mean", apart, 1e-12)


def _kernels() -> Check:
    plain = torch.full((1, 3, 37, 53), 200, dtype=torch.uint8)
    apart = max(float((resize(plain, 299, 299, rule.kernel) - 200).abs().max()) for rule in PROTOCOLS.values())
    return _at_most("a plain picture stays plain under every resize kernel", apart, 1e-3)


def _judge() -> Check:
    network = extractor("evaluator")
    pictures = [torch.randint(256, (3, 64, 64), generator=keyed("picture", i), dtype=torch.uint8) for i in range(5)]
    apart = float((network(pictures).features[3:] - network(pictures[3:]).features).abs().max())
    return _at_most("features do not depend on the other pictures of a batch", apart, 0.0)


def _inception() -> Check | None:
    try:
        network = extractor("inception")
    except MezzotintError:
        return None
    pictures = [torch.randint(256, (3, 96, 96), generator=keyed("picture", i), dtype=torch.uint8) for i in range(2)]
    apart = float((network(pictures).features[1:] - network(pictures[1:]).features).abs().max())
    return _at_most(f"{INCEPTION}: features do not depend on the other pictures of a batch", apart, 0.0)


def _whose() -> Provenance:
    return Provenance(extractor="selftest", extractor_sha256="0", protocol="none")
