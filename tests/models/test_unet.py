"""The U-Net: parity with diffusers for every shape of the family, laws, and what it refuses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.models import attention, unet
from mezzotint.models.attention import Attention
from mezzotint.models.unet import Conditioning, Control, Level, Prepared, UNet, UNetConfig
from models.oracles import relative, unet_pair

TOLERANCE = 1e-5  # measured: below 7e-7

SD1 = UNetConfig(
    levels=(Level(channels=16, depth=1, heads=4), Level(channels=32, depth=1, heads=4), Level(channels=32)),
    middle=Level(channels=32, depth=1, heads=4),
    context=24,
    norm_groups=8,
)
SD2 = replace(
    SD1,
    levels=(Level(channels=16, depth=1, heads=2), Level(channels=32, depth=1, heads=4), Level(channels=32)),
    is_linear=True,
)
XL = UNetConfig(
    levels=(Level(channels=16), Level(channels=32, depth=2, heads=4), Level(channels=32, depth=3, heads=4)),
    middle=Level(channels=32, depth=3, heads=4),
    context=24,
    vector=20 + 6 * 256,
    is_linear=True,
    norm_groups=8,
)
REFINER = UNetConfig(
    levels=(Level(channels=24), Level(channels=48, depth=2, heads=6), Level(channels=48)),
    middle=Level(channels=48, depth=2, heads=6),
    context=20,
    vector=20 + 5 * 256,
    is_linear=True,
    norm_groups=8,
)
X4 = UNetConfig(
    levels=(
        Level(channels=16),
        Level(channels=32, depth=1, heads=8, only_cross=True),
        Level(channels=32, depth=1, heads=8),
    ),
    middle=Level(channels=32, depth=1, heads=8),
    in_channels=7,
    context=24,
    labels=50,
    is_linear=True,
    norm_groups=8,
)
UNEVEN = replace(  # depth per block, another way up, no middle: the distilled models
    XL,
    levels=(Level(channels=16), Level(channels=32, depth=(1, 2), heads=4), Level(channels=32, depth=1, heads=4)),
    up_levels=(Level(channels=16), Level(channels=32, depth=(2, 1, 1), heads=4), Level(channels=32, depth=2, heads=4)),
    middle=None,
    vector=0,
)
CONFIGS = {
    "sd1": SD1,
    "sd1-inpaint": replace(SD1, in_channels=9),
    "sd2": SD2,
    "unclip": replace(SD2, vector=40),
    "xl": XL,
    "refiner": REFINER,
    "x4": X4,
    "uneven": UNEVEN,
    "distilled": replace(SD1, guidance=16),
    "one-block": replace(SD1, blocks=1),
}
SIZES = [(8, 8), (13, 9)]  # 9 is halved to 5 and 3: doubling alone would miss the skips


def conditioned(
    config: UNetConfig, generator: torch.Generator, *, size: tuple[int, int], batch: int = 2
) -> Conditioning:
    """A random conditioning with all that the config needs. Sizes of XL are sinusoids of whole numbers."""
    pooled = config.vector % 256 if config.vector > 256 else config.vector
    vector = torch.randn(batch, pooled, generator=generator) if config.vector else None
    if vector is not None and config.vector > 256:
        vector = unet.sized_vector(vector, time_ids(config, batch))
    concat = config.in_channels - 4
    return Conditioning(
        context=torch.randn(batch, 7, config.context or 1, generator=generator) if config.context else None,
        vector=vector,
        label=torch.arange(batch) * 3 if config.labels else None,
        guidance=torch.tensor([7.5, 1.0])[:batch] if config.guidance else None,
        concat=torch.randn(batch, concat, *size, generator=generator) if concat else None,
    )


def time_ids(config: UNetConfig, batch: int) -> Tensor:
    count = config.vector // 256
    return torch.tensor([1024.0, 768.0, 0.0, 37.0, 512.0, 640.0])[:count].repeat(batch, 1)


def reference_output(theirs: Any, x: Tensor, t: Tensor, given: Conditioning, config: UNetConfig) -> Tensor:
    """Diffusers' answer to the same question."""
    kwargs: dict[str, Any] = {}
    if config.vector > 256 and given.vector is not None:
        pooled = given.vector[:, : config.vector % 256]
        kwargs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": time_ids(config, len(x))}
    elif given.vector is not None or given.label is not None:
        kwargs["class_labels"] = given.label if given.vector is None else given.vector
    if given.guidance is not None:
        kwargs["timestep_cond"] = unet.guidance_embedding(given.guidance, config.guidance)
    if given.control is not None:
        kwargs["down_block_additional_residuals"] = given.control.down
        kwargs["mid_block_additional_residual"] = given.control.middle
    x = x if given.concat is None else torch.cat([x, given.concat], dim=1)
    return theirs(x, t, given.context, **kwargs).sample


