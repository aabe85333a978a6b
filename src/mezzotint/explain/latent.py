"""Latent → pixels: the channels, the decoder, what a round trip through the autoencoder loses."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mezzotint.explain.blocks import (
    Block,
    Section,
    Telling,
    code_of,
    grey,
    heat,
    picture,
    pictures,
    sizes,
    table,
    timed,
)
from mezzotint.explain.steps import DECODED, Scene, pixels
from mezzotint.images import to_array, to_image
from mezzotint.models.vae import AutoencoderKL, Decoder

ERROR_TOP = 0.5  # of the 2 from black to white: the brightest colour of the loss map


def latent_section(scene: Scene) -> Telling[Section]:
    """Section 7, with the decoder timed."""
    system, latent = scene.system, scene.moments[-1].answer
    decoded, ms = yield from timed(system.decoding(latent))
    image = torch.as_tensor(to_array(scene.image))[None]
    encoded = system.encode(image).mean
    yield
    back = (yield from system.decoding(encoded)).clamp(-1, 1)
    loss = (back - image).abs()
    psnr = 10 * math.log10(4 / max(float((back - image).square().mean()), 1e-12))
    lost = float(loss.mean()) * 127.5
    channels = [
        picture(grey(c), f"channel {i + 1}", f"mean {float(c.mean()):+.2f}, deviation {float(c.std()):.2f}")
        for i, c in enumerate(latent[0])
    ]
    small = _small(latent)
    kept = torch.eye(small.shape[1])[:, None, :, None, None]  # one channel at a time
    alone: list[Block] = []
    for i, one in enumerate(kept):
        alone.append(picture(pixels(system, small * one), f"only channel {i + 1}"))
        yield
    ratio = image.numel() / latent.numel()
    rows = [
        ("picture", sizes(image[0]), f"{image.numel():,}"),
        ("latent", sizes(latent[0]), f"{latent.numel():,}"),
    ]
    return Section(
        id="latent",
        title="The latent becomes pixels",
        lead=f"The last latent holds {ratio:.0f} times fewer numbers than the picture. The decoder of the autoencoder "
        "paints the pixels; it has learnt from real pictures how small patches look. What it cannot say is lost for "
        "every picture of this model: encode the finished picture, decode it again, and compare.",
        formula="picture = decode(latent / scaling);   loss = |decode(encode(picture)) - picture|",
        shapes=(f"latent {sizes(latent)}", f"picture {sizes(decoded)}"),
        ms=ms,
        code=(code_of(AutoencoderKL.decode), code_of(Decoder.forward)),
        blocks=[
            pictures(channels, "The last latent, channel by channel"),
            pictures(alone, "What the decoder makes of one channel when the others are zero"),
            pictures(
                [
                    picture(scene.image, "the picture"),
                    picture(to_image(back[0].numpy()), "after a round trip", f"PSNR {psnr:.1f} dB"),
                    picture(heat(loss[0].mean(0), ERROR_TOP), "what was lost", f"mean {lost:.1f} of 255"),
                ],
                "What the autoencoder loses",
                side=192,
            ),
            table(("", "shape", "numbers"), rows),
        ],
    )  # fmt: skip


def _small(latent: Tensor) -> Tensor:
    """The latent with at most DECODED places."""
    scale = max(1, math.ceil(math.sqrt(latent.shape[-1] * latent.shape[-2] / DECODED)))
    return F.avg_pool2d(latent, scale) * scale if scale > 1 else latent
