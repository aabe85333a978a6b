"""Operations that torch does far from the hardware's speed, compiled once on the user's machine.

`build` compiles the C++ in `cpp/` against the installed torch, in seconds, into the cache folder, under a name made of
the torch version, the processor's features and the source: another torch or another machine never loads it. Every
operation here also works without, more slowly, by torch's own; `available` says which it will be.

Linux on x86-64 only. Which instructions run is decided when the library is called, not when it is compiled: AVX2 or
AVX-512 for normalisation and float32 attention, AVX-512 with bfloat16 pairs for attention and convolutions in bfloat16;
a processor without them never meets them, nor does one that ATEN_CPU_CAPABILITY limits.
"""

import hashlib
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import MezzotintError
from mezzotint.storage import atomic, cache_folder

SOURCE = Path(__file__).parent / "cpp"
TIMEOUT_S = 600
MAX_WIDTH = 512  # of an attention head
CHUNK = 1 << 16  # numbers that are made bytes at once by torch: what the nearest cache holds

_COMMON = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
_FINITE = ("-ffinite-math-only", "-fno-signed-zeros")  # minima and maxima as one instruction

_ATTENTION = {torch.bfloat16: "avx512_bf16", torch.float32: "avx2"}  # what it needs in each dtype
_NORM_DTYPES = {torch.float32, torch.bfloat16}

_log = logging.getLogger(__name__)
_ops: Any = torch.ops.mezzotint  # Any: torch leaves its operators untyped


class Unit(NamedTuple):
    """A source file and what it is compiled with."""

    source: str
    flags: tuple[str, ...]
    needs_torch: bool = False


UNITS = (
    Unit("ops.cpp", ("-O2",), needs_torch=True),
    Unit("ops_attention.cpp", ("-O2",), needs_torch=True),
    Unit("ops_convolution.cpp", ("-O2",), needs_torch=True),
    Unit("ops_gradients.cpp", ("-O2",), needs_torch=True),
    Unit("ops_int8.cpp", ("-O2",), needs_torch=True),
    *(
        Unit(f"{name}_avx512bf16.cpp", (*_AVX512, "-mavx512bf16"))
        for name in ("attention", "attention_backward", "winograd", "winograd_gradient")
    ),
    Unit("int8.cpp", (*_AVX512, "-ffp-contract=off")),  # the same bits as torch's
    *(
        Unit(source, (*flags, *_FINITE, f"-DMEZZOTINT_ISA={name}"))
        for source in ("attention_float32.cpp", "group_norm.cpp", "gradients.cpp")
        for name, flags in (("avx2", _AVX2), ("avx512", _AVX512))
    ),
)


def available() -> bool:
    """Whether the compiled operations are built for this machine; loads them. Says once in the log how to get them."""
    return bool(instructions())


def _say_once(missing: Path) -> None:
    """Warn that there is no library, the first time on this machine."""
    said = missing.with_suffix(".missed")
    level = logging.DEBUG if said.exists() else logging.WARNING
    _log.log(level, "the compiled kernels are not built, torch's own are slower: run `mezzotint doctor --build`")
    with suppress(OSError):  # a read-only cache is told every time
        said.parent.mkdir(parents=True, exist_ok=True)
        said.touch()


@cache
def instructions() -> frozenset[str]:
    """What the compiled operations may use here: "avx2", "avx512", "avx512_bf16"; empty if they are not built."""
    if not _can_be_built():
        return frozenset()
    path = library()
    if not path.exists():
        _say_once(path)
        return frozenset()
    try:
        if not is_loaded():  # a process can register operators once
            torch.ops.load_library(path)  # pyright: ignore[reportUnknownMemberType]  # torch leaves it untyped
        return frozenset(_ops.instructions().split())
    except OSError as error:
        _log.warning("the compiled kernels cannot be loaded, torch's own are slower (%s): %s", error, path)
        return frozenset()


