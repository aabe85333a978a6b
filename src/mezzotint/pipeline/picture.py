"""One picture of a request: its random numbers, its trajectory and its pixels.

Random numbers come from one CPU generator per picture, in the order of diffusers' pipelines, so that the same seed
gives the same picture: noise of the embedding to vary, posterior sample of the given image, initial noise, posterior
sample of the masked image, then the sampler's draws.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mezzotint.diffusion.brownian import BrownianPath
from mezzotint.diffusion.guidance import guided, masked, remembering, unguided
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import Noise, NoiseLevel, Query, Row, Rows, Stage, staged
from mezzotint.images import feathered, fitted, pasted, to_array, to_image, to_mask
from mezzotint.kernels.autoencoder import Bands, finished
from mezzotint.kernels.memory import Memory
from mezzotint.models.vae import Posterior
from mezzotint.names import SAMPLERS as NAMES
from mezzotint.pipeline.condition import Sides
from mezzotint.pipeline.drive import Watch
from mezzotint.pipeline.levels import LEVELS
from mezzotint.pipeline.resolve import Resolved
from mezzotint.pipeline.unclip import clip_pixels, noised_vector

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System


@dataclass
class Studio:
    """What the pictures of one request share; computed once, when first needed."""

    system: "System"
    resolved: Resolved
    sides: Sides
    refiner: "tuple[System, Sides] | None" = None
    watch: Watch | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of a latent: [1 c h w]."""
        request, vae = self.resolved.request, self.system.vae
        return 1, vae.config.latent_channels, (request.height or 0) // vae.factor, (request.width or 0) // vae.factor

    @property
    def is_inpainting_model(self) -> bool:
        """Whether the U-Net is told mask and masked image as further channels."""
        return self.system.unet.config.in_channels > self.system.vae.config.latent_channels

    @cached_property
    def original(self) -> Image.Image:
        """The given image at the size that the model works at."""
        return self._fitted("image").convert("RGB")

    @cached_property
    def mask(self) -> np.ndarray[Any, np.dtype[np.float32]]:  # Any: numpy's shape parameter
        """[h w] at the size that the model works at; 1 where it is made again."""
        return to_mask(self._fitted("mask"))

    @cached_property
    def latent_mask(self) -> Tensor:
        """[1 1 h w] of the latent."""
        return F.interpolate(torch.as_tensor(self.mask)[None, None], self.shape[2:])

    @cached_property
    def posterior(self) -> Posterior:
        """Of the given image."""
        return self.system.encode(torch.as_tensor(to_array(self.original))[None])

    @cached_property
    def masked_posterior(self) -> Posterior:
        """Of the given image with grey where it is made again."""
        return self.system.encode(torch.as_tensor(to_array(self.original) * (1 - self.mask))[None])

    @cached_property
    def embedding(self) -> Tensor:
        """[1 p] CLIP embedding of the picture to vary."""
        request, tower = self.resolved.request, self.system.image_tower
        assert request.reference is not None
        assert tower is not None
        image = request.reference.open("reference").convert("RGB")
        return self.system.embed(clip_pixels(image, tower.config.size, request.reference_crop))

    def _fitted(self, name: str, size: tuple[int, int] | None = None) -> Image.Image:
        request = self.resolved.request
        picture = request.image if name == "image" else request.mask
        assert picture is not None
        return fitted(picture.open(name), *(size or (request.width or 0, request.height or 0)), request.resize)

    def rows(self, seed: int) -> Rows:
        """The trajectory of the picture with this seed; returns its latent."""
        generator = torch.Generator("cpu").manual_seed(seed)
        request, plan, levels = self.resolved.request, self.resolved.plan, self.resolved.levels
        sides, latent, masked_latent = self.sides, None, None
        if request.reference is not None:
            sides = self._varied(sides, _randn(self.embedding.shape, generator))
        is_masked, is_pure = request.mask is not None, self.resolved.is_pure_noise
        if request.image is not None and not (is_pure and self.is_inpainting_model):
            latent = self.posterior.sample(_randn(self.shape, generator))
        noise = _randn(self.shape, generator)
        if is_masked:  # drawn for plain models, too: diffusers does, and samplers that draw would differ
            masked_latent = _randn(self.shape, generator)
        if is_masked and masked_latent is not None and self.is_inpainting_model:
            concat = torch.cat([self.latent_mask, self.masked_posterior.sample(masked_latent)], dim=1)
            sides = Sides(
                sides.conditional._replace(concat=concat), sides.unconditional._replace(concat=concat), sides.warnings
            )
        stage = self._guided(self.system, sides, "base")
        if is_masked and latent is not None and not self.is_inpainting_model:
            inside = masked(stage, latent, self.latent_mask, noise)
            # At full strength diffusers starts from noise alone: the given image appears at the second level.
            stage = _first(stage, inside, levels[0].sigma) if is_pure else inside
        x = plan.initial_scale * noise if latent is None or is_pure else latent + levels[0].sigma * noise
        x = yield from self._run(x, self._watched(_clipped(stage, plan.clip), "base"), self._noise(generator))
        if is_masked and latent is not None and not self.is_inpainting_model:
            x = self.latent_mask * x + (1 - self.latent_mask) * latent  # also where the last level is not 0
        return x

    def _run(self, x: Tensor, stage: Stage, noise: Noise) -> Rows:
        plan, levels, handover = self.resolved.plan, self.resolved.levels, self.resolved.handover
        split = len(levels) - 1 if handover is None else handover - self.resolved.start
        x = yield from self._sampled(x, levels[: split + 1], stage, noise)
        if self.refiner is not None:
            system, sides = self.refiner
            stage = self._watched(self._guided(system, sides, "refiner"), "refiner")
            x = yield from self._sampled(x, levels[split:], stage, noise)
        return x * plan.final_scale

    def _sampled(self, x: Tensor, levels: tuple[NoiseLevel, ...], stage: Stage, noise: Noise) -> Rows:
        plan = self.resolved.plan
        sampler = SAMPLERS[plan.sampler]
        return (yield from staged(sampler(x, levels, noise=noise, schedule=plan.schedule, **plan.options), stage))

    def _watched(self, stage: Stage, network: str) -> Stage:
        return self.watch.stage(stage, network) if self.watch else stage

    def _noise(self, generator: torch.Generator) -> Noise:
        plan = self.resolved.plan
        if NAMES[plan.sampler].is_brownian:
            highest = max(plan.schedule.sigma_max, plan.levels[0].sigma)  # the same path at every step count
            return BrownianPath(self.shape, highest, generator)
        return lambda sigma_from, sigma_to: _randn(self.shape, generator)

    def _guided(self, system: "System", sides: Sides, network: str) -> Stage:
        level = LEVELS[self.resolved.request.level]
        stage = self._guided_every(system, sides, network, level.guidance_every)
        if level.blocks_every == 1:
            return stage
        return remembering(stage, Memory(level.blocks_every, level.whole_first))

    def _guided_every(self, system: "System", sides: Sides, network: str, every: int) -> Stage:
        request = self.resolved.request
        scale = 1.0 if request.guidance is None else request.guidance
        if scale == 1 or system.unet.config.guidance:
            return unguided(sides.conditional, network=network)
        return guided(
            sides.conditional,
            sides.unconditional,
            scale,
            rescale=request.guidance_rescale,
            parameterisation=system.network.parameterisation,
            interval=request.guidance_interval,
            every=every,
            network=network,
        )

    def _varied(self, sides: Sides, noise: Tensor) -> Sides:
        request, statistics = self.resolved.request, self.system.statistics
        assert statistics is not None
        vector = noised_vector(self.embedding, statistics, request.reference_noise, noise)
        return Sides(
            sides.conditional._replace(vector=vector),
            sides.unconditional._replace(vector=torch.zeros_like(vector)),
            sides.warnings,
        )

    def finished(self, latent: Tensor) -> Image.Image:
        """The pixels of a latent, with the input's own outside the feathered mask."""
        return finished(self.finishing(latent))

    def finishing(self, latent: Tensor) -> Bands[Image.Image]:
        """`finished` that yields now and then, so that closing it stops there."""
        request = self.resolved.request
        image = yield from self.system.decoding(latent)
        made = to_image(image[0].numpy())
        if request.mask is None or not request.paste:
            return made
        size = request.canvas or made.size
        mask = feathered(to_mask(self._fitted("mask", size)), request.feather)
        return pasted(self._fitted("image", size), fitted(made, *size), mask)


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _first(start: Stage, rest: Stage, sigma: float) -> Stage:
    """`start` for the query at `sigma`, `rest` for those below."""

    def stage(query: Query) -> Generator[list[Row], list[Tensor], Tensor]:
        return (yield from (start if query.sigma >= sigma else rest)(query))

    return stage


def _clipped(inner: Stage, limit: float | None) -> Stage:
    """x0 within ± limit: what `clip_sample` of a scheduler config asks for."""
    if limit is None:
        return inner

    def stage(query: Query) -> Generator[list[Row], list[Tensor], Tensor]:
        return (yield from inner(query)).clamp(-limit, limit)

    return stage