def difference(name: str, generator: torch.Generator, *, size: tuple[int, int] = (8, 8)) -> float:
    """How far our U-Net is from diffusers' on one random question."""
    config = CONFIGS[name]
    ours, theirs = unet_pair(config, generator, vector="projection" if name == "unclip" else "text_time")
    x, t = torch.randn(2, 4, *size, generator=generator), torch.tensor([999.0, 3.25])
    given = conditioned(config, generator, size=size)
    expected = reference_output(theirs, x, t, given, config)
    assert 0.1 < expected.std() < 10
    return relative(ours(x, t, ours.prepare(given)), expected)


@pytest.fixture
def network(generator: torch.Generator) -> UNet:
    return unet_pair(SD1, generator)[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name: str, size: tuple[int, int], generator: torch.Generator):
    assert difference(name, generator, size=size) < TOLERANCE


def test_control_equals_diffusers_and_zero_control_changes_nothing(generator: torch.Generator):
    ours, theirs = unet_pair(SD1, generator)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([500.0, 20.0])
    given = conditioned(SD1, generator, size=(8, 8))
    shapes = [(16, 8)] * 3 + [(16, 4)] + [(32, 4)] * 2 + [(32, 2)] * 3  # channels and side of every skip
    down = tuple(torch.randn(2, c, side, side, generator=generator) for c, side in shapes)
    control = Control(down, torch.randn(2, 32, 2, 2, generator=generator))
    expected = reference_output(theirs, x, t, given._replace(control=control), SD1)
    actual = ours(x, t, ours.prepare(given._replace(control=control)))
    assert relative(actual, expected) < TOLERANCE
    zero = Control(tuple(map(torch.zeros_like, down)), torch.zeros_like(control.middle))
    plain = ours(x, t, ours.prepare(given))
    assert torch.equal(ours(x, t, ours.prepare(given._replace(control=zero))), plain)
    assert relative(actual, plain) > 0.01


