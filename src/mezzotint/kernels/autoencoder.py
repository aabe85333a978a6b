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
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import PACKED, KernelSet
from mezzotint.kernels.packed import PackedConvolution, Weights, is_packable
from mezzotint.kernels.workshop import phases
from mezzotint.models.attention import Attention
from mezzotint.models.blocks import Downsample, ResBlock, Upsample
from mezzotint.models.vae import LOG_VARIANCE_RANGE, AutoencoderKL, Middle, Posterior, SpatialAttention
from mezzotint.storage import cache_folder

BAND_BYTES = 8 * 2**20  # of one band of a map: two of them fit the second and third cache
MAX_BYTES = 2**29  # of one map in memory; larger ones are in files
QUERIES = 4096  # that attend at once, about

Allocate = Callable[[tuple[int, int, int, int], torch.dtype], Tensor]
"""Uninitialised memory for a map of this shape, channels_last."""

R = TypeVar("R")
Bands = Generator[None, None, R]
"""Yields between bands, returns the result; closing it stops there."""

_ops: Any = torch.ops.mkldnn  # Any: torch leaves its operators untyped
_log = logging.getLogger(__name__)


class Map:
    """A feature map [1 c h w] that is written band by band, and the moments of what was written."""

    def __init__(self, data: Tensor, kernels: KernelSet = PACKED) -> None:
        self.data = data
        self._moments = native.moments if kernels.norm == "native" else native.moments_by_torch
        self._count = 0
        self._mean = torch.zeros(data.shape[1], dtype=torch.float64)
        self._squares = torch.zeros(data.shape[1], dtype=torch.float64)  # of distances from the mean

    @property
    def rows(self) -> int:
        """How many the map has."""
        return self.data.shape[2]

    def band(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        return self.data[:, :, first:last]

    def note(self, first: int, last: int) -> None:
        """These rows are written: their moments join those of the rows before."""
        band = self.band(first, last)
        mean, squares = self._moments(band)[:, 0]
        count = band.shape[2] * band.shape[3]
        whole, away = self._count + count, mean - self._mean
        self._squares += squares + away**2 * (self._count * count / whole)
        self._mean += away * (count / whole)
        self._count = whole

    def factors(self, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
        """Scale and offset [1 c] that normalise the map; all of it has been written."""
        width = self.data.shape[1] // norm.num_groups
        means = self._mean.view(norm.num_groups, width)
        centre = means.mean(1, keepdim=True)
        spread = self._squares.view_as(means).sum(1, keepdim=True) / (self._count * width)
        variance = spread + (means - centre).square().mean(1, keepdim=True)
        scale = (variance + norm.eps).rsqrt().expand_as(means).flatten() * norm.weight.double()
        offset = norm.bias.double() - centre.expand_as(means).flatten() * scale
        return scale.float()[None], offset.float()[None]

    def forget(self) -> None:
        """The map will be written again."""
        self._count = 0
        self._mean.zero_()
        self._squares.zero_()


class _Convolution(PackedConvolution):
    """A convolution without padding of rows: the band brings its neighbours. It can add to what is there."""

    def __init__(self, module: nn.Conv2d, *, is_doubled: bool = False) -> None:
        columns = cast("tuple[int, int]", module.padding)[1]  # a pair here
        self.halo = module.kernel_size[0] // 2  # rows that it reads above and below
        stride = cast("tuple[int, int]", module.stride)
        self._plain = None if is_packable(module.weight.dtype) and module.weight.device.type == "cpu" else stride
        read = (lambda: phases(module)) if is_doubled else (lambda: Weights(module.weight, module.bias))
        super().__init__(read, [module], stride, (0, 1 if is_doubled else columns))

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        if self._plain is None:
            return super().__call__(x, bias=bias, add=add)
        weight, own = self._read()
        bias = own if bias is None else bias
        h = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), self._plain, self._padding)
        return h if add is None else h + add

    def add_to(self, total: Tensor, x: Tensor) -> None:
        """Add the convolution of x to `total`, where it is."""
        if self._plain is not None:
            total.add_(self(x))
            return
        packed = self._ready(x) if self._packed is None else self._packed
        geometry = (self._padding, self._stride, [1, 1], 1)
        _ops._convolution_pointwise_.binary(total, x, packed, self._bias, *geometry, "add", 1.0, None, [], None)


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
        self._scale_into = native.scale_into if kernels.norm == "native" else native.scale_into_by_torch
        self.band_bytes, self.max_bytes, self.scratch = band_bytes, max_bytes, scratch
        self._convolutions: dict[int, _Convolution] = {}

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
        return (yield from _gradless(_each(self._decoded, latent)))

    def encoding(self, image: Float[Tensor, "b 3 H W"]) -> Bands[Posterior]:
        """`encode` that yields between bands."""
        moments = yield from _gradless(_each(self._encoded, image.to(self._dtype)))
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
        return (yield from self._written(x, self._convolution(conv), conv.out_channels))

    def _closed(self, x: Map, norm: nn.GroupNorm, conv: nn.Conv2d) -> Bands[Tensor]:
        """The last convolution, to a map with few channels; float32."""
        out = torch.empty(1, conv.out_channels, *x.data.shape[2:])
        convolution = self._convolution(conv)
        for first, last, band in self._normalised(x, norm):
            out[:, :, first:last] = convolution(band)
            yield
        return out

    def _middle(self, middle: Middle, x: Map) -> Bands[Map]:
        x = yield from self._residual(middle.res_in, x)
        x = yield from self._attended(middle.attn, x)
        return (yield from self._residual(middle.res_out, x))

    def _residual(self, block: ResBlock, x: Map) -> Bands[Map]:
        inside = yield from self._written(x, self._convolution(block.conv_1), block.conv_1.out_channels, block.norm_1)
        if isinstance(block.shortcut, nn.Conv2d):
            x = yield from self._written(x, self._convolution(block.shortcut), block.shortcut.out_channels)
        x.forget()
        convolution = self._convolution(block.conv_2)
        for first, last, band in self._normalised(inside, block.norm_2):
            convolution.add_to(x.band(first, last), band)
            x.note(first, last)
            yield
        return x

    def _written(
        self, x: Map, convolution: _Convolution, out_channels: int, norm: nn.GroupNorm | None = None
    ) -> Bands[Map]:
        """A new map: the convolution of x, normalised and activated before if there is a norm."""
        out = self._map(out_channels, *x.data.shape[2:])
        for first, last, band in self._normalised(x, norm, out.data.shape[1], convolution.halo):
            out.band(first, last).copy_(convolution(band))
            out.note(first, last)
            yield
        return out

    def _upsampled(self, upsample: Upsample, x: Map) -> Bands[Map]:
        """Nearest neighbour, then a convolution: by four convolutions of 2x2 before it."""
        channels = upsample.conv.out_channels
        _, _, rows, columns = x.data.shape
        out = self._map(channels, 2 * rows, 2 * columns)
        convolution = self._convolution(upsample.conv, is_doubled=True)
        for first, last, band in self._normalised(x, None, 4 * channels):
            four = convolution(band)  # [1 4o rows+1 columns+1]
            to = out.band(2 * first, 2 * last)
            for phase in range(4):
                p, r = divmod(phase, 2)  # which of two rows and columns these outputs are
                part = four[:, phase * channels : (phase + 1) * channels]
                to[:, :, p::2, r::2] = part[:, :, p : p + last - first, r : r + columns]
            out.note(2 * first, 2 * last)
            yield
        return out

    def _downsampled(self, downsample: Downsample, x: Map) -> Bands[Map]:
        """Stride 2; a row and a column of zeros at the bottom and the right."""
        conv, (rows, columns) = downsample.conv, x.data.shape[2:]
        out = self._map(conv.out_channels, rows // 2, columns // 2)
        convolution = self._convolution(conv)
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
            positions = self._positions(x.band(first, last), factors)
            keys[:, here], values[:, here] = attention.k(positions), attention.v(positions)
            yield
        x.forget()
        step = max(1, QUERIES // columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            band = x.band(first, last)
            queries = attention.q(self._positions(band, factors))
            seen = self.kernels.attend(queries[:, :, None], keys[:, :, None], values[:, :, None])[:, :, 0]  # [1 l c]
            band += attention.out(seen).transpose(1, 2).unflatten(2, (last - first, columns))
            x.note(first, last)
            yield
        return x

    def _normalised(
        self, x: Map, norm: nn.GroupNorm | None, out_channels: int = 0, halo: int = 1
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Bands [first, last) of x and `halo` rows around them, zeros outside the map; through norm and SiLU."""
        _, channels, rows, columns = x.data.shape
        factors = None if norm is None else x.factors(norm)
        for first, last in self._bands(rows, columns * max(channels, out_channels)):
            top, bottom = max(first - halo, 0), min(last + halo, rows)
            above, below = top - (first - halo), (last + halo) - bottom
            if factors is None and not above + below:
                yield first, last, x.band(top, bottom)
                continue
            height = last - first + 2 * halo
            band = _uninitialised((1, channels, height, columns), x.data.dtype)
            band[:, :, :above] = 0
            band[:, :, height - below :] = 0
            inside = band[:, :, above : height - below]
            if factors is None:
                inside.copy_(x.band(top, bottom))
            else:
                self._scale_into(inside, x.band(top, bottom), *factors, silu=True)
            yield first, last, band

    def _positions(self, band: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
        """[1 l c] of a band, normalised."""
        out = torch.empty_like(band)
        self._scale_into(out, band, *factors, silu=False)
        return out.permute(0, 2, 3, 1).flatten(1, 2)

    def _bands(self, rows: int, row_values: int) -> Iterator[tuple[int, int]]:
        """Equal bands of rows of so many values, each of at most `band_bytes` if a row is."""
        most = max(1, self.band_bytes // (row_values * self._dtype.itemsize))
        count = math.ceil(rows / most)
        return itertools.pairwise(rows * place // count for place in range(count + 1))

    def _map(self, channels: int, rows: int, columns: int) -> Map:
        shape, dtype = (1, channels, rows, columns), self._dtype
        if math.prod(shape) * dtype.itemsize > self.max_bytes:
            try:
                return Map(in_file(shape, dtype, self.scratch or cache_folder() / "scratch"), self.kernels)
            except OSError as error:
                _log.warning("no scratch file (%s): a map of %s values is kept in memory", error, math.prod(shape))
        return Map(_uninitialised(shape, dtype), self.kernels)

    def _convolution(self, conv: nn.Conv2d, *, is_doubled: bool = False) -> _Convolution:
        made = self._convolutions.get(id(conv))
        if made is None:
            made = self._convolutions[id(conv)] = _Convolution(conv, is_doubled=is_doubled)
        return made


def in_file(shape: tuple[int, int, int, int], dtype: torch.dtype, folder: Path) -> Tensor:
    """A map [1 c h w], channels_last, in a file without a name that is gone with the tensor.

    Raises: OSError if the folder cannot be written or lacks the space, all of which is reserved at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * dtype.itemsize
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(handle, 0, size)  # a page that finds no space later would end the process
        data = torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype)
    finally:
        os.close(handle)
        Path(name).unlink()
    b, c, h, w = shape
    return data.view(b, h, w, c).permute(0, 3, 1, 2)


def _uninitialised(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _each(run: Callable[[Tensor], Bands[Tensor]], batch: Tensor) -> Bands[Tensor]:
    """One picture after the other."""
    done: list[Tensor] = []
    for place in range(len(batch)):
        result = yield from run(batch[place : place + 1])
        done.append(result)
    return torch.cat(done)


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
