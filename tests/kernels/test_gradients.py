"""Compiled operations and their gradients against definitions in float64, where their shortcuts could show."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.gradients import convolution, doubled_convolution, geglu, group_norm, interleaved, pointwise
from mezzotint.kernels.packed import phases
from models.oracles import relative

pytestmark = pytest.mark.usefixtures("compiled")

FLOAT32 = 2e-6  # measured: below 4e-7
BFLOAT16 = 5e-3  # measured: below 2.5e-3; rounding a result costs 1.7e-3

MAPS = {  # b, c, h, w, groups
    "groups-of-10": (2, 40, 5, 7, 4),
    "three-chunks": (1, 16, 50, 45, 2),
    "one-position": (3, 24, 1, 1, 4),
    "tail": (1, 9, 3, 3, 3),
}


def grads(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], above: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """What the function makes of copies of the inputs, and the gradient of each."""
    own = [x.detach().to(dtype).requires_grad_() for x in inputs]
    y = function(*own)
    return (y.detach(), *torch.autograd.grad(y, own, above.to(y.dtype)))


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def normed(groups: int, *, is_silu: bool, compiled: bool) -> Callable[..., Tensor]:
    """GroupNorm of x, weight, bias and perhaps a shift: compiled, or written out."""

    def function(x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None = None) -> Tensor:
        if compiled:
            norm = nn.GroupNorm(groups, x.shape[1])
            del norm.weight, norm.bias
            norm.weight, norm.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]  # no parameters here
            return group_norm(channels_last(x), norm, is_silu=is_silu, shift=shift)
        h = x if shift is None else x + shift[:, :, None, None]
        h = F.group_norm(h, groups, weight, bias, 1e-5)
        return F.silu(h) if is_silu else h

    return function


def norm_inputs(name: str, generator: torch.Generator, *, mean: float, is_shifted: bool) -> tuple[list[Tensor], Tensor]:
    b, c, h, w, _ = MAPS[name]
    inputs = [torch.randn(b, c, h, w, generator=generator) + mean]
    inputs += [torch.randn(c, generator=generator) for _ in range(2)]
    inputs += [torch.randn(b, c, generator=generator)] if is_shifted else []
    return inputs, torch.randn(b, c, h, w, generator=generator)


@pytest.mark.parametrize("is_shifted", [False, True])
@pytest.mark.parametrize("is_silu", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_group_norm_and_its_gradients(name: str, is_silu: bool, is_shifted: bool, generator: torch.Generator) -> None:
    inputs, above = norm_inputs(name, generator, mean=0.5, is_shifted=is_shifted)
    groups = MAPS[name][-1]
    for dtype, limit in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):
        rounded = [x.to(dtype) for x in inputs]
        actual = grads(normed(groups, is_silu=is_silu, compiled=True), rounded, above.to(dtype), dtype)
        expected = grads(normed(groups, is_silu=is_silu, compiled=False), rounded, above.to(dtype), torch.float64)
        for place, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert a.dtype == dtype
            if float(b.abs().max()) > 1e-9:  # a group of one position and channel has no gradient
                assert relative(a, b) < limit, (dtype, place)


def test_a_mean_of_many_deviations_costs_no_digits(generator: torch.Generator) -> None:
    inputs, above = norm_inputs("groups-of-10", generator, mean=300, is_shifted=True)
    actual = grads(normed(4, is_silu=True, compiled=True), inputs, above, torch.float32)
    expected = grads(normed(4, is_silu=True, compiled=False), inputs, above, torch.float64)
    assert max(relative(a, b) for a, b in zip(actual, expected, strict=True)) < 3e-5  # x itself has 300 * 6e-8 left


def test_a_gradient_that_takes_the_statistics_for_constants_is_caught(generator: torch.Generator) -> None:
    inputs, above = norm_inputs("groups-of-10", generator, mean=0.5, is_shifted=False)
    x, weight = (value.double() for value in inputs[:2])
    _, right, *_ = grads(normed(4, is_silu=False, compiled=False), inputs, above, torch.float64)
    grouped = x.view(2, 4, -1)
    scale = 1 / (grouped.var(-1, correction=0) + 1e-5).sqrt()
    wrong = above * weight[:, None, None] * scale.repeat_interleave(10, 1)[:, :, None, None]
    assert relative(wrong, right) > 100 * FLOAT32


def test_threads_change_no_bit(generator: torch.Generator) -> None:
    inputs, above = norm_inputs("three-chunks", generator, mean=0, is_shifted=True)
    gate = torch.randn(300, 32, generator=generator)
    found: list[list[Tensor]] = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            norms = grads(normed(2, is_silu=True, compiled=True), inputs, above, torch.bfloat16)
            found.append([*norms, *grads(geglu, [gate], gate[:, :16], torch.bfloat16)])
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def gated(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


@pytest.mark.parametrize("shape", [(3, 5, 14), (40, 96), (0, 8)])
def test_geglu_and_its_gradient(shape: tuple[int, ...], generator: torch.Generator) -> None:
    x, above = (
        torch.randn(shape, generator=generator) * 3,
        torch.randn(*shape[:-1], shape[-1] // 2, generator=generator),
    )
    for dtype, limit in ((torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)):
        actual = grads(geglu, [x.to(dtype)], above.to(dtype), dtype)
        expected = grads(gated, [x.to(dtype)], above.to(dtype), torch.float64)
        assert all(relative(a, b) < limit for a, b in zip(actual, expected, strict=True) if a.numel())


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (1, 1), (9, 7)])
def test_convolutions_of_small_and_large_maps(size: tuple[int, int], generator: torch.Generator) -> None:
    module = nn.Conv2d(6, 10, 3, padding=1)
    x, above = torch.randn(2, 6, *size, generator=generator), torch.randn(2, 10, *size, generator=generator)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        del module.weight, module.bias
        module.weight, module.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]  # no parameters here
        return convolution(channels_last(x), module)

    inputs = [x, module.weight.detach(), torch.randn(10, generator=generator)]
    actual = grads(ours, inputs, above, torch.float32)
    expected = grads(lambda *given: F.conv2d(*given, padding=1), inputs, above, torch.float64)
    assert max(relative(a, b) for a, b in zip(actual, expected, strict=True)) < FLOAT32


def by_tiles(x: Tensor, weight: Tensor, bias: Tensor, *, is_doubled: bool) -> Tensor:
    """The convolution of a module that has these weights."""
    module = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1).to(x.dtype)
    del module.weight, module.bias
    module.weight, module.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]  # no parameters here
    return (doubled_convolution if is_doubled else convolution)(channels_last(x), module)


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, *, is_doubled: bool) -> Tensor:
    return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3) if is_doubled else x, weight, bias, padding=1)


@pytest.mark.parametrize("is_doubled", [False, True])
@pytest.mark.parametrize("is_wrong", [False, True])
@pytest.mark.parametrize("shape", [(3, 48, 32, 9, 12), (70, 32, 48, 4, 4)], ids=str)
def test_a_convolution_of_few_products_and_its_gradients(
    shape: tuple[int, ...],
    is_wrong: bool,
    is_doubled: bool,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wrong: gradients by the taps as they stand, which is a convolution too, and of taps in the other order."""
    if "avx512_bf16" not in native.instructions():
        pytest.skip("no AVX512-BF16: the compiled convolution is not tested, its fallback is")
    if is_wrong:
        made = native.convolution_weights

        def unturned(weight: Tensor, *, is_turned: bool = False, is_doubled: bool = False) -> Tensor:
            return made(weight.flip(2, 3) if is_turned else weight, is_turned=is_turned, is_doubled=is_doubled)

        gradient = native.convolution_gradient
        monkeypatch.setattr(native, "convolution_weights", unturned)
        monkeypatch.setattr(native, "convolution_gradient", lambda g, x: gradient(g, x).flip(2, 3))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]  # tensors
    b, c, o, h, w = shape
    factor = 2 if is_doubled else 1
    x, above = (
        torch.randn(b, c, h, w, generator=generator),
        torch.randn(b, o, factor * h, factor * w, generator=generator),
    )
    weight = torch.randn(o, c, 3, 3, generator=generator) * (9 * c) ** -0.5
    inputs = [x, weight, torch.randn(o, generator=generator)]
    inputs, above = [part.bfloat16() for part in inputs], above.bfloat16()
    found = grads(partial(by_tiles, is_doubled=is_doubled), inputs, above, torch.bfloat16)
    exact = grads(partial(by_definition, is_doubled=is_doubled), inputs, above, torch.float64)
    errors = [relative(a.double(), b) for a, b in zip(found, exact, strict=True)]
    assert all((error > 1 if is_wrong and place in {1, 2} else error < BFLOAT16) for place, error in enumerate(errors))


