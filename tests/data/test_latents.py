"""Cached latents: those of each picture alone, in its bucket; other weights, cuts or pictures never meet old ones."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from data.test_filters import stored, textured
from mezzotint.data.buckets import BucketRule
from mezzotint.data.latents import bucket_moments
from mezzotint.data.pictures import PictureSet
from mezzotint.data.sample import Size
from mezzotint.errors import MezzotintError
from mezzotint.models.unet import initialise
from mezzotint.models.vae import AutoencoderKL, VAEConfig

RULE = BucketRule(resolution=32, step=16)
SHAPES = [(40, 40), (80, 40), (30, 70), (64, 32), (32, 32)]


def pictures() -> PictureSet:
    return PictureSet(tuple(stored(f"p{i}", textured(i, 80).resize(shape)) for i, shape in enumerate(SHAPES)))


def autoencoder(seed: int = 0) -> AutoencoderKL:
    network = AutoencoderKL(VAEConfig(channels=(8, 8), blocks=1, norm_groups=4)).eval()
    initialise(network, torch.Generator("cpu").manual_seed(seed))
    return network


def test_every_sample_has_the_moments_of_its_own_cut(tmp_path: Path) -> None:
    found, places = pictures().placed(RULE, view=3)
    network = autoencoder()
    moments = bucket_moments(found, places, network, tmp_path)
    assert len({place.target for place in places}) == 3
    for sample, place in enumerate(places):
        with torch.no_grad():
            alone = network.moments(found.cut([sample], places).float() / 127.5 - 1)
        assert alone.shape[-2:] == (place.target.height // 2, place.target.width // 2)
        torch.testing.assert_close(moments.of([sample]), alone)
    assert torch.equal(moments.ids([1, 3]), torch.tensor([places[1].ids, places[3].ids]).float())
    with pytest.raises(ValueError, match="one batch of 2 buckets"):
        moments.of([0, 1])


def test_only_what_a_bucket_depends_on_makes_it_anew(tmp_path: Path) -> None:
    found, places = pictures().placed(RULE)
    network = autoencoder()

    def folders() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    first = bucket_moments(found, places, network, tmp_path)
    begun = folders()
    bucket_moments(found, places, network, tmp_path)
    assert folders() == begun
    other = bucket_moments(found, places, autoencoder(1), tmp_path)
    assert len(folders()) == 2 * len(begun)
    assert not torch.equal(other.of([0]), first.of([0]))
    square = [i for i, place in enumerate(places) if place.target == Size(32, 32)]
    shifted = [
        place._replace(left=place.resized.width - 32) if i in square else place for i, place in enumerate(places)
    ]
    shifted[0] = shifted[0]._replace(resized=Size(40, 40), left=8)
    bucket_moments(found, shifted, network, tmp_path)
    assert len(folders()) == 2 * len(begun) + 1
    repainted = PictureSet((stored("p0", textured(8, 40)), *found.pictures[1:]))
    assert not torch.equal(bucket_moments(repainted, places, network, tmp_path).of([0]), first.of([0]))
    assert len(folders()) == 2 * len(begun) + 2
    wider = PictureSet((*found.pictures, stored("more", textured(9, 40))))
    bucket_moments(wider, [*places, RULE.place(Size(40, 40))], network, tmp_path)
    assert len(folders()) == 2 * len(begun) + 3


def test_latent_that_is_not_finite_names_its_picture(tmp_path: Path) -> None:
    found, places = pictures().placed(RULE)
    network = autoencoder()
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(MezzotintError, match="the latent of p0 is not finite"):
        bucket_moments(found, places, network, tmp_path)


def test_cut_is_where_the_placement_says() -> None:
    halves = Image.new("RGB", (64, 32), "red")
    halves.paste((0, 0, 255), (32, 0, 64, 32))
    found = PictureSet((stored("halves", halves),))
    rule = BucketRule(resolution=32, step=32, shortest=32, longest=32)
    for draw, color in ((0.0, [255, 0, 0]), (1 - 1e-9, [0, 0, 255])):
        cut = found.cut([0], [rule.place(Size(64, 32), (draw, 0.0))])[0]
        assert all(torch.equal(cut[:, row, column], torch.tensor(color).byte()) for row, column in ((5, 2), (30, 29)))
