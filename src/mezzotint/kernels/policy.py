"""What a processor computes best: dtype, kernel set and threads. Timed once on small shapes, remembered, recorded.

The kernel check runs when a machine first loads a model: the candidates of each operation take turns, a few times each,
on one thread, and the least time counts, so that other work on the machine hardly matters. Its verdict is kept in the
cache folder for this processor, torch and oneDNN, and stands in every picture; `mezzotint doctor` shows it, and
`--retime` takes it again. Nothing is timed inside a run.

It is also a canary: a release of torch in which bfloat16 falls to a slow path loses against float32 and is not used.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.errors import ConfigError, RequestError, unknown
from mezzotint.kernels import native
from mezzotint.kernels.choices import APPROXIMATE, NATIVE, PACKED, PLAIN, Attend, KernelSet, Normalise, from_record
from mezzotint.kernels.convolution import convolution_of
from mezzotint.kernels.int8 import multiplies_bytes
from mezzotint.kernels.map import Factors, Map, uninitialised
from mezzotint.kernels.packed import PackedConvolution, PackedLinear, Weights, is_packable
from mezzotint.kernels.workshop import Workshop
from mezzotint.storage import atomic, cache_folder

SCHEMA = 3
ROUNDS = 6
VARIABLE = "MEZZOTINT_KERNELS"
NAMED = {"torch": PLAIN, "packed": PACKED, "native": NATIVE}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the kernel check decided. `times` are seconds by candidate, the reason for the decision."""

    dtype: str
    kernels: Mapping[str, KernelSet]  # by dtype
    times: Mapping[str, float]
    machine: Mapping[str, object]

    def said(self) -> str:
        """In one line, for people."""
        chosen = self.kernels[self.dtype]
        parts = [f"{key} {value}" for key, value in chosen.recorded().items()]
        return f"{self.dtype}; {', '.join(parts)}"


def chosen(dtype: torch.dtype, asked: str | Mapping[str, object] = "auto") -> KernelSet:
    """The kernel set for a dtype on this processor: as asked by name or record, else MEZZOTINT_KERNELS, else timed.

    Raises: ConfigError for an unknown name.
    """
    if asked == "auto":
        asked = os.environ.get(VARIABLE, "auto")
    if isinstance(asked, str):
        if asked != "auto" and asked not in NAMED:
            raise ConfigError(unknown("kernel set", asked, [*NAMED, "auto"]))
        found = verdict().kernels.get(_name(dtype), PLAIN) if asked == "auto" else NAMED[asked]
    else:
        found = from_record(asked)
    return possible(found, dtype)


def possible(kernels: KernelSet, dtype: torch.dtype) -> KernelSet:
    """The kernel set with what this machine lacks replaced by what it has."""
    if kernels.weights == "plain" or not is_packable(dtype):
        return PLAIN
    if kernels.weights == "w8a8" and not multiplies_bytes():
        _log.warning("this processor does not multiply bytes exactly: weights 'w8a8' are replaced by 'packed'")
        kernels = replace(kernels, weights="packed")
    compiled = {key: "torch" for key, value in kernels.recorded().items() if value == "native"}
    if kernels.convolution == "winograd":
        compiled["convolution"] = "packed"
    if not compiled or native.available():
        return kernels
    _log.warning("the compiled kernels are not built for this torch; `mezzotint doctor --build` builds them")
    return from_record({**kernels.recorded(), **compiled})


def with_weights(kernels: KernelSet, asked: str, dtype: torch.dtype) -> KernelSet:
    """The kernel set with the U-Net's weights as asked: "auto" as they are, else "int8" or "w8a8".

    Raises: RequestError for an unknown name, or what this machine cannot do.
    """
    if asked == "auto":
        return kernels
    if asked not in APPROXIMATE:
        raise RequestError(unknown("weights", asked, ["auto", *APPROXIMATE]))
    packed = possible(PACKED, dtype) if kernels.weights == "plain" else kernels
    if packed.weights == "plain":
        raise RequestError(f"weights {asked!r}: oneDNN has no kernels for {_name(dtype)} here; leave weights out")
    if asked == "w8a8" and not multiplies_bytes():
        raise RequestError(
            "weights 'w8a8': this processor has neither VNNI nor AMX, without which products of bytes overflow; "
            "'int8' rounds weights only and runs everywhere"
        )
    return replace(packed, weights=asked)


