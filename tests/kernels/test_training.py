"""A quickened network is the network: outputs and every gradient, for the whole family; foreign blocks stay."""

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from kernels.test_unet import asked, drawn, in_dtype
from mezzotint.kernels import training
from mezzotint.kernels.gradients import group_norm
from mezzotint.kernels.training import QuickResBlock, QuickUpsample, possible, quicken
from mezzotint.models.attention import Attention
from mezzotint.models.blocks import ResBlock, Upsample
from mezzotint.models.clip import TextTower
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import UNet
from mezzotint.models.vae import AutoencoderKL
from models.oracles import relative
from models.test_unet import CONFIGS, SIZES

pytestmark = pytest.mark.usefixtures("compiled")

TOLERANCE = 1e-5  # measured: below 2e-6


N = TypeVar("N", bound=nn.Module)


def learnt(network: N, run: Callable[[N], Tensor]) -> tuple[Tensor, Tensor]:
    """What the network says, and all its gradients of a fixed function of that, in one row."""
    network.requires_grad_()
    output = run(network)
    above = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    torch.autograd.backward(output, above)
    grads = [parameter.grad for parameter in network.parameters()]
    return output.detach(), torch.cat([g.float().flatten() for g in grads if g is not None])


def asking(
    name: str, generator: torch.Generator, size: tuple[int, int], dtype: torch.dtype
) -> Callable[[UNet], Tensor]:
    """The network's answer to a drawn question."""
    x, t, cond = asked(CONFIGS[name], generator, size)

    def run(network: UNet) -> Tensor:
        return network(x.to(dtype), t, network.prepare(in_dtype(cond, dtype)))

    return run


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_quick_unet_learns_what_the_unet_learns(name: str, size: tuple[int, int], generator: torch.Generator) -> None:
    unet = drawn(CONFIGS[name], generator)
    run = asking(name, generator, size, torch.float32)
    plain, quick = learnt(deepcopy(unet), run), learnt(quicken(unet), run)
    assert max(relative(a, b) for a, b in zip(quick, plain, strict=True)) < TOLERANCE


def test_in_bfloat16_it_is_hardly_further_from_float32(generator: torch.Generator) -> None:
    unet = drawn(CONFIGS["sd1"], generator).bfloat16()
    run = asking("sd1", generator.manual_seed(1), (8, 8), torch.bfloat16)
    generator.manual_seed(1)
    exact = learnt(deepcopy(unet).float(), asking("sd1", generator, (8, 8), torch.float32))
    plain, quick = learnt(deepcopy(unet), run), learnt(quicken(unet), run)
    for place in (0, 1):
        # measured over draws: 0.83 to 1.23 times as far
        assert relative(quick[place], exact[place]) < 1.25 * relative(plain[place], exact[place])


def test_an_autoencoder(generator: torch.Generator) -> None:
    vae, pictures = AutoencoderKL(PRESETS["tiny"].vae), torch.randn(2, 3, 32, 32, generator=generator)

    def run(vae: AutoencoderKL) -> Tensor:
        return vae.decode(vae.encode(pictures).mean)

    plain, quick = learnt(deepcopy(vae), run), learnt(quicken(vae), run)
    assert max(relative(a, b) for a, b in zip(quick, plain, strict=True)) < TOLERANCE


def test_a_text_tower(generator: torch.Generator) -> None:
    tower, ids = TextTower(PRESETS["tiny"].text[0]), torch.randint(0, 100, (2, 77), generator=generator)

    def run(tower: TextTower) -> Tensor:
        return tower(ids).pooled

    plain, quick = learnt(deepcopy(tower), run), learnt(quicken(tower), run)
    assert max(relative(a, b) for a, b in zip(quick, plain, strict=True)) < TOLERANCE


def test_every_map_is_channels_last(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    """One map the other way round, and every sum with it is, too: each norm would begin with a copy."""
    seen: list[bool] = []

    def spy(x: Tensor, norm: nn.GroupNorm, *, is_silu: bool, shift: Tensor | None = None) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return group_norm(x, norm, is_silu=is_silu, shift=shift)

    monkeypatch.setattr(training, "group_norm", spy)
    unet, vae = drawn(CONFIGS["sd1"], generator), AutoencoderKL(PRESETS["tiny"].vae)
    asking("sd1", generator, (8, 8), torch.float32)(quicken(unet))
    pictures = torch.randn(2, 3, 32, 32, generator=generator)
    quicken(vae).decode(vae.encode(pictures).mean.contiguous())
    norms = [part for network in (unet, vae) for part in network.modules() if isinstance(part, nn.GroupNorm)]
    assert len(seen) == len(norms)
    assert all(seen)


def test_a_block_of_ones_own_stays_as_it_is() -> None:
    class Own(ResBlock):
        pass

    kept, changed = (kind(8, 8, norm_groups=2, norm_eps=1e-5) for kind in (Own, ResBlock))
    network = quicken(nn.ModuleList([kept, changed, Upsample(8), Attention(8, 2)]))
    assert [type(module) for module in network][:3] == [Own, QuickResBlock, QuickUpsample]


def test_a_residual_that_forgets_the_time_is_caught(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    unet, norm = drawn(CONFIGS["sd1"], generator), training.group_norm
    run = asking("sd1", generator, (8, 8), torch.float32)
    plain = learnt(deepcopy(unet), run)

    def forgetful(x: Tensor, module: nn.GroupNorm, *, is_silu: bool, shift: Tensor | None = None) -> Tensor:
        return norm(x, module, is_silu=is_silu, shift=None if shift is None else shift * 0)

    monkeypatch.setattr(training, "group_norm", forgetful)
    assert relative(learnt(quicken(unet), run)[0], plain[0]) > 100 * TOLERANCE


def test_what_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEZZOTINT_KERNELS", "auto")
    assert possible() == "native"
    assert possible("torch") == "torch"
    monkeypatch.setenv("MEZZOTINT_KERNELS", "torch")
    assert possible() == "torch"
    monkeypatch.setenv("MEZZOTINT_KERNELS", "auto")
    monkeypatch.setattr(training.native, "available", lambda: False)
    assert possible() == "torch"
