"""The compiled operations against their definitions, without a compiler, and where their shortcuts could show."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.errors import MezzotintError
from mezzotint.kernels import native
from models.oracles import relative

BFLOAT16 = 4e-3  # measured: below 2.5e-3, torch's own 2.3e-3; rounding the result alone costs 1.7e-3

SHAPES = {  # b, l, n, heads, d
    "sd1": (2, 200, 200, 2, 40),
    "sd1-text": (2, 100, 77, 2, 40),
    "sd2": (1, 130, 300, 3, 64),
    "level-2": (2, 64, 64, 2, 80),
    "level-3": (1, 16, 77, 2, 160),
    "autoencoder": (1, 50, 270, 1, 512),
    "one": (1, 1, 1, 1, 8),
    "tail": (1, 47, 9, 2, 24),
}

needs_pairs = pytest.mark.usefixtures("compiled")


def defined(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of [b l heads d] in float64."""
    scores = torch.einsum("blhd,bnhd->bhln", q.double(), k.double()) * scale
    return torch.einsum("bhln,bnhd->blhd", scores.softmax(-1), v.double())


def drawn(shape: tuple[int, int, int, int, int], generator: torch.Generator, size: float = 1) -> list[Tensor]:
    """q, k and v as slices of one buffer [b l 3 heads d], as a fused projection leaves them."""
    b, l, n, heads, d = shape  # noqa: E741  # the letter of the legend
    fused = (torch.randn(b, max(l, n), 3, heads, d, generator=generator) * size).bfloat16()
    q, k, v = fused.unbind(2)
    return [q[:, :l], k[:, :n], v[:, :n]]


def is_compiled_here() -> bool:
    """Whether attention runs compiled on this processor."""
    return "avx512_bf16" in native.instructions()


@needs_pairs
@pytest.mark.parametrize("name", SHAPES)
def test_attention_is_its_definition(name: str, generator: torch.Generator):
    q, k, v = drawn(SHAPES[name], generator)
    actual = native.attention(q, k, v)
    assert actual.dtype == torch.bfloat16
    assert relative(actual, defined(q, k, v, q.shape[-1] ** -0.5)) < BFLOAT16


