"""Compiled attention with its gradients against float64, and as near to it as torch's own in bfloat16."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.test_native import SHAPES, defined, drawn
from mezzotint.kernels import native
from mezzotint.kernels.gradients import attention, self_attention
from models.oracles import relative

MORE = {  # b, l, n, heads, d
    "level-3-text": (2, 16, 77, 2, 160),
    "two-blocks-of-keys": (1, 210, 150, 9, 48),
    "parted-keys": (1, 100, 530, 1, 16),
    "one-more": (1, 97, 129, 1, 8),
}
ALL = SHAPES | MORE

Three = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def pairs(compiled: None) -> None:
    """A processor whose instructions these are."""
    if "avx512_bf16" not in native.instructions():
        pytest.skip("no AVX512-BF16: the compiled gradient of attention is not tested, its fallback is")


def grads(inputs: Sequence[Tensor], output: Tensor, above: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, list(inputs), above.to(output.dtype))


def leaves(parts: Sequence[Tensor], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """The same values, with the strides that they had, asking for gradients."""
    return [part.detach().to(dtype).requires_grad_() for part in parts]


def exact(parts: Sequence[Tensor], above: Tensor) -> tuple[Tensor, ...]:
    """The gradients of the definition in float64."""
    own = leaves(parts, torch.float64)
    return grads(own, defined(own[0], own[1], own[2], parts[0].shape[-1] ** -0.5), above)


def ours(parts: Sequence[Tensor], above: Tensor) -> tuple[Tensor, ...]:
    own = leaves(parts)
    return grads(own, attention(own[0], own[1], own[2]), above)


def torchs(parts: Sequence[Tensor], above: Tensor) -> tuple[Tensor, ...]:
    own = leaves(parts)
    q, k, v = (part.transpose(1, 2) for part in own)
    return grads(own, F.scaled_dot_product_attention(q, k, v).transpose(1, 2), above)


def above_of(parts: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    return torch.randn(parts[0].shape, generator=generator).bfloat16()


def is_near(found: Sequence[Tensor], others: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether what was found is about as near to what is expected as others are."""
    return all(
        distance(a, c) <= 1.2 * distance(b, c) + 5e-4 * length(c)
        for a, b, c in zip(found, others, expected, strict=True)
    )


def length(x: Tensor) -> float:
    return math.sqrt(float(x.double().square().sum()))


def distance(a: Tensor, b: Tensor) -> float:
    return length(a.double() - b)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("name", ALL)
def test_gradients_are_as_near_to_float64_as_torchs(name: str, generator: torch.Generator) -> None:
    parts = drawn(ALL[name], generator)
    above = above_of(parts, generator)
    expected = exact(parts, above)
    assert is_near(ours(parts, above), torchs(parts, above), expected)
    forgotten = without_mean(parts, above)
    assert ALL[name][2] == 1 or not is_near(forgotten, torchs(parts, above), expected)


def without_mean(parts: Sequence[Tensor], above: Tensor) -> Three:
    """As if a softmax's sum did not depend on its scores."""
    q, k, v, g = (part.double().transpose(1, 2) for part in (*parts, above))
    scale = q.shape[-1] ** -0.5
    p = (q @ k.transpose(-1, -2) * scale).softmax(-1)
    ds = p * (g @ v.transpose(-1, -2)) * scale
    dq, dk, dv = (part.transpose(1, 2) for part in (ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ g))
    return dq, dk, dv


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("size", [4, 30])
def test_gradients_of_large_scores(size: float, generator: torch.Generator) -> None:
    """Scores of thousands: nearly all of a softmax is one key, which may be any."""
    q, k, v = drawn((1, 70, 300, 2, 40), generator)
    parts = [q * size, k * size, v]
    above = above_of(parts, generator)
    found = ours(parts, above)
    assert all(bool(part.isfinite().all()) for part in found)
    assert is_near(found, torchs(parts, above), exact(parts, above))


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("name", ALL)
def test_forward_says_the_logarithm_of_its_sums(name: str, generator: torch.Generator) -> None:
    q, k, v = drawn(ALL[name], generator, size=3)
    scale = q.shape[-1] ** -0.5
    output, log_sum = torch.ops.mezzotint.attention_forward(q, k, v, scale)
    scores = torch.einsum("blhd,bnhd->bhln", q.double(), k.double()) * scale
    torch.testing.assert_close(log_sum.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-4)  # measured: 8e-5
    assert torch.equal(output, torch.ops.mezzotint.attention_by(q, k, v, scale, False))


