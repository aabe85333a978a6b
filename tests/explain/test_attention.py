"""Maps are what attention is: known answers, sums over tokens, the same whatever kernel runs, bounded in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.explain.attention import FullMaps, Groups, Maps, Shape, cross_attention, probabilities, resized
from mezzotint.models.attention import Attention
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet

WORDS = Groups(("start", "cat", "end"), (0, 1, 2, 2))


class OneLayer(nn.Module):
    """A network that does nothing but look at its context."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross_attention = Attention(width, heads, context=width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.cross_attention(x, self.cross_attention.keys_values(context))


def synthetic() -> tuple[OneLayer, Tensor, Tensor]:
    """Queries and keys are what goes in; the left half of 4 x 4 places asks for token 1, the right half for token 3."""
    network = OneLayer(4, 1)
    with torch.no_grad():
        network.cross_attention.q.weight.copy_(torch.eye(4))
        network.cross_attention.k.weight.copy_(torch.eye(4))
    context = torch.eye(4)[None]  # token n is the n-th unit vector
    asked = torch.tensor([1, 1, 3, 3]).repeat(4)
    return (
        network,
        2 * torch.eye(4)[asked][None],
        context,
    )  # [1 16 4]: q k / sqrt(4) is 1 at the token asked for, else 0


def test_a_known_attention_gives_the_known_map() -> None:
    network, x, context = synthetic()
    maps = Maps(groups=WORDS, latent=Shape(4, 4), steps=frozenset({0}))
    with maps.captured(network, [0], step=0):
        network(x, context)
    e = torch.e
    left, right = e / (e + 3), 1 / (e + 3)  # share of a token that is asked for, of any other
    cat = torch.tensor([left, left, right, right]).expand(4, 4)
    end = torch.tensor([2 * right, 2 * right, left + right, left + right]).expand(4, 4)  # tokens 2 and 3
    expected = torch.stack([torch.full((4, 4), right), cat, end])
    torch.testing.assert_close(maps.by_step[0].value, expected)
    torch.testing.assert_close(maps.by_layer[""].value, expected)
    torch.testing.assert_close(maps.by_head[""].value, expected[None])


def test_a_layer_without_its_scale_would_give_another_map() -> None:
    """What the known answer catches: probabilities of q k without 1 / sqrt(d)."""
    network, x, context = synthetic()
    keys = network.cross_attention.keys_values(context)[0][0]
    wrong = (x[0] @ keys[0].T).softmax(-1)
    right = probabilities(network.cross_attention, x[0], keys)[0]
    assert (wrong - right).abs().max() > 0.1


def test_probabilities_are_those_of_the_fast_attention(generator: torch.Generator) -> None:
    """With the identity as values, PyTorch's fused attention returns its own probabilities."""
    layer = Attention(16, 2, context=12)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    x, context = torch.randn(1, 9, 16, generator=generator), torch.randn(1, 7, 12, generator=generator)
    keys = layer.keys_values(context)[0]
    q = layer.q(x).view(1, 9, 2, 8).transpose(1, 2)
    fused = F.scaled_dot_product_attention(q, keys, torch.eye(7).expand(1, 2, 7, 7))
    torch.testing.assert_close(probabilities(layer, x[0], keys[0]), fused[0])


def _run(unet: UNet, maps: Maps, generator: torch.Generator, steps: int) -> list[Tensor]:
    context = torch.randn(1, 77, 32, generator=generator)
    prepared = unet.prepare(Conditioning(context))
    outputs: list[Tensor] = []
    for step in range(steps):
        x = torch.randn(1, 4, *maps.latent, generator=generator)
        with maps.captured(unet, [0], step), torch.no_grad():
            outputs.append(unet(x, torch.tensor([500.0]), prepared))
    return outputs


@pytest.fixture
def unet(generator: torch.Generator) -> UNet:
    network = UNet(PRESETS["tiny"].unet)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return network.requires_grad_(False)


