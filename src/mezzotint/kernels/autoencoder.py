"""The autoencoder in bands of rows: the same pictures, sooner and in bounded memory.

A layer reads a whole feature map and writes another, a band of rows at a time; what lies between, such as the
normalised input of a convolution, is never larger than a band and stays in the processor's caches. Nothing is
approximated where bands meet: a convolution reads one row more on either side, GroupNorm knows the mean and variance of
the whole map before its first row, because they were added up while the map was written, and the attention at the
lowest resolution looks at every position.

Maps are in memory, or in files without a name if they are large: pages of a file are the system's to write out, so
that a picture of 2048 x 2048 needs no more memory of its own than a small one.

`decoding` and `encoding` are generators that yield between bands: closing one stops there.

Letters: c o channels in and out, h w rows and columns, l = h * w, k latent channels. One picture at a time.
"""

import itertools
import logging
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.kernels.choices import PACKED, KernelSet
from mezzotint.kernels.convolution import BandConvolution, MapConvolution, convolution_of
from mezzotint.kernels.map import Map, in_file, in_storage, uninitialised
from mezzotint.kernels.pages import give_back_freed
from mezzotint.models.attention import Attention
from mezzotint.models.blocks import Downsample, ResBlock, Upsample
from mezzotint.models.vae import LOG_VARIANCE_RANGE, AutoencoderKL, Middle, Posterior, SpatialAttention
from mezzotint.storage import cache_folder

BAND_BYTES = 8 * 2**20  # of one band of a map: two of them fit the second and third cache
MAX_BYTES = 2**29  # of one map in memory; larger ones are in files
QUERIES = 4096  # that attend at once, about
LARGE = 4096  # positions of a latent from which on memory is tidied up before it is decoded

Allocate = Callable[[tuple[int, int, int, int], torch.dtype], Tensor]
"""Uninitialised memory for a map of this shape, channels_last."""

R = TypeVar("R")
Bands = Generator[None, None, R]
"""Yields between bands, returns the result; closing it stops there."""

_log = logging.getLogger(__name__)