@pytest.mark.parametrize("is_doubled", [False, True])
def test_threads_change_no_bit_of_a_convolutions_gradients(is_doubled: bool, generator: torch.Generator) -> None:
    if "avx512_bf16" not in native.instructions():
        pytest.skip("no AVX512-BF16: the compiled convolution is not tested, its fallback is")
    shapes = ((9, 32, 11, 9), (48, 32, 3, 3), (48,), (9, 48, 22, 18) if is_doubled else (9, 48, 11, 9))
    *inputs, above = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    threads = torch.get_num_threads()
    found: list[tuple[Tensor, ...]] = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            found.append(grads(partial(by_tiles, is_doubled=is_doubled), inputs, above, torch.bfloat16))
        finally:
            torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_pointwise_convolution_is_a_product(generator: torch.Generator) -> None:
    module = nn.Conv2d(6, 10, 1)
    x = channels_last(torch.randn(2, 6, 3, 5, generator=generator))
    torch.testing.assert_close(pointwise(x, module), module(x))


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)


def in_phases(x: Tensor, weight: Tensor, bias: Tensor, order: Sequence[int] = (0, 1, 2, 3)) -> Tensor:
    module = nn.Conv2d(1, 1, 3)
    del module.weight, module.bias
    module.weight, module.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]  # no parameters here
    weights, biases = phases(module)
    swapped = torch.cat([weights.chunk(4)[place] for place in order])
    return interleaved(F.conv2d(channels_last(x), swapped, biases, padding=1))


def test_an_upsampling_in_phases_and_its_gradients(generator: torch.Generator) -> None:
    shapes = ((2, 6, 3, 5), (10, 6, 3, 3), (10,), (2, 10, 6, 10))
    *inputs, above = (torch.randn(shape, generator=generator) for shape in shapes)
    actual = grads(in_phases, inputs, above, torch.float32)
    expected = grads(doubled, inputs, above, torch.float64)
    assert max(relative(a, b) for a, b in zip(actual, expected, strict=True)) < FLOAT32
    mixed = in_phases(*inputs, order=(0, 2, 1, 3))
    assert relative(mixed, expected[0]) > 0.1
