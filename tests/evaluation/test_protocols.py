"""Resize kernels and protocols: laws, Pillow and torch live, and golden values of the programs that defined them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from golden.inception import PLACES, SIZES, picture
from mezzotint.errors import ConfigError
from mezzotint.evaluation.protocols import INCEPTION, Kernel, Protocol, clip_protocol, inception_protocol
from mezzotint.evaluation.resize import prepared, resize, weights
from mezzotint.models.clip import CLIP_MEAN, CLIP_STD

KERNELS: tuple[Kernel, ...] = ("tf1", "half_pixel", "antialiased_bilinear", "antialiased_bicubic")
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "inception.json").read_text())
PROGRAMS = {"torch-fidelity": "tf1", "pytorch-fid": "pytorch-fid", "clean-fid": "clean", "torchmetrics": "torchmetrics"}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("height", "width"), [(7, 5), (299, 640), (1, 1)])
def test_a_constant_stays_what_it_is(kernel: Kernel, height: int, width: int) -> None:
    grey = torch.full((1, 3, height, width), 137, dtype=torch.uint8)
    torch.testing.assert_close(resize(grey, 299, 299, kernel), torch.full((1, 3, 299, 299), 137.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rounds", [False, True])
def test_the_same_size_changes_nothing(kernel: Kernel, rounds: bool) -> None:
    pixels = picture(299, 299)[None]
    assert torch.equal(resize(pixels, 299, 299, kernel, rounds=rounds), pixels.float())


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_ramp_stays_a_ramp_away_from_borders(kernel: Kernel) -> None:
    """All kernels reproduce straight lines; tf1's is shifted to the right by half an output pixel's excess."""
    ramp = (torch.arange(40)[None, None, None] * 6).expand(1, 3, 4, 40).to(torch.uint8)
    found = resize(ramp, 4, 100, kernel)[0, 0, 0, 20:80].double()
    scale = 40 / 100
    place = torch.arange(20, 80, dtype=torch.float64)
    expected = 6 * (place * scale if kernel == "tf1" else (place + 0.5) * scale - 0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_centred_kernels_commute_with_mirroring_and_tf1_does_not(kernel: Kernel) -> None:
    pixels = picture(50, 70)[None]
    mirrored = resize(pixels.flip(-1), 299, 299, kernel).flip(-1)
    torch.testing.assert_close(mirrored, resize(pixels, 299, 299, kernel), rtol=0, atol=2e-3)
    wrong = resize(pixels.flip(-1), 299, 299, "tf1").flip(-1) - resize(pixels, 299, 299, "tf1")
    assert wrong.abs().max() > 20


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize(("before", "after"), [(7, 299), (640, 299), (300, 299), (1, 4)])
def test_weights_of_a_pixel_sum_to_one(bicubic: bool, before: int, after: int) -> None:
    rows = weights(before, after, bicubic=bicubic)
    torch.testing.assert_close(rows.sum(1), torch.ones(after, dtype=torch.float64))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_golden_pictures_of_the_programs(program: str, height: int, width: int) -> None:
    """Of torch-fidelity bit by bit; 3e-3 of 255 was measured where a program computes its kernel in float32."""
    rule = inception_protocol(PROGRAMS[program])
    image = resize(picture(height, width)[None], 299, 299, rule.kernel)[0]
    expected = torch.tensor(GOLDEN["resized"][program][f"{height}x{width}"])
    found = torch.stack([image[place] for place in PLACES])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if program == "torch-fidelity" else 5e-3)


def test_golden_pictures_tell_half_a_pixel_and_a_missing_antialias() -> None:
    """The kept mistakes: every other kernel is far outside the tolerance above."""
    for program, name in PROGRAMS.items():
        expected = torch.tensor(GOLDEN["resized"][program]["341x512"])
        for kernel in KERNELS:
            image = resize(picture(341, 512)[None], 299, 299, kernel)[0]
            off = (torch.stack([image[place] for place in PLACES]) - expected).abs().max()
            assert (off < 5e-3) == (kernel == inception_protocol(name).kernel), (program, kernel)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (299, 512), (700, 333)])
def test_bicubic_equals_pillow_on_float_channels(height: int, width: int) -> None:
    pixels = picture(height, width)
    theirs = [
        np.asarray(Image.fromarray(plane.numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC))
        for plane in pixels
    ]
    expected = torch.as_tensor(np.stack(theirs)).clamp(0, 255)
    # 1.2e-4 measured: Pillow stores float32 between its passes
    torch.testing.assert_close(resize(pixels[None], 299, 299, "antialiased_bicubic")[0], expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize(("height", "width"), [(64, 48), (224, 512), (700, 333)])
@pytest.mark.parametrize("kernel", KERNELS[2:])
def test_rounded_kernels_equal_pillow_on_8_bits_exactly(height: int, width: int, kernel: Kernel) -> None:
    """Columns first, as Pillow did with every picture until 12.2; 13 begins with the rows of tall pictures,
    which moves 8-bit results by up to 15. Asked for one axis at a time, all versions agree.
    """
    pixels = picture(height, width)
    how = Image.Resampling.BICUBIC if kernel.endswith("bicubic") else Image.Resampling.BILINEAR
    theirs = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((224, height), how).resize((224, 224), how)
    expected = torch.as_tensor(np.array(theirs)).permute(2, 0, 1).float()
    assert torch.equal(resize(pixels[None], 224, 224, kernel, rounds=True)[0], expected)


@pytest.mark.parametrize(("kernel", "antialias"), [("half_pixel", False), ("antialiased_bilinear", True)])
def test_bilinear_kernels_equal_torch(kernel: Kernel, antialias: bool) -> None:
    pixels = picture(411, 123)[None]
    theirs = F.interpolate(pixels.float(), (299, 299), mode="bilinear", align_corners=False, antialias=antialias)
    torch.testing.assert_close(resize(pixels, 299, 299, kernel), theirs, rtol=0, atol=5e-3)


def test_inputs_have_the_range_of_their_protocol() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 299, 2)
    ends = {name: (float(x.min()), float(x.max())) for name, x in _both_ends(pixels).items()}
    assert ends["tf1"] == ends["adm"] == ends["clean"] == ends["torchmetrics"] == (-1.0, 127 / 128)
    assert ends["pytorch-fid"] == (-1.0, 1.0)


def _both_ends(pixels: Tensor) -> dict[str, Tensor]:
    return {name: prepared(rule, pixels) for name, rule in INCEPTION.items()}


def test_clip_pictures_are_those_of_its_own_processor() -> None:
    """transformers' processor live: shorter side, middle, mean and deviation; whole numbers between."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pixels = picture(341, 512)
    theirs = CLIPImageProcessorPil()(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")
    ours = prepared(clip_protocol(224, CLIP_MEAN, CLIP_STD), pixels[None])
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)


def test_a_changed_rule_changes_the_digest_and_words_do_not() -> None:
    rule = inception_protocol("tf1")
    changes: list[Protocol] = [
        replace(rule, version=2), replace(rule, kernel="half_pixel"), replace(rule, spread=(127.5, 128.0, 128.0)),
        replace(rule, rounds=True), replace(rule, size=298), replace(rule, fit="crop"),
    ]  # fmt: skip
    assert len({rule.digest, *(change.digest for change in changes)}) == 7
    assert replace(rule, meaning="").digest == rule.digest
    assert rule.digest == "a44499cf33f6"  # what stored statistics say
    assert rule.label == "tf1/1"


def test_an_unknown_protocol_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown protocol 'pytorchfid'; did you mean 'pytorch-fid'"):
        inception_protocol("pytorchfid")