@pytest.mark.usefixtures("pairs")
def test_uphill_is_as_steep_as_the_gradient_says(generator: torch.Generator) -> None:
    """The change of the definition along the gradient, by differences, is the gradient's length."""
    parts = drawn((2, 50, 77, 2, 40), generator)
    above = above_of(parts, generator)
    found = [part.double() for part in ours(parts, above)]
    steepness = math.hypot(*map(length, found))

    def value(step: float) -> float:
        q, k, v = (part.double() + step * slope / steepness for part, slope in zip(parts, found, strict=True))
        return float((defined(q, k, v, 40**-0.5) * above).sum())

    assert (value(1e-4) - value(-1e-4)) / 2e-4 == pytest.approx(steepness, rel=1e-4)


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("heads", [1, 3, 8])  # parted by keys into 4, 2 and 1
def test_bits_depend_neither_on_threads_nor_on_neighbours(heads: int, generator: torch.Generator) -> None:
    parts = drawn((3, 130, 500, heads, 24), generator)
    above = above_of(parts, generator)
    found: list[tuple[Tensor, ...]] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(ours(parts, above))
    finally:
        torch.set_num_threads(1)
    alone = ours([part[1:2] for part in parts], above[1:2])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert all(torch.equal(one[1:2], own) for one, own in zip(found[0], alone, strict=True))


@pytest.mark.usefixtures("pairs")
def test_a_fused_product_has_one_gradient(generator: torch.Generator) -> None:
    fused = torch.randn(2, 70, 3, 2, 40, generator=generator).bfloat16()
    above = torch.randn(2, 2, 70, 40, generator=generator).bfloat16().transpose(1, 2)
    (own,) = leaves([fused])
    (found,) = grads([own], self_attention(own), above)
    assert found.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(found.unbind(2), ours(fused.unbind(2), above), strict=True))


@pytest.mark.usefixtures("pairs")
def test_nobody_who_asks_changes_nothing(generator: torch.Generator) -> None:
    q, k, v = drawn((1, 0, 9, 1, 8), generator)
    dq, dk, dv = ours((q, k, v), q)
    assert dq.numel() == 0
    assert not dk.any()
    assert not dv.any()


@pytest.mark.usefixtures("pairs")
def test_results_of_another_shape_are_refused(generator: torch.Generator) -> None:
    q, k, v = drawn((1, 20, 30, 1, 8), generator)
    o, log_sum = torch.ops.mezzotint.attention_forward(q, k, v, 1.0)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    with pytest.raises(RuntimeError, match=r"attention_backward: g \[1, 20, 1, 8\].* of q \[1, 10, 1, 8\]"):
        torch.ops.mezzotint.attention_backward(o, q[:, :10], k, v, o, log_sum, 1.0, q[:, :10].clone(), dk, dv)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("change", ["float32", "width", "causal", "torch"])
def test_what_is_not_compiled_is_torchs(
    change: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = torch.randn(1, 30, 3, 2, 12 if change == "width" else 8, generator=generator)
    (own,) = leaves([fused], torch.float32 if change == "float32" else torch.bfloat16)
    if change == "torch":
        monkeypatch.setattr(native, "instructions", frozenset)
    is_causal = change == "causal"
    above = torch.randn(1, 30, 2, own.shape[-1], generator=generator)
    q, k, v = own.permute(2, 0, 3, 1, 4).unbind()
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)
    found = self_attention(own, is_causal=is_causal)
    assert torch.equal(found, expected)
    assert torch.equal(*grads([own], found, above), *grads([own], expected, above))
    assert relative(found, attention(*own.unbind(2), is_causal=is_causal)) == 0