SENTENCE = Groups(("start", *(f"word {i}" for i in range(5)), "end"), (0, 1, 2, 2, 3, 4, 5, *([6] * 70)))


@pytest.mark.parametrize("latent", [Shape(8, 8), Shape(9, 14), Shape(5, 40)])
def test_maps_sum_to_1_over_groups_at_every_size(latent: Shape, unet: UNet, generator: torch.Generator) -> None:
    """Odd sizes are halved and rounded up inside the U-Net; pooling and enlarging keep the sum."""
    maps = Maps(groups=SENTENCE, latent=latent, steps=frozenset({0, 2}))
    _run(unet, maps, generator, 3)
    assert set(maps.by_step) == {0, 2}
    assert list(maps.by_layer) == list(cross_attention(unet))
    kept = [mean.value for found in (maps.by_step, maps.by_layer, maps.by_head) for mean in found.values()]
    for values in kept:
        total = values.sum(-3)
        torch.testing.assert_close(total, torch.ones_like(total))
        without_padding = values[..., :-1, :, :].sum(-3)  # the sum that a capture which forgot the padding would have
        assert (without_padding < 0.9).all()


def test_resizing_keeps_means_and_sums(generator: torch.Generator) -> None:
    maps = torch.rand(3, 8, 12, generator=generator).softmax(0)
    smaller = resized(maps, Shape(4, 6))
    torch.testing.assert_close(smaller.mean((1, 2)), maps.mean((1, 2)))
    for shape in (Shape(3, 5), Shape(16, 24), Shape(8, 12)):
        torch.testing.assert_close(resized(maps, shape).sum(0), torch.ones(shape))


def test_what_is_kept_does_not_grow_with_the_steps(unet: UNet, generator: torch.Generator) -> None:
    def held(steps: int) -> int:
        maps = Maps(groups=SENTENCE, latent=Shape(8, 8), steps=frozenset({0, 1}))
        _run(unet, maps, generator, steps)
        means = [*maps.by_step.values(), *maps.by_layer.values(), *maps.by_head.values()]
        return sum(mean.value.numel() for mean in means)

    assert held(2) == held(7)


def test_looking_leaves_the_output_bit_identical_and_no_hook_behind(unet: UNet, generator: torch.Generator) -> None:
    maps = Maps(groups=SENTENCE, latent=Shape(8, 8), steps=frozenset({0}))
    state = generator.get_state()
    seen = _run(unet, maps, generator, 2)
    generator.set_state(state)
    prepared = unet.prepare(Conditioning(torch.randn(1, 77, 32, generator=generator)))
    for output in seen:
        x = torch.randn(1, 4, 8, 8, generator=generator)
        assert torch.equal(unet(x, torch.tensor([500.0]), prepared), output)
    counts = {name: mean.count for name, mean in maps.by_layer.items()}
    assert set(counts.values()) == {2}, "a call after the capture was counted"


def test_full_maps_hold_every_head_token_and_step(unet: UNet, generator: torch.Generator, tmp_path: Path) -> None:
    full = FullMaps(tmp_path / "maps.npz")
    maps = Maps(groups=SENTENCE, latent=Shape(8, 8), steps=frozenset({0, 1}), full=full)
    _run(unet, maps, generator, 2)
    full.close()
    with np.load(tmp_path / "maps.npz") as found:
        assert len(found.files) == 2 * len(maps.by_layer)
        name = next(iter(maps.by_layer))
        both = torch.stack([torch.as_tensor(found[f"step-00{step}/{name}"]).float() for step in (0, 1)])
    assert both.shape == (2, 2, 77, 8, 8)  # steps heads tokens h w
    torch.testing.assert_close(both.sum(2), torch.ones(2, 2, 8, 8), atol=2e-3, rtol=0)  # float16 holds 11 bits
    by_token = F.one_hot(torch.tensor(SENTENCE.of_token), 7).float()
    mean = torch.einsum("shnij,ng->gij", both, by_token) / 4
    torch.testing.assert_close(mean, maps.by_layer[name].value, atol=1e-3, rtol=0)
