"""`mezzotint doctor`: what this machine and this installation can do, and what would slow them down."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.console import print_json, table, warn

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "pillow", "pydantic")
FEATURES = ("amx_tile", "amx_bf16", "amx_int8", "avx512f", "avx512_bf16", "avx2")
BYTES_SDXL = 9 * 2**30  # SDXL's weights in bfloat16 and room to work


def doctor(
    build: Annotated[
        bool, typer.Option("--build", help="First compile the fast kernels for this machine (C++ compiler, seconds).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
    retime: Annotated[bool, typer.Option("--retime", help="Time the kernels again.")] = False,
) -> None:
    """Report versions, processor, memory, chosen dtype and kernels, and anything that would slow this machine down.

    Example: mezzotint doctor --json
    """
    load = _load()  # without the work of what comes now
    if build:
        from mezzotint.kernels import native

        native.build()
    findings, warnings = examine(retime=retime, load=load)
    if json:
        print_json({**findings, "warnings": warnings})
        return
    table(None, ("", ""), [(key, str(value)) for key, value in findings.items()])
    for warning in warnings:
        warn(warning)


def examine(*, retime: bool = False, load: float | None = None) -> tuple[dict[str, object], list[str]]:
    """What `doctor` reports, as data, and what would slow this machine down."""
    import torch

    from mezzotint.kernels import native, policy
    from mezzotint.pipeline.source import packaged_model
    from mezzotint.pipeline.system import preferred_dtype

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = _load() if load is None else load
    free = _memory_available()
    warnings: list[str] = []
    forced = os.environ.get(policy.VARIABLE, "auto") != "auto"
    if forced and retime:
        warnings.append(f"nothing was timed: {policy.VARIABLE} says which kernels are used")
    if load > cores / 2:
        warnings.append(
            f"other work keeps {load:.1f} of {cores} cores busy: with {torch.get_num_threads()} threads here, "
            "steps can be several times slower; wait, or set OMP_NUM_THREADS to the number of idle cores"
        )
    if free is not None and free < BYTES_SDXL:
        warnings.append(f"{free / 2**30:.1f} GiB of memory are available: enough for SD 1.x and 2.x, not for SDXL")
    if retime and not forced:
        policy.verdict(is_fresh=True)
    findings: dict[str, object] = {
        "mezzotint": _version("mezzotint"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "features": [name for name in FEATURES if name in _cpu_flags()],
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load": load,
        "memory available": None if free is None else f"{free / 2**30:.1f} GiB",
        "cuda": torch.cuda.is_available(),
        "dtype chosen by auto": str(preferred_dtype("cpu")).removeprefix("torch."),
        "kernels chosen by auto": policy.chosen(preferred_dtype("cpu")).recorded(),
        "kernels compiled": sorted(native.instructions()) or "none: run `mezzotint doctor --build`",
        **({} if forced else {"kernel check, ms": _milliseconds(policy.verdict().times)}),
        "packaged model": str(packaged_model() or "none"),
        "offline": os.environ.get("HF_HUB_OFFLINE", "0") not in {"0", ""},
    }
    return findings, warnings


def _milliseconds(times: Mapping[str, float]) -> dict[str, float]:
    return {name: round(1e3 * seconds, 2) for name, seconds in times.items()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _load() -> float:
    """Processes that ran, on average over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _memory_available() -> int | None:
    """Bytes that can be used without swapping; None where the system does not say."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