def attends(dtype: torch.dtype) -> bool:
    """Whether `attention` runs compiled here in this dtype."""
    return _ATTENTION.get(dtype) in instructions()


def is_loaded() -> bool:
    """Whether this process has the compiled operations, of whichever cache."""
    return hasattr(_ops, "instructions")


def library() -> Path:
    """Where the compiled operations of this torch, processor and source are, or will be."""
    features = sorted(name for name, has in torch.cpu.get_capabilities().items() if has is True)
    told = [torch.__version__, platform.machine(), *features, *(flag for unit in UNITS for flag in unit.flags)]
    code = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    key = hashlib.sha256("\n".join(told).encode() + code).hexdigest()[:16]
    return cache_folder() / "kernels" / f"mezzotint-{key}.so"


def compiler() -> str | None:
    """The C++ compiler: CXX, else the first of g++, clang++ and c++ that is installed."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def build(*, force: bool = False) -> Path:
    """Compile the operations, unless they are there already; the path of the library.

    Raises: MezzotintError if this is no Linux on x86-64, there is no compiler, or it fails.
    """
    path = library()
    if path.exists() and not force:
        return path
    if not _can_be_built():
        raise MezzotintError(
            f"the compiled kernels are for Linux on x86-64 (found {sys.platform} on {platform.machine()}); "
            "everything works without them, by torch's own"
        )
    program = compiler()
    if program is None:
        raise MezzotintError(
            f"no C++ compiler (CXX is {os.environ.get('CXX')!r}; g++, clang++ and c++ are not installed); "
            "install g++, or go on without: everything works by torch's own kernels"
        )
    with tempfile.TemporaryDirectory() as folder:
        objects = [Path(folder) / f"{place}.o" for place in range(len(UNITS))]
        _run([[program, *_arguments(unit), "-o", str(to)] for unit, to in zip(UNITS, objects, strict=True)])
        whole = Path(folder) / "whole.so"
        libraries = Path(torch.__file__).parent / "lib"
        linked = ["-shared", *map(str, objects), f"-L{libraries}", "-ltorch_cpu", "-lc10", "-fopenmp"]
        _run([[program, *linked, "-o", str(whole)]])
        if not whole.exists():
            raise MezzotintError(f"{program} wrote no library; everything works without, by torch's own kernels")
        with atomic(path) as file:
            file.write(whole.read_bytes())
    instructions.cache_clear()
    return path


def attention(
    q: Float[Tensor, "b l heads d"],
    k: Float[Tensor, "b n heads d"],
    v: Float[Tensor, "b n heads d"],
    scale: float | None = None,
) -> Float[Tensor, "b l heads d"]:
    """softmax(scale * q k^T) v; `scale` None is 1 / sqrt(d). In q's dtype.

    The last dimension is contiguous; the others may have any stride, so slices of a fused [b l 3 heads d] are read in
    place and the result is the input of the output projection without a copy. Compiled for bfloat16 and float32, widths
    that are multiples of 8, and no gradient (which `gradients.attention` has); by torch otherwise.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if _is_attention_compiled(q, k, v, scale):
        return _ops.attention(q, k, v, scale)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def group_norm(
    x: Float[Tensor, "b c h w"],
    groups: int,
    weight: Float[Tensor, "c"] | None,
    bias: Float[Tensor, "c"] | None,
    eps: float,
    *,
    silu: bool = False,
    shift: Float[Tensor, "b c"] | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "b c h w"]:
    """GroupNorm of x + shift, then SiLU if asked; channels_last, statistics in float32, in `dtype` or that of x.

    `shift` is a constant per picture and channel: the time embedding between the convolutions of a ResBlock. Compiled
    for channels_last x in float32 or bfloat16 and no gradient; by torch otherwise.
    """
    dtype = x.dtype if dtype is None else dtype
    if dtype in _NORM_DTYPES and _is_normalisable(x) and _is_plain(weight, bias, shift):
        return _ops.group_norm(x, groups, weight, bias, eps, silu, shift, dtype)
    h = x.float() if shift is None else x.float() + shift.float()[:, :, None, None]
    h = F.group_norm(h, groups, _float(weight), _float(bias), eps)
    return (F.silu(h) if silu else h).to(dtype).contiguous(memory_format=torch.channels_last)


