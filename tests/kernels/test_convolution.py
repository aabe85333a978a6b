"""The compiled convolution against its definition, and the choice between it and oneDNN's."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.test_unet import asked, in_dtype
from kernels.test_unet import drawn as unet_drawn
from mezzotint.kernels import native
from mezzotint.kernels.choices import NATIVE, PACKED, from_record
from mezzotint.kernels.convolution import BandConvolution, WholeWinograd, Winograd, convolution_of
from mezzotint.kernels.execution import Execution
from mezzotint.kernels.map import Factors, Map, uninitialised
from mezzotint.kernels.workshop import Workshop
from models.oracles import relative
from models.test_unet import SD1

BFLOAT16 = 4e-3  # measured: below 2.9e-3; rounding the result alone costs 1.7e-3

pytestmark = pytest.mark.usefixtures("compiled")

SHAPES = {  # c, o, h, w
    "blocks": (32, 64, 20, 70),
    "odd": (16, 32, 9, 35),
    "one": (48, 32, 1, 1),
    "row": (64, 96, 2, 40),
}


def channels_last(x: Tensor) -> Tensor:
    return x.bfloat16().contiguous(memory_format=torch.channels_last)


def drawn(name: str, generator: torch.Generator) -> tuple[nn.Conv2d, Map, Factors]:
    c, o, h, w = SHAPES[name]
    module = nn.Conv2d(c, o, 3, padding=1).requires_grad_(False)
    module.weight.normal_(0, (9 * c) ** -0.5, generator=generator)
    module.bias.normal_(0, 1, generator=generator)  # pyright: ignore[reportOptionalMemberAccess]  # it has one
    x = torch.randn(1, c, h, w, generator=generator)
    scale, offset = torch.rand(1, c, generator=generator) + 0.5, torch.randn(1, c, generator=generator)
    return module.bfloat16(), Map(channels_last(x), NATIVE), Factors(scale, offset)


def defined(module: nn.Conv2d, x: Map, factors: Factors | None, *, is_doubled: bool) -> Tensor:
    """In float64."""
    h = x.data.double()
    if factors is not None:
        h = F.silu(h * factors.scale.double()[:, :, None, None] + factors.offset.double()[:, :, None, None])
    if is_doubled:
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return F.conv2d(h, module.weight.double(), None if module.bias is None else module.bias.double(), padding=1)  # pyright: ignore[reportUnnecessaryComparison]  # it may be


def computed(
    module: nn.Conv2d,
    x: Map,
    factors: Factors | None,
    *,
    is_doubled: bool = False,
    rows: int = 0,
    add: Tensor | None = None,
) -> Tensor:
    """By the compiled kernel, `rows` at a time."""
    factor = 2 if is_doubled else 1
    _, _, h, w = x.data.shape
    out = Map(uninitialised((1, module.out_channels, factor * h, factor * w), torch.bfloat16), NATIVE)
    out.data.copy_(torch.full_like(out.data, float("nan")) if add is None else add)
    made = convolution_of(module, NATIVE, is_doubled=is_doubled)
    assert isinstance(made, Winograd)
    for first in range(0, h, rows or h):
        made.write(x, factors, first, min(first + (rows or h), h), out, is_added=add is not None)
    return out.data


@pytest.fixture(autouse=True)
def pairs(compiled: None) -> None:
    if "avx512_bf16" not in native.instructions():
        pytest.skip("no AVX512-BF16: the compiled convolution is not tested, its fallback is")


@pytest.mark.parametrize("is_doubled", [False, True])
@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_it_is_its_definition(name: str, is_normalised: bool, is_doubled: bool, generator: torch.Generator):
    module, x, factors = drawn(name, generator)
    expected = defined(module, x, factors if is_normalised else None, is_doubled=is_doubled)
    actual = computed(module, x, factors if is_normalised else None, is_doubled=is_doubled)
    assert relative(actual.double(), expected) < BFLOAT16
    add = channels_last(torch.randn(expected.shape, generator=generator))
    actual = computed(module, x, factors if is_normalised else None, is_doubled=is_doubled, add=add)
    assert relative(actual.double(), expected + add.double()) < BFLOAT16


@pytest.mark.parametrize("is_doubled", [False, True])
def test_small_whole_numbers_are_exact(is_doubled: bool, generator: torch.Generator):
    """Sums of few small numbers and quarters of multiples of four are bfloat16 themselves: nothing is rounded."""
    module, x, _ = drawn("odd", generator)
    module.weight.copy_(torch.randint(-1, 2, module.weight.shape, generator=generator) * 4)
    x.data.copy_(torch.randint(-8, 9, x.data.shape, generator=generator))
    expected = defined(module, x, None, is_doubled=is_doubled)
    actual = computed(module, x, None, is_doubled=is_doubled)
    assert torch.equal(actual, expected.float().bfloat16())


@pytest.mark.parametrize("is_doubled", [False, True])
def test_another_weight_of_a_product_is_caught(
    is_doubled: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    """One product of the 16 or 9 for every output, a hundredth too small."""
    made = native.convolution_weights

    def wrong(weight: Tensor, *, is_doubled: bool, is_transformed: bool) -> Tensor:
        weights = made(weight, is_doubled=is_doubled, is_transformed=is_transformed)
        c = weight.shape[1]
        weights.view(-1, 9 if is_doubled or not is_transformed else 16, c // 2, 32, 2)[:, 4] *= 0.97
        return weights

    monkeypatch.setattr(native, "convolution_weights", wrong)
    module, x, factors = drawn("blocks", generator)
    actual = computed(module, x, factors, is_doubled=is_doubled)
    assert relative(actual.double(), defined(module, x, factors, is_doubled=is_doubled)) > BFLOAT16
    actual = WholeWinograd(module, is_doubled=is_doubled)(x.data)
    assert relative(actual.double(), defined(module, x, None, is_doubled=is_doubled)) > BFLOAT16


@pytest.mark.parametrize("is_doubled", [False, True])
def test_bits_depend_neither_on_bands_nor_on_threads(is_doubled: bool, generator: torch.Generator):
    module, x, factors = drawn("blocks", generator)
    whole = computed(module, x, factors, is_doubled=is_doubled)
    assert torch.equal(computed(module, x, factors, is_doubled=is_doubled, rows=Winograd.step), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(computed(module, x, factors, is_doubled=is_doubled), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("is_doubled", [False, True])
@pytest.mark.parametrize("shape", [(288, 32, 7, 10), (32, 64, 20, 70), (16, 32, 1, 1), (48, 32, 40, 3)], ids=str)
def test_whole_maps_of_several_pictures(
    shape: tuple[int, int, int, int], is_doubled: bool, generator: torch.Generator
) -> None:
    """In one block or several, whatever bias and residual; a picture has the bits that it has without neighbours."""
    c, o, h, w = shape
    module = nn.Conv2d(c, o, 3, padding=1).requires_grad_(False)
    module.weight.normal_(0, (9 * c) ** -0.5, generator=generator)
    module.bias.normal_(0, 1, generator=generator)  # pyright: ignore[reportOptionalMemberAccess]  # it has one
    module = module.bfloat16()
    x = channels_last(torch.randn(5, c, h, w, generator=generator))
    shop = Workshop(NATIVE)
    made = shop.doubled(module) if is_doubled else shop.convolution(module)
    assert isinstance(made, WholeWinograd)
    bias = torch.randn(o, generator=generator).bfloat16()
    expected = defined(module, Map(x, NATIVE), None, is_doubled=is_doubled)
    add = channels_last(torch.randn(expected.shape, generator=generator))
    kept = add.clone()
    alone = made(x)
    assert relative(alone.double(), expected) < BFLOAT16
    moved = expected + (bias.double() - module.bias.double())[:, None, None] + add.double()  # pyright: ignore[reportOptionalMemberAccess]  # it has one
    assert relative(made(x, bias=bias, add=add).double(), moved) < BFLOAT16
    assert torch.equal(add, kept)  # a residual may be a skip that is needed again
    for row in range(5):
        assert torch.equal(made(x[row : row + 1])[0], alone[row])
        assert torch.equal(computed(module, Map(x[row : row + 1], NATIVE), None, is_doubled=is_doubled)[0], alone[row])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(made(x), alone)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def test_a_unet_goes_by_tiles(generator: torch.Generator) -> None:
    """In bfloat16 it is about a tenth further from float32 than with packed convolutions."""
    config = replace(
        SD1,
        levels=tuple(replace(level, channels=32) for level in SD1.levels),
        middle=replace(SD1.levels[1], channels=32),
    )
    unet = unet_drawn(config, generator).bfloat16()
    x, t, cond = asked(config, generator, (16, 16))
    exact = deepcopy(unet).float()
    wanted = exact(x, t, exact.prepare(cond))
    x, cond = x.bfloat16(), in_dtype(cond, torch.bfloat16)
    asking = [replace(NATIVE, convolution="packed"), NATIVE]
    errors: list[float] = []
    for kernels in asking:
        fast = Execution(kernels).unet(unet)
        errors.append(relative(fast(x, t, fast.prepare(cond)).float(), wanted))
    assert errors[0] != errors[1]
    assert errors[1] < 1.2 * errors[0]  # measured: 1.10


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Conv2d(32, 32, 3, padding=1),
        lambda: nn.Conv2d(8, 32, 3, padding=1).bfloat16(),
        lambda: nn.Conv2d(32, 3, 3, padding=1).bfloat16(),
        lambda: nn.Conv2d(32, 32, 1).bfloat16(),
        lambda: nn.Conv2d(32, 32, 3, padding=1, stride=2).bfloat16(),
        lambda: nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular").bfloat16(),
    ],
    ids=["float32", "few in", "few out", "1x1", "stride", "circular"],
)
def test_other_convolutions_are_onednns(other: Callable[[], nn.Conv2d]):
    assert isinstance(convolution_of(other(), NATIVE, is_doubled=False), BandConvolution)


def test_the_kernel_set_chooses(monkeypatch: pytest.MonkeyPatch):
    module = nn.Conv2d(32, 32, 3, padding=1).bfloat16()
    assert isinstance(convolution_of(module, NATIVE, is_doubled=False), Winograd)
    assert isinstance(convolution_of(module, replace(NATIVE, convolution="packed"), is_doubled=False), BandConvolution)
    assert isinstance(convolution_of(module, PACKED, is_doubled=False), BandConvolution)
    monkeypatch.setattr(native, "instructions", lambda: frozenset({"avx2", "avx512"}))
    assert isinstance(convolution_of(module, NATIVE, is_doubled=False), BandConvolution)


def test_a_record_of_before_has_onednns_convolution():
    assert from_record({"weights": "packed", "attention": "native", "norm": "native"}).convolution == "packed"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"first": 1}, "rows 1 to 4 of 4"),
        ({"last": 5}, "rows 0 to 5 of 4"),
        ({"out": uninitialised((1, 32, 4, 5), torch.bfloat16)}, "by 8192 weights"),
        ({"out": uninitialised((1, 32, 4, 4), torch.float32)}, "x, y and weights are bfloat16"),
        ({"bias": torch.zeros(16)}, "one for every channel"),
    ],
    ids=["odd", "behind", "columns", "dtype", "bias"],
)
def test_it_refuses_what_it_would_misread(change: dict[str, object], complaint: str):
    told: dict[str, object] = {
        "x": uninitialised((1, 16, 4, 4), torch.bfloat16),
        "factors": None,
        "weights": torch.zeros(16 * 16 * 32, dtype=torch.bfloat16),
        "bias": torch.zeros(32),
        "out": uninitialised((1, 32, 4, 4), torch.bfloat16),
        "first": 0,
        "last": 4,
    }
    with pytest.raises(RuntimeError, match=complaint):
        native.convolve(**{**told, **change}, is_doubled=False, is_added=False)  # pyright: ignore[reportArgumentType]  # wrong ones


def test_it_refuses_whole_maps_that_it_would_misread():
    x, weights = uninitialised((2, 16, 4, 4), torch.bfloat16), torch.zeros(9 * 16 * 32, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="by 4608 weights"):
        native.convolve_together(x, weights, torch.zeros(64), None, is_doubled=False)
    with pytest.raises(RuntimeError, match=r"added to \[2, 32, 4, 4\]"):
        native.convolve_together(x, weights, torch.zeros(32), x, is_doubled=False)
    with pytest.raises(RuntimeError, match=r"convolution_weights: bfloat16 \[o c 3 3\]"):
        native.convolution_weights(torch.zeros(32, 8, 3, 3).bfloat16(), is_doubled=False, is_transformed=False)
