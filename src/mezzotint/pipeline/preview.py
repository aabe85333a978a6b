"""What a latent will look like, without decoding it: one colour per position, by a linear map.

The map is fitted once per autoencoder, by least squares on drawn pictures that it encodes, and travels with a model in
`mezzotint.json` under "preview". For models that bring none it is fitted when first needed and remembered by the
autoencoder's files.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mezzotint.checkpoints.files import read_json
from mezzotint.errors import CheckpointError
from mezzotint.images import to_image
from mezzotint.models.vae import AutoencoderKL
from mezzotint.storage import atomic, cache_folder

PICTURES = 32  # of either kind
SIDE = 8  # latent positions of a drawn picture's side
CACHED = "previews.json"


@torch.no_grad()
def fit_preview(vae: AutoencoderKL) -> Float[Tensor, "k 3"]:
    """Weights from the channels of a latent and a constant 1 (k of them together) to the colour at its position."""
    latents: list[Tensor] = []
    colours: list[Tensor] = []
    parameter = next(vae.parameters())
    for image in drawn(SIDE * vae.factor):
        mean, _ = vae.encode(image.to(parameter.device, parameter.dtype))
        latents.append(mean.float().cpu()[0].flatten(1))
        colours.append(F.avg_pool2d(image, vae.factor)[0].flatten(1))
    seen = torch.cat(latents, dim=1)
    seen = torch.cat([seen, torch.ones(1, seen.shape[1])]).double().T  # [l k]
    return (seen.pinverse() @ torch.cat(colours, dim=1).double().T).float()


def stated(weights: Float[Tensor, "k 3"]) -> list[list[float]]:
    """The weights as `mezzotint.json` holds them."""
    return [[round(value.item(), 5) for value in row] for row in weights]


def drawn(side: int) -> list[Float[Tensor, "1 3 h w"]]:
    """Smooth pictures, and discs of one colour on another or on white, because pictures have edges; always the same."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, 3, 3, generator=generator) * 2.4 - 1.2
    smooth = F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True).clamp(-1, 1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    left, top, radius = torch.rand(3, PICTURES, 1, 1, 1, generator=generator) - 0.5
    inside = (x - left) ** 2 + (y - top) ** 2 < (0.5 + 0.4 * radius) ** 2  # [p 1 h w]
    disc, ground = torch.randint(3, (2, PICTURES, 3, 1, 1), generator=generator) - 1.0  # black, grey, white by channel
    ground[::2] = 1
    return [picture[None] for picture in torch.cat([smooth, torch.where(inside, disc, ground)])]


def previewed(latent: Float[Tensor, "1 c h w"], weights: Float[Tensor, "k 3"]) -> Image.Image:
    """The picture of a latent, one pixel per position."""
    flat = torch.cat([latent[0].flatten(1), torch.ones(1, latent[0, 0].numel())])  # [k l]
    return to_image((weights.T @ flat).reshape(3, *latent.shape[2:]).numpy())


def known_preview(info: object, channels: int) -> Float[Tensor, "k 3"] | None:
    """The weights that a model's `mezzotint.json` states; None if it states none that fit its latents."""
    if not isinstance(info, list):
        return None
    try:
        weights = torch.tensor(info, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        return None
    return weights if weights.shape == (channels + 1, 3) and weights.isfinite().all() else None


def remembered_preview(vae: AutoencoderKL, files: Sequence[Path]) -> Float[Tensor, "k 3"]:
    """The weights for an autoencoder of these files: from the cache, else fitted and kept there."""
    key = "|".join(f"{path.resolve()}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files)
    path = cache_folder() / CACHED
    try:
        known = read_json(path)
    except CheckpointError:
        known = dict[str, object]()
    weights = known_preview(known.get(key), vae.config.latent_channels)
    if weights is None:
        weights = torch.tensor(stated(fit_preview(vae)))
        try:
            with atomic(path) as file:
                file.write(json.dumps(known | {key: stated(weights)}).encode())
        except OSError:
            return weights  # a folder that cannot be written costs time, nothing else
    return weights