def test_parity_catches_a_swapped_sinusoid(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    right = unet.timestep_embedding
    monkeypatch.setattr(unet, "timestep_embedding", lambda t, dim: right(t, dim).roll(dim // 2, dims=1))  # pyright: ignore
    assert difference("sd1", generator) > 0.01


def test_parity_catches_an_approximate_gelu(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch):
    right = attention.F.gelu
    monkeypatch.setattr(attention.F, "gelu", lambda x: right(x, approximate="tanh"))  # pyright: ignore
    config = SD1
    ours, theirs = unet_pair(config, generator)
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([7.0])
    given = conditioned(config, generator, size=(8, 8), batch=1)
    actual = ours(x, t, ours.prepare(given))
    monkeypatch.undo()
    assert relative(actual, reference_output(theirs, x, t, given, config)) > TOLERANCE


def test_every_norm_has_the_eps_of_diffusers(generator: torch.Generator):
    """At unit scale parity cannot tell 1e-5 from 1e-6; at the scale of trained weights a picture can."""
    ours, theirs = unet_pair(SD1, generator)
    norms = (nn.GroupNorm, nn.LayerNorm)
    expected = {part.weight.data_ptr(): part.eps for part in theirs.modules() if isinstance(part, norms)}
    assert {part.weight.data_ptr(): part.eps for part in ours.modules() if isinstance(part, norms)} == expected
    assert set(expected.values()) == {1e-5, 1e-6}


def test_a_batch_equals_its_samples_one_by_one(network: UNet, generator: torch.Generator):
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([400.0, 30.0])
    given = conditioned(SD1, generator, size=(8, 8))
    together = network(x, t, network.prepare(given))
    for i in range(2):
        alone = network.prepare(Conditioning(given.context[i : i + 1] if given.context is not None else None))
        torch.testing.assert_close(together[i : i + 1], network(x[i : i + 1], t[i : i + 1], alone))


def test_prepared_is_all_that_a_step_needs_and_may_be_used_again(network: UNet, generator: torch.Generator):
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([400.0, 30.0])
    given = conditioned(SD1, generator, size=(8, 8))
    prepared = network.prepare(given)
    first = network(x, t, prepared)
    assert torch.equal(network(x, t, network.prepare(given)), first)
    for part in network.modules():
        if isinstance(part, attention.TransformerLayer) and part.cross_attention is not None:
            part.cross_attention.k.weight.fill_(math.nan)
            part.cross_attention.v.weight.fill_(math.nan)
    assert torch.equal(network(x, t, prepared), first)
    assert network(x, t, network.prepare(given)).isnan().all()


def test_without_context_is_with_a_context_that_adds_nothing(generator: torch.Generator):
    blind = replace(SD1, context=None)
    whole, _ = unet_pair(SD1, generator)
    for part in whole.modules():
        if isinstance(part, attention.TransformerLayer) and part.cross_attention is not None:
            part.cross_attention.out.weight.zero_()
            part.cross_attention.out.bias.zero_()
    with torch.device("meta"):
        ours = UNet(blind)
    ours.load_state_dict({k: v for k, v in whole.state_dict().items() if k in ours.state_dict()}, assign=True)
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([400.0])
    expected = whole(x, t, whole.prepare(conditioned(SD1, generator, size=(8, 8), batch=1)))
    assert torch.equal(ours(x, t, ours.prepare(Conditioning(None))), expected)


def test_bfloat16_stays_bfloat16_and_near(generator: torch.Generator):
    ours, theirs = unet_pair(XL, generator)
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([981.0])
    given = conditioned(XL, generator, size=(8, 8), batch=1)
    expected = ours(x, t, ours.prepare(given))
    assert given.context is not None
    assert given.vector is not None
    low = Conditioning(given.context.bfloat16(), given.vector.bfloat16())
    ours.bfloat16()
    actual = ours(x.bfloat16(), t, ours.prepare(low))
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected) < 0.06  # measured 0.036, diffusers 0.036
    reference = reference_output(theirs.bfloat16(), x.bfloat16(), t, low, XL)
    assert relative(actual, reference) < 0.01


@pytest.mark.parametrize("name", ["xl", "x4", "distilled"])
def test_every_weight_gets_a_gradient_and_checkpointing_the_same_one(name: str, generator: torch.Generator):
    config = CONFIGS[name]
    ours, _ = unet_pair(config, generator)
    ours.requires_grad_(requires_grad=True)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([700.0, 12.0])
    given = conditioned(config, generator, size=(8, 8))
    kept: list[int] = []
    gradients: list[dict[str, Tensor]] = []
    for ours.is_checkpointed in (False, True):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda a, s=sizes: (s.append(a.numel()), a)[1], lambda a: a):  # pyright: ignore
            ours(x, t, ours.prepare(given)).square().mean().backward()
        kept.append(sum(sizes))
        gradients.append({key: p.grad for key, p in ours.named_parameters() if p.grad is not None})
        ours.zero_grad()
    assert kept[1] < 0.5 * kept[0]
    assert gradients[0].keys() == dict(ours.named_parameters()).keys()
    for key, gradient in gradients[0].items():
        assert gradient.any(), key
        assert torch.equal(gradient, gradients[1][key]), key


def test_a_new_unet_is_the_function_zero_and_repeats(generator: torch.Generator):
    states: list[dict[str, Tensor]] = []
    for _ in range(2):
        with torch.device("meta"):
            ours = UNet(SD1)
        ours.to_empty(device="cpu")
        for parameter in ours.parameters():
            nn.init.constant_(parameter, math.nan)  # what is not drawn stays visible
        unet.initialise(ours, torch.Generator().manual_seed(3))
        states.append(ours.state_dict())
        given = conditioned(SD1, generator, size=(8, 8))
        assert not ours(torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0]), ours.prepare(given)).any()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    weight = states[0]["middle.res_in.conv_1.weight"]
    bound = 1 / math.sqrt(32 * 9)
    assert weight.abs().max() < bound
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    zeros = {key for key, value in states[0].items() if not value.any() and not key.endswith("bias")}
    assert zeros == {key for key in states[0] if key.endswith(("conv_2.weight", "proj_out.weight", "conv_out.weight"))}