def as_bytes(x: Tensor) -> tuple[Tensor, Float[Tensor, "1"]]:
    """x as bytes about 128, in the layout of x, and the scale of their steps: a 127th of the largest magnitude.

    Compiled for float32 and bfloat16 without gaps and no gradient; by torch otherwise, with the same bits.
    """
    is_dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    if is_dense and x.dtype in _NORM_DTYPES and _is_plain(x) and "avx512" in instructions():
        return _ops.bytes(x)
    return as_bytes_by_torch(x)


def as_bytes_by_torch(x: Tensor) -> tuple[Tensor, Float[Tensor, "1"]]:
    """`as_bytes` without anything compiled."""
    x = x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)
    low, high = torch.aminmax(x)
    scale = (torch.maximum(-low, high).float() / 127).clamp_min(torch.finfo(torch.float32).tiny).view(1)
    y = torch.empty_like(x, dtype=torch.uint8)
    flat, to = (part.permute(0, 2, 3, 1).view(-1) if x.ndim == 4 else part.view(-1) for part in (x, y))
    for some, there in zip(torch.split(flat, CHUNK), torch.split(to, CHUNK), strict=True):
        there.copy_((some.float() * (1 / scale)).add_(128.5))  # the half makes cutting off rounding
    return y, scale


def moments(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "2 b c"]:
    """Mean, and sum of squared distances from it, of every picture and channel; float64."""
    if _is_normalisable(x):
        return _ops.moments(x)
    return moments_by_torch(x)


def moments_by_torch(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "2 b c"]:
    """`moments` without anything compiled."""
    rows = x.float().permute(0, 2, 3, 1).flatten(1, 2)  # [b l c]: torch adds up rows twenty times sooner than columns
    mean = rows.mean(1, keepdim=True)
    return torch.stack([mean[:, 0].double(), (rows - mean).square_().sum(1).double()])


def scale_into(
    y: Float[Tensor, "b c h w"],
    x: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b c"],
    offset: Float[Tensor, "b c"],
    *,
    silu: bool,
) -> None:
    """Write x * scale + offset, then SiLU if asked, into y: the second half of a GroupNorm. Scale, offset: float32."""
    if _is_normalisable(x, y, scale, offset):
        _ops.scaled(x, scale, offset, silu, y)
    else:
        scale_into_by_torch(y, x, scale, offset, silu=silu)


def scale_into_by_torch(
    y: Float[Tensor, "b c h w"],
    x: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b c"],
    offset: Float[Tensor, "b c"],
    *,
    silu: bool,
) -> None:
    """`scale_into` without anything compiled."""
    h = torch.addcmul(offset[:, :, None, None], x.float(), scale[:, :, None, None])
    y.copy_(F.silu(h) if silu else h)


def convolves(module: nn.Conv2d) -> bool:
    """Whether `convolve` computes this convolution: 3x3 with a border of zeros, in bfloat16, of enough channels."""
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode)
    return (
        geometry == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
        and module.weight.dtype is torch.bfloat16
        and module.weight.device.type == "cpu"
        and module.in_channels % 16 == 0
        and module.out_channels % 16 == 0
        and "avx512_bf16" in instructions()
    )


def convolution_weights(
    weight: Float[Tensor, "o c 3 3"], *, is_doubled: bool = False, is_transformed: bool = False, is_turned: bool = False
) -> Tensor:
    """Weights in the order in which `convolve_together` reads them; transformed, `convolve`: 16 / 9 of the size.

    Turned: of the convolution from o to c channels that is the gradient of this one. bfloat16, or int8 if neither
    doubled nor transformed; o and c are multiples of 16.
    Source: Lavin and Gray 2015, arXiv:1509.09308.
    """
    return _ops.convolution_weights(weight, is_doubled, is_transformed, is_turned)


