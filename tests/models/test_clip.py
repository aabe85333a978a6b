"""CLIP: parity with transformers, which token is pooled, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.models.clip import CLIP, ImageConfig, TextConfig, initialise
from models.oracles import image_pair, relative, text_pair

TOLERANCE = 1e-5  # measured: below 3e-7

L = TextConfig(
    width=32, layers=3, heads=4, mlp=64, activation="quick_gelu", vocabulary=100, bos=97, eos=98, pad=98
)  # 99 is an added token
BIGG = replace(L, activation="gelu", projection=24, pad=0)
IMAGE = ImageConfig(width=32, layers=2, heads=4, mlp=64, activation="gelu", projection=24, patch=8, size=32)


def worded(generator: torch.Generator) -> Tensor:
    """Two prompts of 4 and 9 words, padded to 12."""
    ids = torch.full((2, 12), L.pad)
    for row, length in zip(ids, (4, 9), strict=True):
        row[0] = L.bos
        row[1 : 1 + length] = torch.randint(1, 97, (length,), generator=generator)
    return ids


@pytest.mark.parametrize("config", [L, replace(L, activation="gelu"), BIGG], ids=["l", "h", "bigg"])
def test_text_equals_transformers(config: TextConfig, generator: torch.Generator):
    ours, theirs = text_pair(config, generator)
    ids = worded(generator)
    expected = theirs(ids, output_hidden_states=True)
    actual = ours(ids)
    for state, reference in zip(actual.states, expected.hidden_states, strict=True):
        assert relative(state, reference) < TOLERANCE
    assert relative(ours.final_norm(actual.states[-1]), expected.last_hidden_state) < TOLERANCE
    pooled = expected.text_embeds if config.projection else expected.pooler_output
    assert relative(actual.pooled, pooled) < TOLERANCE
    assert 0.1 < pooled.std() < 10


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_image_equals_transformers(activation: str, generator: torch.Generator):
    ours, theirs = image_pair(replace(IMAGE, activation=activation), generator)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    expected = theirs(image, output_hidden_states=True)
    actual = ours(image)
    for state, reference in zip(actual.states, expected.hidden_states, strict=True):
        assert relative(state, reference) < TOLERANCE
    assert relative(actual.embedding, expected.image_embeds) < TOLERANCE
    assert 0.1 < actual.embedding.std() < 10


def test_parity_catches_the_wrong_gelu(generator: torch.Generator):
    ours, theirs = text_pair(L, generator)
    for layer in ours.layers:
        layer.activation = torch.nn.functional.gelu
    ids = worded(generator)
    assert relative(ours(ids).pooled, theirs(ids).pooler_output) > 100 * TOLERANCE


def test_pooled_is_at_the_first_end_of_text_even_with_larger_ids(generator: torch.Generator):
    ours, _ = text_pair(L, generator)
    ids = worded(generator)
    ids[0, 2] = 99  # a token that textual inversion has added: the largest id
    output = ours(ids)
    final = ours.final_norm(output.states[-1])
    torch.testing.assert_close(output.pooled, torch.stack([final[0, 5], final[1, 10]]))


def test_pooled_is_at_the_last_token_if_there_is_no_end_of_text(generator: torch.Generator):
    ours, _ = text_pair(L, generator)
    ids = torch.randint(0, 90, (1, 6), generator=generator)
    kept = ids.clone()
    output = ours(ids)
    torch.testing.assert_close(output.pooled, ours.final_norm(output.states[-1][:, -1]))
    assert torch.equal(ids, kept)


def test_a_token_does_not_see_those_after_it(generator: torch.Generator):
    ours, _ = text_pair(L, generator)
    ids = worded(generator)
    other = ids.clone()
    other[:, 6:] = 5
    torch.testing.assert_close(ours(ids).states[-1][:, :6], ours(other).states[-1][:, :6])
    assert not torch.allclose(ours(ids).states[-1][:, 6], ours(other).states[-1][:, 6])


def test_a_batch_equals_its_samples_one_by_one(generator: torch.Generator):
    text, _ = text_pair(BIGG, generator)
    ids = worded(generator)
    torch.testing.assert_close(text(ids).pooled[1:], text(ids[1:]).pooled)
    tower, _ = image_pair(IMAGE, generator)
    image = torch.randn(2, 3, 32, 32, generator=generator)
    torch.testing.assert_close(tower(image).embedding[:1], tower(image[:1]).embedding)


def test_bfloat16_stays_bfloat16_and_near(generator: torch.Generator):
    text, _ = text_pair(BIGG, generator)
    ids = worded(generator)
    expected = text(ids).pooled
    actual = text.bfloat16()(ids).pooled
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected) < 0.03  # measured 0.01


def test_the_pair_gives_the_towers_embeddings_at_length_one_and_trains_everything(generator: torch.Generator):
    pair = CLIP(BIGG, IMAGE)
    initialise(pair, generator)
    ids, image = worded(generator), torch.randn(2, 3, 32, 32, generator=generator)
    images, texts = pair(image, ids)
    torch.testing.assert_close(
        images * pair.image(image).embedding.norm(dim=-1, keepdim=True), pair.image(image).embedding
    )
    torch.testing.assert_close(texts * pair.text(ids).pooled.norm(dim=-1, keepdim=True), pair.text(ids).pooled)
    torch.testing.assert_close(pair.logit_scale.exp(), torch.tensor(1 / 0.07))
    loss = torch.nn.functional.cross_entropy(pair.logit_scale.exp() * images @ texts.T, torch.arange(2))
    torch.autograd.backward(loss)
    for name, parameter in pair.named_parameters():
        assert parameter.grad is not None, name
        assert name.endswith("k.bias") or parameter.grad.any(), name  # softmax removes a bias on all keys


def test_a_new_pair_is_drawn_whole_and_repeats():
    states: list[dict[str, Tensor]] = []
    for _ in range(2):
        with torch.device("meta"):
            pair = CLIP(BIGG, IMAGE)
        pair.to_empty(device="cpu")
        for parameter in pair.parameters():
            torch.nn.init.constant_(parameter, math.nan)  # what is not drawn stays visible
        initialise(pair, torch.Generator().manual_seed(3))
        states.append(pair.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert float(states[0]["logit_scale"].exp()) == pytest.approx(1 / 0.07)
    assert states[0]["text.final_norm.weight"].eq(1).all()
    stds = {  # layers 3 and 2, width 32
        "text.token_embedding.weight": 0.02,
        "text.layers.0.self_attention.q.weight": 32**-0.5,
        "text.layers.0.mlp_out.weight": (2 * 3 * 32) ** -0.5,
        "image.layers.1.self_attention.out.weight": (2 * 2 * 32) ** -0.5,
        "image.layers.1.mlp_in.weight": 64**-0.5,
        "image.position_embedding.weight": 32**-0.5,
    }
    for key, std in stds.items():
        assert float(states[0][key].std()) == pytest.approx(std, rel=0.1), key


def test_configs_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="width 32 cannot be split into 5 heads"):
        replace(L, heads=5)
    with pytest.raises(ConfigError, match="width 32 cannot be split into 3 heads"):
        replace(IMAGE, heads=3)
    with pytest.raises(ConfigError, match="size 30 is not a multiple of patch 8"):
        replace(IMAGE, size=30)
    with pytest.raises(ConfigError, match="text is projected to None, images to 24"):
        CLIP(L, IMAGE)
