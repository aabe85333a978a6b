"""What is particular to the autoencoder and to CLIP; and one U-Net step against diffusers, gradient by gradient."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.checkpoints.diffusers import unet_map
from mezzotint.checkpoints.translate import invert
from mezzotint.diffusion.loss import snr_weight, squared_error, target
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, sized_vector
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from mezzotint.prompts.encode import padded_ids
from mezzotint.prompts.tokenizer import from_folder
from mezzotint.training.autoencoder import PatchDiscriminator, balance, normalise
from mezzotint.training.clip import also_true, contrastive
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.vocabulary import merges, vocabulary_folder
from models.oracles import relative, unet_pair

VAE = VAEConfig(channels=(8, 16), blocks=1, norm_groups=4, scaling=1.0)


def test_normalising_latents_changes_no_picture(generator: torch.Generator) -> None:
    """The fold is exact: same pictures, latents shifted and scaled, deviations scaled alike."""
    network = AutoencoderKL(VAE).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    image = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    before = network.encode(image)
    picture = network.decode(before.mean)
    mean, std = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    normalise(network, mean, std)
    after = network.encode(image)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(after.std, before.std / std[:, None, None])
    torch.testing.assert_close(network.decode(after.mean), picture)


def test_balance_makes_both_gradients_equally_large(generator: torch.Generator) -> None:
    last = torch.randn(5, generator=generator).requires_grad_()
    reconstruction, deception = (3 * last).sum(), (0.01 * last).sum()
    weight = balance(reconstruction, deception, last)
    assert float(weight) == pytest.approx(3 * 5**0.5 / (0.01 * 5**0.5 + 1e-4))
    assert float(balance(1e9 * reconstruction, deception, last)) == 1e4


def test_discriminator_judges_patches() -> None:
    """A logit per 2 pixels with one layer, per 8 with three; a distant pixel moves none."""
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    logits = PatchDiscriminator(8, 1)(image)
    assert logits.shape == (1, 1, 32, 32)
    (gradient,) = torch.autograd.grad(logits[0, 0, 0, 0], image)
    assert gradient[..., :3, :3].abs().sum() > 0
    assert gradient[..., 40:, 40:].abs().sum() == 0
    assert PatchDiscriminator(8, 3)(image).shape == (1, 1, 8, 8)


def test_contrastive_without_shared_captions_is_cross_entropy(generator: torch.Generator) -> None:
    logits = torch.randn(5, 5, generator=generator)
    wanted = torch.arange(5)
    expected = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
    total, _ = contrastive(logits, torch.zeros(5, 5, dtype=torch.bool))
    torch.testing.assert_close(total, expected)


def test_shared_captions_are_no_wrong_answers() -> None:
    """ "a heart" is true of both hearts; "a heart, flat" only of one. Perfect similarity then costs nothing."""
    known = [frozenset({"a heart", "a heart, flat"}), frozenset({"a heart", "a heart, 3d"}), frozenset({"a cat"})]
    said = ["a heart", "a heart, 3d", "a cat"]
    ignored = also_true(known, said)
    assert torch.equal(ignored, torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]]).bool())
    logits = 100.0 * torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
    total, hits = contrastive(logits, ignored)
    assert float(total) == pytest.approx(0, abs=1e-6)
    assert hits == 1
    assert float(contrastive(logits, torch.zeros(3, 3, dtype=torch.bool))[0]) > 0.2


def test_vocabulary_has_clips_form(tmp_path: Path) -> None:
    """Learnt merges are used, everything can be spelt, and the folder is a tokenizer that ours reads."""
    captions = ["a red apple, flat emoji", "a red heart, flat emoji", "a Red car, 3d emoji"] * 3
    folder = vocabulary_folder(captions, 560, tmp_path)
    assert folder == vocabulary_folder(list(reversed(captions)), 560, tmp_path)
    tokenizer = from_folder(folder)
    size = tokenizer.engine.get_vocab_size()
    assert (tokenizer.bos, tokenizer.eos) == (size - 2, size - 1)
    assert len(tokenizer.encode("red emoji")) == 2
    assert tokenizer.encode("RED") == tokenizer.encode("red")
    assert len(tokenizer.encode("日本")) == 6  # bytes
    ids = padded_ids(tokenizer, ["red", "a red apple"])
    long, short = tokenizer.encode("a red apple"), tokenizer.encode("red")
    rows = [[size - 2, *short, *[size - 1] * (len(long) - len(short) + 1)], [size - 2, *long, size - 1]]
    assert torch.equal(ids, torch.tensor(rows))
    assert merges(captions, 5) == merges(captions, 40)[:5]


@pytest.mark.parametrize("name", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("preset", ["tiny", "tiny-xl"])
def test_one_unet_step_equals_diffusers(preset: str, name: str, generator: torch.Generator) -> None:
    """The whole way from latent to gradients, min-SNR weighted: loss to 1e-6, every gradient to 1e-4 relative."""
    config = PRESETS[preset].unet
    ours, theirs = (network.requires_grad_() for network in unet_pair(config, generator))
    schedule = NoiseSchedule.scaled_linear()
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    context, t = torch.randn(2, 5, config.context or 0, generator=generator), torch.tensor([7, 803])
    x, wanted = schedule.add_noise(x0, noise, t), target(name, schedule, x0, noise, t)
    weight = snr_weight(name, schedule, t, 5.0)
    pooled, ids = torch.randn(2, 32, generator=generator), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)

    added = {"text_embeds": pooled, "time_ids": ids} if config.vector else None
    output = theirs(x, t, context, added_cond_kwargs=added).sample
    expected = ((output - wanted).square().mean((1, 2, 3)) * weight.float()).mean()
    keys = {entry.key: entry for entry in unet_map(config).values()}
    named = [(key, parameter) for key, parameter in theirs.named_parameters() if key in keys]
    reference = dict(zip(keys, torch.autograd.grad(expected, [dict(named)[key] for key in keys]), strict=True))

    with ExplicitAttention():
        vector = sized_vector(pooled, ids) if config.vector else None
        said = ours(x, t.float(), ours.prepare(Conditioning(context, vector=vector)))
        loss = squared_error(said, wanted, weight).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    parameters = dict(ours.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    found = invert(unet_map(config), gradients)
    assert found.keys() == reference.keys()
    assert max(relative(found[key], gradient) for key, gradient in reference.items()) < 1e-4
