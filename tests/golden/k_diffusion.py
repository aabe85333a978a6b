"""Makes k_diffusion.json: what k-diffusion and the web UI's restart do with a toy denoiser and known noise.

    python tests/golden/k_diffusion.py sampling.py sd_samplers_extra.py > tests/golden/k_diffusion.json

The arguments are k_diffusion/sampling.py (crowsonkb/k-diffusion, commit 4601bf0) and modules/sd_samplers_extra.py of
AUTOMATIC1111's web UI (as kept in Haoming02/sd-webui-forge-classic, commit 1f95d717). Only their formulas are run, in
float64; packages that they import for Brownian trees and likelihoods are replaced by empty modules.
"""

import json
import sys
import types
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STEPS = (1, 2, 7, 20, 40)
X = (3.0, -2.0, 0.5)


def denoised(x: Tensor, sigma: Tensor) -> Tensor:
    """A toy that no solver integrates exactly."""
    return torch.tanh(x) / (1 + sigma[0]) + 0.1 * x / (1 + sigma[0] ** 2)


def levels(steps: int, final: float) -> list[float]:
    """Even in sigma^(1/7) from 14 to 0.03, then `final`."""
    ramp = [i / max(steps - 1, 1) for i in range(steps)]
    return [(14 ** (1 / 7) * (1 - r) + 0.03 ** (1 / 7) * r) ** 7 for r in ramp] + [final]


def draws() -> Callable[..., Tensor]:
    """Noise without a generator: draw number n is cos(n + 1), cos(n + 2), cos(n + 3)."""
    count = 0

    def draw(*_: object) -> Tensor:
        nonlocal count
        count += 1
        return torch.tensor([count, count + 1, count + 2], dtype=torch.float64).cos()

    return draw


class Draw:
    """Noise that is drawn when it is first added to something."""

    def __init__(self, draw: Callable[[], Tensor], factor: float = 1.0) -> None:
        self.draw, self.factor = draw, factor

    def __mul__(self, factor: float) -> "Draw":
        return Draw(self.draw, self.factor * factor)

    def __radd__(self, x: Tensor) -> Tensor:
        return x + self.factor * self.draw()


def deferred(draw: Callable[[], Tensor]) -> Callable[[Tensor], Draw]:
    """A randn_like whose draws count only when they are used."""
    return lambda x: Draw(draw)


def append_dims(x: Tensor, ndim: int) -> Tensor:
    """x with dimensions of size 1 behind its own."""
    return x[(...,) + (None,) * (ndim - x.ndim)]


def load(path: str, name: str) -> Any:  # Any: a module that is not installed has no types
    """The module in a file, under the name that others import it by."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    module.__package__ = name.rpartition(".")[0]
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main(sampling: str, extra: str) -> None:
    """Print the JSON."""
    torch.set_default_dtype(torch.float64)
    package = types.ModuleType("k_diffusion")
    package.__path__ = []
    sys.modules["k_diffusion"] = package
    for name in ("torchdiffeq", "torchsde", "k_diffusion.utils"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules["torchdiffeq"])["odeint"] = None
    vars(sys.modules["k_diffusion.utils"])["append_dims"] = append_dims
    k = load(sampling, "k_diffusion.sampling")
    vars(package)["sampling"] = k
    restart = load(extra, "sd_samplers_extra").restart_sampler

    cases: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
        "euler_ancestral": (k.sample_euler_ancestral, {"eta": 0.7, "s_noise": 1.1}),
        "euler": (k.sample_euler, {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.1}),
        "heun": (k.sample_heun, {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.1}),
        "dpm2": (k.sample_dpm_2, {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.1}),
        "dpm2_ancestral": (k.sample_dpm_2_ancestral, {"eta": 0.7, "s_noise": 1.1}),
        "lms": (k.sample_lms, {}),
        "dpmpp_2s_ancestral": (k.sample_dpmpp_2s_ancestral, {"eta": 0.7, "s_noise": 1.1}),
        "dpmpp_sde": (k.sample_dpmpp_sde, {"eta": 0.7, "s_noise": 1.1, "r": 0.4}),
        "dpmpp_2m": (k.sample_dpmpp_2m, {}),
        "dpmpp_2m_sde": (k.sample_dpmpp_2m_sde, {}),
        "dpmpp_2m_sde/heun": (k.sample_dpmpp_2m_sde, {"solver_type": "heun", "eta": 0.7, "s_noise": 1.1}),
        "dpmpp_3m_sde": (k.sample_dpmpp_3m_sde, {"eta": 0.7, "s_noise": 1.1}),
        "restart": (restart, {"s_noise": 1.1}),
    }
    results: list[dict[str, object]] = []
    original = torch.randn_like
    for name, (sample, options) in cases.items():
        for steps in STEPS:
            for final in (0.0, 0.01):
                if name == "restart" and steps >= 20 and final > 0:
                    continue  # it always ends at 0 when it spaces anew
                if name.startswith(("dpmpp_2m_sde", "dpmpp_3m_sde")) and (steps, final) == (1, 0.0):
                    continue  # it fails on that
                draw = draws()
                # euler, heun and dpm2 draw at every step and use it only where they churn: count what is used.
                torch.randn_like = deferred(draw) if "s_churn" in options else draw
                own = {} if "s_churn" in options or name in {"lms", "dpmpp_2m", "restart"} else {"noise_sampler": draw}
                x = torch.tensor([X])  # [1 3]
                end = sample(denoised, x, torch.tensor(levels(steps, final)), disable=True, **options, **own)
                results.append(
                    {
                        "name": name.split("/")[0],
                        "options": options,
                        "steps": steps,
                        "final": final,
                        "x": list(map(float, end[0])),
                    }
                )
    torch.randn_like = original
    source = f"crowsonkb/k-diffusion 4601bf0; Haoming02/sd-webui-forge-classic 1f95d717; torch {torch.__version__}"
    lines = ",\n".join(json.dumps(result) for result in results)
    print(f'{{"source": {json.dumps(source)}, "results": [\n{lines}\n]}}')


if __name__ == "__main__":
    main(*map(str, map(Path, sys.argv[1:3])))
