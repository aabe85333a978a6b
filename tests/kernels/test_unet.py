"""The U-Net with packed weights is the U-Net: every shape of the family, hooks, attached layers, shared rows."""

from collections.abc import Iterable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.kernels import unet as packed_unet
from mezzotint.kernels.choices import NATIVE, PACKED, KernelSet
from mezzotint.kernels.execution import Execution
from mezzotint.kernels.memory import Memory
from mezzotint.kernels.packed import phases
from mezzotint.kernels.unet import FastUNet
from mezzotint.kernels.workshop import Workshop
from mezzotint.models.attention import Attention, FeedForward
from mezzotint.models.unet import Conditioning, UNet, UNetConfig
from models.oracles import relative
from models.test_unet import CONFIGS, SD1, SIZES, conditioned

TOLERANCE = 1e-5  # measured: below 1.2e-6
SETS = [
    PACKED,
    NATIVE,
    KernelSet(weights="packed", attention="matmul"),
    KernelSet(weights="packed", attention="float32"),
]


def drawn(config: UNetConfig, generator: torch.Generator) -> UNet:
    """A network with weights that keep activations at unit size, and norms that are not the identity."""
    network = UNet(config).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        values = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)
    return network


def asked(config: UNetConfig, generator: torch.Generator, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Any]:
    """x, t and a conditioning for two rows."""
    cond = conditioned(config, generator, size=size)
    return torch.randn(2, 4, *size, generator=generator), torch.tensor([500.5, 500.5]), cond


def in_dtype(cond: Conditioning, dtype: torch.dtype) -> Conditioning:
    parts: list[Any] = list(cond)  # Any: fields of several types
    return Conditioning(
        *cast(Any, [v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v for v in parts])
    )  # Any: the same


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_packed_is_plain_in_float32(name: str, size: tuple[int, int], generator: torch.Generator):
    config = CONFIGS[name]
    unet = drawn(config, generator)
    x, t, cond = asked(config, generator, size)
    plain = unet(x, t, unet.prepare(cond))
    fast = Execution(PACKED).unet(unet)
    assert isinstance(fast, FastUNet)
    first = fast(x, t, fast.prepare(cond))
    assert relative(first, plain) < TOLERANCE
    assert torch.equal(fast(x, t, fast.prepare(cond)), first)  # what is remembered is what was computed
    apart = torch.tensor([500.5, 20.0])
    assert relative(fast(x, apart, fast.prepare(cond)), unet(x, apart, unet.prepare(cond))) < TOLERANCE


@pytest.mark.parametrize("kernels", SETS, ids=lambda kernels: kernels.attention)
@torch.no_grad()
def test_packed_is_no_less_precise_in_bfloat16(kernels: KernelSet, generator: torch.Generator):
    unet = drawn(SD1, generator)
    x, t, cond = asked(SD1, generator)
    exact = unet(x, t, unet.prepare(cond))
    unet, cond = unet.bfloat16(), in_dtype(cond, torch.bfloat16)
    plain = relative(unet(x.bfloat16(), t, unet.prepare(cond)).float(), exact)
    fast = FastUNet(unet, Workshop(kernels))
    assert 0 < relative(fast(x.bfloat16(), t, fast.prepare(cond)).float(), exact) < 1.25 * plain


@pytest.mark.parametrize("name", ["sd1", "sd1-inpaint", "xl", "unclip", "distilled"])
@torch.no_grad()
def test_rows_that_see_the_same_x_are_computed_once_until_they_differ(name: str, generator: torch.Generator):
    """As with guidance: one x, two prompts. Where rows are told different things at once, nothing may be shared."""
    config = CONFIGS[name]
    unet = drawn(config, generator)
    x, t, cond = asked(config, generator)
    x[1] = x[0]
    if cond.concat is not None:
        cond.concat[1] = cond.concat[0]
    rows: list[int] = []
    unet.conv_in.register_forward_hook(cast(Any, lambda module, given, out: rows.append(len(out))))  # Any: a hook  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    fast = FastUNet(unet, Workshop(PACKED))
    together = fast(x, t, fast.prepare(cond))
    assert rows == [1 if name in {"sd1", "sd1-inpaint"} else 2]
    assert relative(together, unet(x, t, unet.prepare(cond))) < TOLERANCE
    for row in range(2):
        parts: list[Any] = list(cond)  # Any: fields of several types
        alone = Conditioning(
            *cast(Any, [v[row : row + 1] if isinstance(v, Tensor) else v for v in parts])
        )  # Any: the same fields
        assert relative(together[row : row + 1], fast(x[:1], t[:1], fast.prepare(alone))) < TOLERANCE