def first_keys_only(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The kernel's idea without its second look: subtract the maximum of the first 8 keys, whatever comes after."""
    scores = torch.einsum("blhd,bnhd->bhln", q.float(), k.float()) * scale
    weights = (scores - scores[..., :8].amax(-1, keepdim=True)).exp()
    return torch.einsum("bhln,bnhd->blhd", weights / weights.sum(-1, keepdim=True), v.float())


@needs_pairs
@pytest.mark.parametrize("is_wide", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_attention_in_float32_is_its_definition(name: str, is_wide: bool, generator: torch.Generator):
    """By AVX-512 and by AVX2."""
    if is_wide and "avx512" not in native.instructions():
        return
    q, k, v = (part.float() for part in drawn(SHAPES[name], generator))
    scale = q.shape[-1] ** -0.5
    actual = torch.ops.mezzotint.attention_by(q, k, v, scale, is_wide)
    assert relative(actual, defined(q, k, v, scale)) < 2e-6  # measured: below 7e-7, torch's own 9e-7


@needs_pairs
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("last", [9, 150, 299])
def test_attention_survives_keys_that_outdo_the_first(last: int, dtype: torch.dtype, generator: torch.Generator):
    """Softmax subtracts the maximum of the first 8 keys; later keys may be e^1000 times as likely."""
    q, k, v = (part.to(dtype) for part in drawn((1, 60, 300, 2, 40), generator))
    k = k.clone()
    k[:, last] = q[:, 5] * 60  # for some queries far above, for others far below
    expected = defined(q, k, v, 1.0)
    tolerance = BFLOAT16 if dtype == torch.bfloat16 else 1e-4  # measured: 5e-6; scores of 2,400 have lost digits
    assert relative(native.attention(q, k, v, 1.0), expected) < tolerance
    assert not first_keys_only(q, k, v, 1.0).isfinite().all()


@needs_pairs
@pytest.mark.parametrize("name", SHAPES)
def test_attention_by_tiles_is_its_definition(name: str, generator: torch.Generator):
    """What runs on processors with AMX: oneDNN's matrix products, which run on others too."""
    if not is_compiled_here():
        return
    q, k, v = drawn(SHAPES[name], generator, size=2)
    scale = q.shape[-1] ** -0.5
    actual = torch.ops.mezzotint.attention_by_tiles(q, k, v, scale)
    assert relative(actual, defined(q, k, v, scale)) < BFLOAT16


@needs_pairs
def test_attention_of_equal_values_is_that_value(generator: torch.Generator):
    """Weights sum to 1: a forgotten key, or one too many, would show."""
    q, k, v = drawn((2, 70, 77, 2, 40), generator)
    actual = native.attention(q, k, torch.full_like(v, 3.0))
    assert (actual.float() - 3).abs().max() <= 2**-6  # one step of bfloat16 at 3


@needs_pairs
def test_attention_does_not_depend_on_the_order_of_keys(generator: torch.Generator):
    q, k, v = drawn((1, 40, 300, 2, 64), generator)
    order = torch.randperm(300, generator=generator)
    assert relative(native.attention(q, k[:, order], v[:, order]), native.attention(q, k, v)) < BFLOAT16


@needs_pairs
def test_bits_depend_neither_on_neighbours_nor_on_threads(generator: torch.Generator):
    q, k, v = drawn((3, 130, 130, 2, 40), generator)
    x = torch.randn(3, 32, 40, 40, generator=generator).contiguous(memory_format=torch.channels_last)
    results: list[tuple[Tensor, Tensor]] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append((native.attention(q, k, v), native.group_norm(x, 4, None, None, 1e-5)))
    finally:
        torch.set_num_threads(1)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    if is_compiled_here():  # torch's own does not promise it
        assert torch.equal(results[0][0][1:2], native.attention(q[1:2], k[1:2], v[1:2]))
    assert torch.equal(results[0][1][1:2], native.group_norm(x[1:2], 4, None, None, 1e-5))


@needs_pairs
@pytest.mark.parametrize("change", ["float64", "odd width", "gradient"])
def test_attention_by_torch_where_it_is_not_compiled(change: str, generator: torch.Generator):
    q, k, v = drawn((1, 20, 20, 2, 24 if change != "odd width" else 12), generator)
    if change == "float64":
        q, k, v = q.double(), k.double(), v.double()
    q = q.clone().requires_grad_(change == "gradient")
    actual = native.attention(q, k, v)
    assert relative(actual, defined(q, k, v, q.shape[-1] ** -0.5)) < BFLOAT16
    if change == "gradient":
        torch.autograd.backward(actual.float().sum())
        assert q.grad is not None


def normalised(x: Tensor, groups: int, weight: Tensor, bias: Tensor, shift: Tensor | None, *, silu: bool) -> Tensor:
    """GroupNorm in float64."""
    x = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    h = F.group_norm(x, groups, weight.double(), bias.double(), 1e-5)
    return F.silu(h) if silu else h


def picture(
    generator: torch.Generator, *, channels: int = 60, rows: int = 37, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Channels that differ in mean and size, channels_last."""
    x = torch.randn(2, channels, rows, 41, generator=generator) * torch.rand(channels, 1, 1, generator=generator)
    return (x + torch.randn(channels, 1, 1, generator=generator)).to(dtype, memory_format=torch.channels_last)


@needs_pairs
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("has_shift", [False, True])
@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_group_norm_is_its_definition(
    dtype: torch.dtype, out: torch.dtype, has_shift: bool, silu: bool, generator: torch.Generator
):
    """Groups of 10 channels, as in SD 1: they fill no vector."""
    x = picture(generator, dtype=dtype)
    weight, bias = torch.randn(2, 60, generator=generator)
    shift = torch.randn(2, 60, generator=generator) if has_shift else None
    actual = native.group_norm(x, 6, weight, bias, 1e-5, silu=silu, shift=shift, dtype=out)
    assert actual.dtype == out
    assert actual.is_contiguous(memory_format=torch.channels_last)
    expected = normalised(x, 6, weight, bias, shift, silu=silu)
    assert relative(actual, expected) < (1e-6 if out == torch.float32 else 2.5e-3)  # measured: 2e-7, 1.7e-3


@needs_pairs
def test_group_norm_keeps_its_digits_far_from_zero(generator: torch.Generator):
    """A mean of 1,000 standard deviations: sums of squares about 0 in float32 would leave nothing."""
    x = picture(generator, channels=32, rows=64) + 1000.0
    expected = normalised(x, 4, torch.ones(32), torch.zeros(32), None, silu=False)
    assert relative(native.group_norm(x, 4, None, None, 1e-5), expected) < 1e-4  # measured: 2e-5
    flat = x.view(2, 4, -1) if x.is_contiguous() else x.contiguous().view(2, 4, -1)
    naive = (flat**2).mean(-1) - flat.mean(-1) ** 2
    assert (naive / flat.double().var(-1) - 1).abs().max() > 1e-2


@needs_pairs
@pytest.mark.parametrize("is_compiled", [True, False])
def test_moments_and_scaling_make_a_group_norm(
    is_compiled: bool, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    if not is_compiled:
        monkeypatch.setattr(native, "instructions", lambda: frozenset[str]())
    x = picture(generator)
    mean, squares = native.moments(x)
    assert relative(mean, x.double().mean((2, 3))) < 1e-6
    assert relative(squares, x.double().var((2, 3), correction=0) * 37 * 41) < 1e-6
    scale = (squares / (37 * 41) + 1e-5).rsqrt()
    y = torch.empty_like(x)
    native.scale_into(y, x, scale.float(), (-mean * scale).float(), silu=True)
    expected = normalised(x, 60, torch.ones(60), torch.zeros(60), None, silu=True)
    assert relative(y, expected) < 1e-6


@needs_pairs
def test_silu_far_from_zero(generator: torch.Generator):
    """The exponential stays where float32 ends: 0 on one side, the identity on the other."""
    x = torch.tensor([-1e4, -88.0, -20.0, 0.0, 20.0, 88.0, 1e4]).view(1, 1, 1, 7)
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x)
    native.scale_into(y, x, torch.ones(1, 1), torch.zeros(1, 1), silu=True)
    torch.testing.assert_close(y, F.silu(x.double()).float(), rtol=1e-6, atol=1e-30)


def test_everything_works_without_a_compiler(
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    """And says so once, not in every process."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    native.instructions.cache_clear()
    q, k, v = drawn((1, 20, 30, 2, 40), generator)
    x = picture(generator)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            native.instructions.cache_clear()  # as another process would begin
            assert not native.available()
            assert relative(native.attention(q, k, v), defined(q, k, v, 40**-0.5)) < BFLOAT16
            actual = native.group_norm(x, 6, None, None, 1e-5, silu=True)
            assert relative(actual, normalised(x, 6, torch.ones(60), torch.zeros(60), None, silu=True)) < 1e-6
    native.instructions.cache_clear()
    said = [record.getMessage() for record in caplog.records]
    assert said == ["the compiled kernels are not built, torch's own are slower: run `mezzotint doctor --build`"]


def test_build_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MezzotintError, match=r"no C\+\+ compiler \(CXX is 'no-such-compiler'; .*install g\+\+, or go"):
        native.build()
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("program", ["false", "true"])
def test_a_build_that_fails_leaves_nothing(program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`false` fails as a compiler would; `true` succeeds and writes no library."""
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", program)
    with pytest.raises(MezzotintError, match="everything works without, by torch's own kernels"):
        native.build()
    assert not list(tmp_path.rglob("*.so"))


def test_the_library_of_another_torch_processor_or_source_is_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    changes: list[Callable[[], None]] = [
        lambda: None,
        lambda: monkeypatch.setattr(torch, "__version__", "9.9"),
        lambda: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}),
        lambda: monkeypatch.setattr(native, "SOURCE", tmp_path),
    ]
    (tmp_path / "ops.cpp").write_text("// another")
    names: list[str] = []
    for change in changes:
        change()
        names.append(native.library().name)
    assert len(set(names)) == len(names)


def test_a_library_that_cannot_be_loaded_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    native.instructions.cache_clear()
    native.library().parent.mkdir()
    native.library().write_bytes(b"not a library")
    with caplog.at_level(logging.WARNING):
        assert not native.available()
    native.instructions.cache_clear()
    assert "the compiled kernels cannot be loaded, torch's own are slower" in caplog.text


@needs_pairs
def test_operators_refuse_what_they_would_misread(generator: torch.Generator):
    if not is_compiled_here():
        return
    q, k, v = drawn((1, 20, 30, 2, 40), generator)
    for wrong, said in [
        ((q.float(), k, v), "q, k and v are bfloat16 or float32"),
        ((q, k[:, :10], v), "attention: q"),
        ((q.transpose(-1, -2).contiguous().transpose(-1, -2), k, v), "contiguous in d"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            torch.ops.mezzotint.attention(*wrong, 1.0)
    x = picture(generator)
    for call, said in [
        (lambda: torch.ops.mezzotint.group_norm(x, 7, None, None, 1e-5, False, None, None), "60 channels in 7 groups"),
        (lambda: torch.ops.mezzotint.moments(x.contiguous()), "a channels_last"),
        (lambda: torch.ops.mezzotint.moments(x.half()), "neither float32 nor bfloat16"),
    ]:
        with pytest.raises(RuntimeError, match=said):
            call()