def preferred_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies in it, unless that turned out to be slower; else float32."""
    if not has_bfloat16():
        return torch.float32
    forced = os.environ.get(VARIABLE, "auto") != "auto"
    return torch.bfloat16 if forced else DTYPES[verdict().dtype]


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware: AMX or AVX512-BF16, and torch may use it."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16")) and is_packable(torch.bfloat16)


def usable_cores() -> int:
    """Physical cores that this process may run on; a second logical processor of a core does not count."""
    able = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    physical = int(cast(Any, torch.cpu.get_capabilities().get("num_physical_cores")) or len(able))  # Any: a number
    quota = _quota()
    return max(1, min(len(able), physical, *([quota] if quota else [])))


def settle_threads() -> int:
    """Lower torch's threads to the usable cores, unless OMP_NUM_THREADS says what is wanted; the number in use."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)
    return torch.get_num_threads()


def verdict(*, is_fresh: bool = False) -> Verdict:
    """What the kernel check decided on this machine: from memory, from the cache folder, or timed now."""
    machine = _machine()
    key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:16]
    if is_fresh:
        _known.pop(key, None)
    elif key not in _known and (stored := _stored(key)):
        _known[key] = stored
    if key not in _known:
        _known[key] = timed(machine)
        _store(key, _known[key])
        _log.info("kernel check: %s", _known[key].said())
    return _known[key]


_known: dict[str, Verdict] = {}