@torch.no_grad()
def test_a_masked_picture_does_not_share_what_differs(generator: torch.Generator):
    config = CONFIGS["sd1-inpaint"]
    unet = drawn(config, generator)
    x, t, cond = asked(config, generator)
    x[1] = x[0]  # and concat differs
    fast = FastUNet(unet, Workshop(PACKED))
    assert relative(fast(x, t, fast.prepare(cond)), unet(x, t, unet.prepare(cond))) < TOLERANCE


@torch.no_grad()
def test_hooks_see_what_the_network_shows_them(generator: torch.Generator):
    unet = drawn(SD1, generator)
    x, t, cond = asked(SD1, generator)
    seen: dict[str, list[Tensor]] = {}

    def watch(name: str, tensor: Tensor) -> None:
        seen.setdefault(name, []).append(tensor.detach().clone())

    def before(name: str) -> Any:  # Any: a hook
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            watch(f"into {name}", given[0])

        return hook

    def behind(name: str) -> Any:  # Any: a hook
        def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            watch(f"out of {name}", out)

        return hook

    modules = dict(cast("Iterable[tuple[str, nn.Module]]", unet.named_modules()))  # torch leaves it partly untyped
    for name, module in modules.items():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(before(name))
    parts = ["conv_in", "conv_out", "down.0.resample", "up.0.resample", "down.0.blocks.0", "middle"]
    for name in ["", *parts, "middle.attn.layers.0.cross_attention"]:
        modules[name].register_forward_hook(behind(name))
    unet(x, t, unet.prepare(cond))
    fast = FastUNet(unet, Workshop(PACKED))
    fast(x, t, fast.prepare(cond))
    assert len(seen) > 12
    for name, (plain, packed) in seen.items():
        assert relative(packed, plain) < TOLERANCE, name


