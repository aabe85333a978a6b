"""One training step of Stable Diffusion 1.5 at full size equals diffusers': 256 pixels, batch 1, checkpointed, float32.

Latent, noise and timestep are those that this package's recipes draw; weights are random, scaled by fan-in, and shared.
The step runs in a fresh process, so that its peak memory can be told: weights, gradients, activations; no optimiser.
MEZZOTINT_RESULTS names a folder for full_size_step.json.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mezzotint.diffusion.loss import snr_weight, squared_error
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning
from mezzotint.training.part import Batch
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.step import DiffusionSettings, examples

SIDE, TOKENS, GAMMA = 32, 77, 5.0
LOSS, GRADIENT = 1e-6, 1e-4  # relative
BUDGET_GIB = 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_step_of_sd15_equals_diffusers() -> None:
    folder = str(Path(__file__).parent.parent)
    paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, __file__], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    if place := os.environ.get("MEZZOTINT_RESULTS"):
        (Path(place) / "full_size_step.json").write_text(json.dumps(told, indent=2) + "\n")
    assert told["loss"]["relative"] <= LOSS
    assert told["gradients"]["worst"] <= GRADIENT
    assert told["gradients"]["compared"] == told["gradients"]["of_diffusers"]
    assert told["peak_gib"]["both"] <= BUDGET_GIB


def main() -> None:
    """Take the step with both U-Nets, one after the other; print what came out as JSON."""
    from models.oracles import UNET_RULES, relative, renamed, unet_pair

    config, generator = PRESETS["sd15"].unet, torch.Generator().manual_seed(0)
    ours, theirs = unet_pair(config, generator)
    settings = DiffusionSettings(snr_gamma=GAMMA)
    schedule = settings.schedule()
    latent = torch.randn(1, 4, SIDE, SIDE, generator=generator)
    context = torch.randn(1, TOKENS, config.context or 0, generator=generator)
    shown = examples(settings, schedule, latent, Batch(0, range(1), [0], 1), seed=0)
    weight = snr_weight(settings.prediction_type, schedule, shown.t, settings.snr_gamma)

    ours.requires_grad_()
    ours.is_checkpointed = True
    begun = time.perf_counter()
    with ExplicitAttention():
        output = ours(shown.x, shown.t.float(), ours.prepare(Conditioning(context)))
        loss = squared_error(output, shown.wanted, weight).mean()
        torch.autograd.backward(loss)
    seconds = {"ours": round(time.perf_counter() - begun, 1)}
    peak = {"ours": peak_gib()}

    theirs.requires_grad_().train()
    theirs.enable_gradient_checkpointing()
    begun = time.perf_counter()
    said = theirs(shown.x, shown.t, context).sample
    expected = ((said - shown.wanted).square().mean((1, 2, 3)) * weight.float()).mean()
    expected.backward()
    seconds["theirs"] = round(time.perf_counter() - begun, 1)
    peak["both"] = peak_gib()

    pulls = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    errors: dict[str, float] = {}
    for name, parameter in ours.named_parameters():
        grad = pulls[renamed(name, UNET_RULES)]
        assert parameter.grad is not None
        errors[name] = relative(parameter.grad, grad.view(parameter.shape))
    worst = max(errors, key=errors.__getitem__)
    told = {
        "loss": {"ours": loss.item(), "theirs": expected.item(), "relative": abs((loss / expected).item() - 1)},
        "gradients": {
            "compared": len(errors), "of_diffusers": len(pulls), "worst": errors[worst], "of": worst,
            "median": sorted(errors.values())[len(errors) // 2],
        },
        "peak_gib": peak, "seconds": seconds, "parameters": sum(p.numel() for p in ours.parameters()),
        "timestep": int(shown.t), "latent": [1, 4, SIDE, SIDE], "min_snr_gamma": GAMMA,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "platform": platform.platform(),
    }  # fmt: skip
    print(json.dumps(told))


def peak_gib() -> float:
    """The most memory that this process has had resident so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