@torch.no_grad()
def timed(machine: Mapping[str, object]) -> Verdict:
    """The kernel check itself: a fraction of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for one another on a busy machine would drown every difference
    try:
        return _decided(machine)
    finally:
        torch.set_num_threads(threads)


def _decided(machine: Mapping[str, object]) -> Verdict:
    times: dict[str, float] = {}
    kernels: dict[str, KernelSet] = {}
    products: dict[str, float] = {}
    for name, dtype in DTYPES.items():
        if not is_packable(dtype) or (name == "bfloat16" and not has_bfloat16()):
            kernels[name] = PLAIN
            continue
        weights = _race(f"{name} weights", _weights(dtype), times)
        products[name] = times[f"{name} weights {weights}"]
        if weights == "plain":
            kernels[name] = PLAIN
            continue
        kernels[name] = from_record(
            {
                "weights": weights,
                "attention": _race(f"{name} attention", _attention(dtype), times),
                "norm": _race(f"{name} norm", _norm(dtype), times),
                "convolution": _race(f"{name} convolution", _convolution(dtype), times),
            }
        )
    dtype = "float32"
    if has_bfloat16():
        dtype = min(products, key=lambda name: products[name]) if len(products) == 2 else "bfloat16"
        if dtype == "float32":
            _log.warning("this torch multiplies bfloat16 more slowly than float32 here; float32 is used")
    return Verdict(dtype=dtype, kernels=kernels, times=times, machine=machine)


def _race(what: str, candidates: Mapping[str, Callable[[], object]], times: dict[str, float]) -> str:
    """The name of the fastest; candidates take turns, and the least time of each counts."""
    for call in candidates.values():
        call()
    least = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS if len(candidates) > 1 else 0):
        for name, call in candidates.items():
            begun = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - begun)
    times |= {f"{what} {name}": seconds for name, seconds in least.items() if seconds < float("inf")}
    return min(least, key=lambda name: least[name])


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _weights(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A product and a convolution, as in the lower half of a U-Net, as torch runs them and packed."""
    x, w, bias = _drawn(1, 512, 640).to(dtype), _drawn(1280, 640).to(dtype), _drawn(1280).to(dtype)
    image = _drawn(1, 320, 16, 16).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = _drawn(320, 320, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    linear = PackedLinear(lambda: Weights(w, bias), [])
    convolution = PackedConvolution(lambda: Weights(kernel, bias[:320]), [], (1, 1), (1, 1))
    return {
        "plain": lambda: (F.linear(x, w, bias), F.conv2d(image, kernel, bias[:320], padding=1)),
        "packed": lambda: (linear(x), convolution(image)),
    }


def _attention(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Self-attention of a wide and of a narrow head, by every way there is."""
    names = ["torch", "matmul"]
    if dtype is torch.bfloat16:
        names.append("float32")
    if native.attends(dtype):
        names.append("native")
    heads = [tuple(_drawn(3, *shape).to(dtype).unbind(0)) for shape in ((1, 1024, 2, 40), (1, 256, 4, 160))]

    def call(attend: Attend) -> Callable[[], object]:
        return lambda: [attend(*qkv) for qkv in heads]

    return {name: call(from_record({"attention": name}).attend) for name in names}


def _norm(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    x = _drawn(1, 320, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    norm = nn.GroupNorm(32, 320).to(dtype)

    def call(normalise: Normalise) -> Callable[[], object]:
        return lambda: normalise(x, norm, is_silu=True)

    names = ["torch", *(["native"] if native.available() else [])]
    return {name: call(from_record({"norm": name}).normalise) for name in names}


def _convolution(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A band of a large map of the autoencoder, normalised before, and two small maps of a U-Net."""
    module = nn.Conv2d(128, 128, 3, padding=1).to(dtype).requires_grad_(False)
    shape = (1, 128, 16, 256)
    deep, images = nn.Conv2d(320, 320, 3, padding=1).to(dtype).requires_grad_(False), _drawn(2, 320, 16, 16).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    x = _drawn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)
    factors = Factors(torch.ones(1, 128), torch.zeros(1, 128))

    def call(kernels: KernelSet) -> Callable[[], object]:
        convolution = convolution_of(module, kernels, is_doubled=False)
        before, out = Map(x, kernels), Map(uninitialised(shape, dtype), kernels)
        whole = Workshop(kernels).convolution(deep)
        return lambda: (convolution.write(before, factors, 0, shape[2], out, is_added=False), whole(images))

    base = NATIVE if native.available() else PACKED
    sets = [replace(base, convolution="packed"), *([NATIVE] if native.convolves(module) else [])]
    return {kernels.convolution: call(kernels) for kernels in sets}


@lru_cache(maxsize=1)
def _onednn() -> str:
    found = re.search(r"MKL-DNN v(\S+)", torch.__config__.show())
    return found[1] if found else "none"


def _machine() -> dict[str, object]:
    """All that a verdict depends on."""
    able = {name: value for name, value in torch.cpu.get_capabilities().items() if value}
    return {
        "schema": SCHEMA,
        "processor": able,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "isa": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "torch": torch.__version__,
        "onednn": _onednn(),
        "native": native.available(),
    }


def _folder() -> Path:
    return cache_folder() / "kernels"


def _store(key: str, found: Verdict) -> None:
    """Keep a verdict; a cache that cannot be written costs timing again."""
    data = {
        "dtype": found.dtype,
        "kernels": {name: kernels.recorded() for name, kernels in found.kernels.items()},
        "times": found.times,
        "machine": found.machine,
    }
    try:
        with atomic(_folder() / f"{key}.json") as file:
            file.write(json.dumps(data, indent=1, default=str).encode())
    except OSError as error:
        _log.warning("the verdict of the kernel check could not be kept: %s", error)


def _stored(key: str) -> Verdict | None:
    """A verdict from the cache folder; None if there is none that this version can read."""
    try:
        data = json.loads((_folder() / f"{key}.json").read_text(encoding="utf-8"))
        kernels = {name: from_record(record) for name, record in data["kernels"].items()}
        return Verdict(dtype=data["dtype"], kernels=kernels, times=data["times"], machine=data["machine"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        return None


def _quota() -> int | None:
    """Whole processors that a container may use; None without a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if limit == "max" else max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