class _Halved(nn.Module):
    """What an adapter does to a layer: something else stands in its place."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *given: Any) -> Tensor:
        return 0.5 * self.layer(*given)


@pytest.mark.parametrize(
    "path",
    [
        "conv_in", "down.0.blocks.0.res.conv_1", "down.0.blocks.0.res.emb", "down.0.resample.conv",
        "down.1.blocks.0.res.shortcut", "middle.attn.proj_in", "up.0.resample.conv", "conv_out",
        "middle.attn.layers.0.self_attention.k", "middle.attn.layers.0.cross_attention.v",
        "middle.attn.layers.0.self_attention", "middle.attn.layers.0.feed_forward",
        "middle.attn.layers.0.feed_forward.in_",
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_layer_with_something_attached_runs_as_it_is(path: str, generator: torch.Generator):
    unet = drawn(SD1, generator)
    x, t, cond = asked(SD1, generator)
    before = unet(x, t, unet.prepare(cond))
    parent, _, leaf = path.rpartition(".")
    holder = unet.get_submodule(parent)
    setattr(holder, leaf, _Halved(holder.get_submodule(leaf)))
    plain = unet(x, t, unet.prepare(cond))
    assert relative(plain, before) > 1e-3
    fast = FastUNet(unet, Workshop(PACKED))
    assert relative(fast(x, t, fast.prepare(cond)), plain) < TOLERANCE


@torch.no_grad()
def test_networks_share_packed_layers_and_the_original_is_untouched(generator: torch.Generator):
    unet = drawn(SD1, generator)
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    shop = Workshop(PACKED)
    assert shop.linear(unet.time_in) is shop.linear(unet.time_in)
    execution = Execution(PACKED)
    fast = execution.unet(unet)
    assert execution.unet(unet) is fast
    x, t, cond = asked(SD1, generator)
    fast(x, t, fast.prepare(cond))
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert Execution(KernelSet()).unet(unet) is unet


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_phases_do_before_the_upsampling_what_the_convolution_does_behind_it(
    size: tuple[int, int], generator: torch.Generator
):
    convolution = nn.Conv2d(3, 2, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 3, *size, generator=generator)
    behind = convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    weight, bias = phases(convolution)
    four = F.conv2d(x, weight, bias, padding=1)  # [1 4o h+1 w+1]
    h, w = size
    for phase in range(4):
        i, j = divmod(phase, 2)
        found = four[:, 2 * phase : 2 * phase + 2, i : i + h, j : j + w]
        torch.testing.assert_close(found, behind[:, :, i::2, j::2])
        mixed = four[:, 2 * phase : 2 * phase + 2, 1 - i : 1 - i + h, 1 - j : 1 - j + w]
        assert not torch.allclose(mixed, behind[:, :, i::2, j::2])  # the other phase's place would be wrong


@torch.no_grad()
def test_with_a_memory_the_middle_runs_at_some_queries_only(generator: torch.Generator):
    """Where nothing changes, what is remembered is what would be computed; three blocks still run."""
    unet = drawn(SD1, generator)
    x, t, cond = asked(SD1, generator)
    ran: list[str] = []

    def counting(name: str) -> Any:  # Any: a hook
        def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
            ran.append(name)

        return hook

    for name in ["down.0.blocks.0", "down.1.blocks.0", "middle", "up.2.blocks.0", "up.2.blocks.1", "up.2.blocks.2"]:
        unet.get_submodule(name).register_forward_hook(counting(name))
    fast = FastUNet(unet, Workshop(PACKED))
    prepared, memory = fast.prepare(cond), Memory(every=2)
    whole = fast(x, t, prepared, memory)
    assert len(ran) == 6
    assert torch.equal(whole, fast(x, t, prepared))
    ran.clear()
    assert torch.equal(fast(x, t, prepared, memory), whole)
    assert ran == ["down.0.blocks.0", "up.2.blocks.1", "up.2.blocks.2"]
    other = torch.randn(x.shape, generator=generator)
    fast(x, t, prepared, memory)
    shallow = fast(other, t, prepared, memory)
    assert relative(shallow, fast(other, t, prepared)) > 1e-3  # an approximation
    alone = Conditioning(context=None if cond.context is None else cond.context[:1])
    fast(x, t, prepared, memory)
    assert relative(fast(x[:1], t[:1], fast.prepare(alone), memory), whole[:1]) < TOLERANCE  # one row of two


@torch.no_grad()
def test_a_feed_forward_of_many_positions_goes_in_parts(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    """Whatever the number of positions; another residual would be seen."""
    monkeypatch.setattr(packed_unet, "LEAST", 5)
    module = FeedForward(8)
    fast = packed_unet._FeedForward(module, Workshop(PACKED))  # pyright: ignore[reportPrivateUsage]  # a part of its network
    for positions, parts in ((4, 1), (11, 4), (37, 13)):
        monkeypatch.setattr(packed_unet, "AT_ONCE", 160)
        x, residual = (torch.randn(2, positions, 8, generator=generator) for _ in range(2))
        expected = residual + module(x)
        seen: list[int] = []
        computed = fast._computed  # pyright: ignore[reportPrivateUsage]

        def counted(x: Tensor, residual: Tensor, seen: list[int] = seen, computed: Any = computed) -> Tensor:
            seen.append(len(x))
            return computed(x, residual)

        with monkeypatch.context() as patch:
            patch.setattr(fast, "_computed", counted)
            found = fast(x, residual)
        assert found.shape == x.shape
        assert relative(found, expected) < TOLERANCE
        assert len(seen) == parts
        assert relative(fast(x, residual.flip(1)), expected) > 0.1