def convolve_together(
    x: Float[Tensor, "b c h w"],
    weights: Tensor,
    bias: Float[Tensor, "o"],
    add: Float[Tensor, "b o h2 w2"] | None = None,
    *,
    steps: Float[Tensor, "o"] | None = None,
    is_doubled: bool = False,
) -> Float[Tensor, "b o h2 w2"]:
    """What `convolve` computes, of whole pictures without factors: weights are read once for all of them.

    With `steps`, weights are int8, whole multiples of them; not doubled.
    """
    return _ops.convolve_together(x, weights, bias, add, steps, is_doubled)


def convolution_gradient(g: Float[Tensor, "b o h w"], x: Float[Tensor, "b c h w"]) -> Float[Tensor, "o c 3 3"]:
    """The gradient of the weights of a 3x3 convolution of x from that of its result; summed in float32.

    Both are bfloat16, channels_last, of channels that are multiples of 16.
    """
    return _ops.convolution_gradient(g, x)


def convolve(
    x: Float[Tensor, "1 c h w"],
    factors: tuple[Float[Tensor, "1 c"], Float[Tensor, "1 c"]] | None,
    weights: Tensor,
    bias: Float[Tensor, "o"],
    out: Tensor,
    first: int,
    last: int,
    *,
    is_doubled: bool,
    is_added: bool,
) -> None:
    """Rows [first, last) of x, times the first of `factors` plus the second and through SiLU, convolved into `out`.

    Or added to what it holds. Doubled: of x behind a nearest upsampling. `weights` are transformed; x and out are
    bfloat16, channels_last, whole maps. `first` is even unless doubled.
    """
    scale, offset = (None, None) if factors is None else factors
    _ops.convolve(x, scale, offset, weights, bias, is_doubled, is_added, first, last, out)


def has_gradient(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether attention of these, [b l heads d], is compiled with its gradient (gradients.py): in bfloat16 only."""
    return q.dtype is torch.bfloat16 and all(part.device.type == "cpu" for part in (q, k, v)) and _is_attended(q, k, v)


def _is_attention_compiled(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    return _is_plain(q, k, v) and scale > 0 and _is_attended(q, k, v)


def _is_attended(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return (
        all(part.dtype == q.dtype and part.stride(-1) == 1 for part in (q, k, v))
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= MAX_WIDTH
        and k.shape[1] > 0
        and attends(q.dtype)
    )


def _is_normalisable(x: Tensor, *others: Tensor) -> bool:
    return (
        _is_plain(x, *others)
        and all(map_.dtype in _NORM_DTYPES for map_ in (x, *others))
        and all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in (x, *others) if map_.ndim == 4)
        and x.ndim == 4
        and "avx2" in instructions()
    )


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether nothing here is on another device or wants a gradient."""
    present = [tensor for tensor in tensors if tensor is not None]
    has_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present)
    return not has_gradient and all(tensor.device.type == "cpu" for tensor in present)


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _can_be_built() -> bool:
    return sys.platform == "linux" and platform.machine() in {"x86_64", "AMD64"}


def _arguments(unit: Unit) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    torch_flags = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"] if unit.needs_torch else []
    return [*_COMMON, *unit.flags, *torch_flags, "-c", str(SOURCE / unit.source)]


def _run(commands: list[list[str]]) -> None:
    """Run the commands beside each other. Raises: MezzotintError with the compiler's first complaint."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs: list[str] = []
    try:
        outputs += [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    for process, output, command in zip(processes, outputs, commands, strict=True):
        if process.returncode:
            complaints = [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines()
            first = complaints[0] if complaints else f"it ended with {process.returncode}"
            raise MezzotintError(f"{command[0]} failed ({first}); everything works without, by torch's own kernels")