def test_timestep_embedding_is_cosines_then_sines_in_float32():
    actual = unet.timestep_embedding(torch.tensor([0.0, 2.5], dtype=torch.float64), 4)
    expected = [[1, 1, 0, 0], [math.cos(2.5), math.cos(0.025), math.sin(2.5), math.sin(0.025)]]
    torch.testing.assert_close(actual, torch.tensor(expected))


def test_guidance_embedding_is_sines_then_cosines_of_a_thousand_times_the_excess():
    actual = unet.guidance_embedding(torch.tensor([1.0, 1.5]), 4)
    expected = [[0, 0, 1, 1], [math.sin(500), math.sin(0.05), math.cos(500), math.cos(0.05)]]
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=1e-5)


def test_sized_vector_puts_the_pooled_text_first_and_keeps_its_dtype():
    pooled = torch.arange(3.0)[None].bfloat16()
    actual = unet.sized_vector(pooled, torch.tensor([[0.0, 5.0]]))
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual[:, :3], pooled)
    assert torch.equal(actual[:, 3 + 256 :], unet.timestep_embedding(torch.tensor([5.0]), 256).bfloat16())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Level(channels=1280, heads=12), "Level: 1280 channels cannot be split into 12 heads"),
        (lambda: replace(SD1, levels=()), "0 levels down but 0 up"),
        (lambda: replace(SD1, up_levels=SD1.levels[:2]), "3 levels down but 2 up"),
        (lambda: replace(SD1, norm_groups=32), "16 channels cannot form 32 norm_groups"),
        (lambda: replace(X4, context=None), "a level with only_cross needs a context width"),
        (lambda: replace(SD1, middle=Level(channels=16)), "middle has 16 channels, the lowest level 32"),
        (lambda: replace(UNEVEN, up_levels=None), r"depth \(1, 2\) names 2 blocks, the U-Net has 3 here"),
        (lambda: replace(SD1, middle=Level(channels=32, depth=(1, 1))), r"depth \(1, 1\) names 2 blocks"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(make: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (SD1, Conditioning(None), r"context \(none → one expected"),
        (SD1, Conditioning(torch.zeros(1, 7, 32)), "context has width 32, this U-Net expects 24"),
        (SD1, Conditioning(torch.zeros(1, 7, 24), vector=torch.zeros(1, 8)), r"vector \(one → none expected"),
        (XL, Conditioning(torch.zeros(1, 7, 24)), r"vector \(none → one expected"),
        (X4, Conditioning(torch.zeros(1, 7, 24)), r"label \(none → one expected"),
        (CONFIGS["distilled"], Conditioning(torch.zeros(1, 7, 24)), r"guidance \(none → one expected"),
    ],
)
def test_a_conditioning_that_does_not_fit_is_refused(config: UNetConfig, given: Conditioning, message: str):
    with torch.device("meta"):
        ours = UNet(config)
    with pytest.raises(ConfigError, match=message):
        ours.prepare(given)


def test_missing_concat_is_refused():
    with torch.device("meta"):
        ours = UNet(X4)
    with pytest.raises(ConfigError, match="x and concat: 4 channels together → 7 expected"):
        ours(torch.zeros(1, 4, 8, 8), torch.zeros(1), Prepared(()))


def test_attention_is_causal_on_demand(generator: torch.Generator):
    layer = Attention(16, 4)
    x = torch.randn(1, 5, 16, generator=generator)
    other = torch.cat([x[:, :4], x[:, :1]], dim=1)  # only the last position differs
    assert torch.equal(layer(x, is_causal=True)[:, :4], layer(other, is_causal=True)[:, :4])
    assert not torch.allclose(layer(x)[:, :4], layer(other)[:, :4])