class BandedAutoencoder:
    """Runs an autoencoder's own modules and weights in bands. Made once per model: its weights are packed at first use.

    `band_bytes` is how large a band of a map may be; `max_bytes` how large a map in memory; `scratch` the folder for
    the files of larger ones, by default in this package's cache.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        kernels: KernelSet = PACKED,
        *,
        band_bytes: int = BAND_BYTES,
        max_bytes: int = MAX_BYTES,
        scratch: Path | None = None,
    ) -> None:
        self.vae, self.kernels = vae, kernels
        self.band_bytes, self.max_bytes, self.scratch = band_bytes, max_bytes, scratch
        self._convolutions: dict[int, MapConvolution] = {}
        self._spare: list[torch.UntypedStorage] = []  # memory of maps that are done with, for the next

    def decode(self, latent: Float[Tensor, "b k h w"]) -> Float[Tensor, "b 3 H W"]:
        """The images, float32, about [-1, 1]: `AutoencoderKL.decode`."""
        return finished(self.decoding(latent))

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Posterior:
        """The posterior of the latents, float32: `AutoencoderKL.encode`."""
        return finished(self.encoding(image))

    def decoding(self, latent: Float[Tensor, "b k h w"]) -> Bands[Tensor]:
        """`decode` that yields between bands."""
        shift, scale = self.vae.shift_scale(latent.float())
        latent = (latent.float() / scale + shift).to(self._dtype)
        if latent.shape[-2] * latent.shape[-1] >= LARGE:
            give_back_freed()  # what a U-Net worked in: 0.3 GB of SD 1.5 that need not lie beside the maps
        return (yield from _gradless(self._each(self._decoded, latent)))

    def encoding(self, image: Float[Tensor, "b 3 H W"]) -> Bands[Posterior]:
        """`encode` that yields between bands."""
        moments = yield from _gradless(self._each(self._encoded, image.to(self._dtype)))
        mean, log_variance = moments.chunk(2, dim=1)
        shift, scale = self.vae.shift_scale(mean)
        std = (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()
        return Posterior((mean - shift) * scale, std * scale)

    @property
    def _dtype(self) -> torch.dtype:
        return self.vae.decoder.conv_in.weight.dtype

    def _decoded(self, z: Tensor) -> Bands[Tensor]:
        decoder = self.vae.decoder
        x = yield from self._opened(z if self.vae.post_quant is None else self.vae.post_quant(z), decoder.conv_in)
        x = yield from self._middle(decoder.middle, x)
        for level in decoder.up:
            for block in level.blocks:
                x = yield from self._residual(block, x)
            if level.resample is not None:
                x = yield from self._upsampled(level.resample, x)
        return (yield from self._closed(x, decoder.norm_out, decoder.conv_out))

    def _encoded(self, image: Tensor) -> Bands[Tensor]:
        encoder = self.vae.encoder
        x = yield from self._opened(image, encoder.conv_in)
        for level in encoder.down:
            for block in level.blocks:
                x = yield from self._residual(block, x)
            if level.resample is not None:
                x = yield from self._downsampled(level.resample, x)
        x = yield from self._middle(encoder.middle, x)
        moments = yield from self._closed(x, encoder.norm_out, encoder.conv_out)
        return moments if self.vae.quant is None else self.vae.quant(moments.to(self._dtype)).float()

    def _opened(self, image: Tensor, conv: nn.Conv2d) -> Bands[Map]:
        """The first convolution, of a map with few channels."""
        x = Map(image.contiguous(memory_format=torch.channels_last))
        return (yield from self._written(x, conv))

    def _closed(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Bands[Tensor]:
        """The last convolution, to a map with few channels; float32."""
        out = torch.empty(1, conv.out_channels, *x.data.shape[2:])
        convolution, factors = self._alone(conv), x.factors(norm)
        for first, last in self._bands(x.rows, x.data.shape[3] * x.data.shape[1]):
            out[:, :, first:last] = convolution(x.around(first, last, convolution.halo, factors))
            yield
        return out

    def _middle(self, middle: Middle, x: Map) -> Bands[Map]:
        x = yield from self._residual(middle.res_in, x)
        x = yield from self._attended(middle.attn, x)
        return (yield from self._residual(middle.res_out, x))

    def _residual(self, block: ResBlock, x: Map) -> Bands[Map]:
        inside = yield from self._written(x, block.conv_1, block.norm_1)
        if isinstance(block.shortcut, nn.Conv2d):
            before, x = x, (yield from self._written(x, block.shortcut))
            self._done(before)
        yield from self._convolved(inside, block.conv_2, x, block.norm_2, is_added=True)
        self._done(inside)
        return x

    def _upsampled(self, upsample: Upsample, x: Map) -> Bands[Map]:
        """Nearest neighbour, then a convolution: as one convolution of the small map."""
        out = yield from self._written(x, upsample.conv, factor=2)
        self._done(x)
        return out

    def _written(self, x: Map, conv: nn.Conv2d, norm: nn.GroupNorm | None = None, *, factor: int = 1) -> Bands[Map]:
        """A new map: the convolution of x, normalised and activated before if there is a norm."""
        _, _, rows, columns = x.data.shape
        out = self._map(conv.out_channels, factor * rows, factor * columns)
        yield from self._convolved(x, conv, out, norm)
        return out

    def _convolved(
        self, x: Map, conv: nn.Conv2d, out: Map, norm: nn.GroupNorm | None, *, is_added: bool = False
    ) -> Bands[None]:
        """The convolution of x into or onto a map of as many rows, or of twice as many."""
        factor = out.rows // x.rows
        convolution = self._convolution(conv, is_doubled=factor == 2)
        factors = None if norm is None else x.factors(norm)
        out.forget()
        row_values = x.data.shape[3] * max(x.data.shape[1], factor**2 * out.data.shape[1])
        for first, last in self._bands(x.rows, row_values, convolution.step):
            convolution.write(x, factors, first, last, out, is_added=is_added)
            out.note(factor * first, factor * last)
            yield

    def _downsampled(self, downsample: Downsample, x: Map) -> Bands[Map]:
        """Stride 2; a row and a column of zeros at the bottom and the right."""
        conv, (rows, columns) = downsample.conv, x.data.shape[2:]
        out = self._map(conv.out_channels, rows // 2, columns // 2)
        convolution = self._alone(conv)
        for first, last in self._bands(rows // 2, 4 * columns * x.data.shape[1]):
            band = x.band(2 * first, min(2 * last + 1, rows))
            band = F.pad(band, (0, 1, 0, 2 * last + 1 - 2 * first - band.shape[2]))
            out.band(first, last).copy_(convolution(band.contiguous(memory_format=torch.channels_last)))
            out.note(first, last)
            yield
        return out

    def _attended(self, part: SpatialAttention, x: Map) -> Bands[Map]:
        """Keys and values of all positions, then as many queries at a time as keep a band's size."""
        attention: Attention = part.self_attention
        _, channels, rows, columns = x.data.shape
        factors = x.factors(part.norm)
        keys, values = (torch.empty(1, rows * columns, channels, dtype=self._dtype) for _ in range(2))
        for first, last in self._bands(rows, columns * channels):
            here = slice(first * columns, last * columns)
            positions = _positions(x.normalised(first, last, factors))
            keys[:, here], values[:, here] = attention.k(positions), attention.v(positions)
            yield
        x.forget()
        step = max(1, QUERIES // columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            band = x.band(first, last)
            queries = attention.q(_positions(x.normalised(first, last, factors)))
            seen = self.kernels.attend(queries[:, :, None], keys[:, :, None], values[:, :, None])[:, :, 0]  # [1 l c]
            band += attention.out(seen).transpose(1, 2).unflatten(2, (last - first, columns))
            x.note(first, last)
            yield
        return x

    def _bands(self, rows: int, row_values: int, step: int = 1) -> Iterator[tuple[int, int]]:
        """Equal bands of rows of so many values, each of at most `band_bytes` if `step` rows are, their multiple."""
        steps = math.ceil(rows / step)
        most = max(1, self.band_bytes // (step * row_values * self._dtype.itemsize))
        count = math.ceil(steps / most)
        return itertools.pairwise(min(rows, steps * place // count * step) for place in range(count + 1))

    def _each(self, run: Callable[[Tensor], Bands[Tensor]], batch: Tensor) -> Bands[Tensor]:
        """One picture after the other."""
        done: list[Tensor] = []
        try:
            for place in range(len(batch)):
                result = yield from run(batch[place : place + 1])
                done.append(result)
        finally:
            self._spare.clear()
        return torch.cat(done)

    def _map(self, channels: int, rows: int, columns: int) -> Map:
        shape, dtype = (1, channels, rows, columns), self._dtype
        size = math.prod(shape) * dtype.itemsize
        for place, storage in enumerate(self._spare):
            if storage.nbytes() >= size:
                return Map(in_storage(self._spare.pop(place), shape, dtype), self.kernels)
        self._spare.clear()  # too small for what is to come
        if size > self.max_bytes:
            try:
                return Map(in_file(shape, dtype, self.scratch or cache_folder() / "scratch"), self.kernels)
            except OSError as error:
                _log.warning("no scratch file (%s): a map of %s values is kept in memory", error, math.prod(shape))
        return Map(uninitialised(shape, dtype), self.kernels)

    def _done(self, x: Map) -> None:
        """Nobody reads this map again: the system hands out the pages of new memory one by one."""
        self._spare.append(x.data.untyped_storage())

    def _convolution(self, conv: nn.Conv2d, *, is_doubled: bool) -> MapConvolution:
        made = self._convolutions.get(id(conv))
        if made is None:
            made = self._convolutions[id(conv)] = convolution_of(conv, self.kernels, is_doubled=is_doubled)
        return made

    def _alone(self, conv: nn.Conv2d) -> BandConvolution:
        """A convolution whose result is no map."""
        made = self._convolutions.get(id(conv))
        if not isinstance(made, BandConvolution):
            made = self._convolutions[id(conv)] = BandConvolution(conv)
        return made


def _positions(band: Tensor) -> Tensor:
    """[1 l c] of a band."""
    return band.permute(0, 2, 3, 1).flatten(1, 2)


def _gradless(bands: Bands[R]) -> Bands[R]:
    """The generator with gradients off while it runs, and only then: the setting is the thread's."""
    while True:
        with torch.no_grad():
            try:
                next(bands)
            except StopIteration as finished:
                return finished.value
        yield


def finished(bands: Bands[R]) -> R:
    """What a generator returns."""
    try:
        while True:
            next(bands)
    except StopIteration as finished:
        return finished.value
