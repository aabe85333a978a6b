"""Whether the full-size models of the family run end to end on this machine, in how much memory, and how soon.

Measures, in a fresh process per model, bfloat16, random weights in a diffusers folder: seconds from the end of `import
torch` to the start of the first U-Net evaluation (page cache warm: the folder was read just before), seconds per
step (median), decoding, and peak resident memory: with memory-mapped weights, and what belongs to no file.
Not measured: pictures. Random weights make none, and what comes out is only checked to be finite and not constant.
What would make the numbers lie: another busy process (see load), a cold page cache.

    python benchmarks/full_size.py [sd15 sd2-v sdxl] [--steps 3] [--weights FOLDER]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/full_size.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from resident import Resident

RESULTS = Path(__file__).parent / "results" / "full_size.json"
SIZES = {"sd15": 512, "sd2": 512, "sd2-v": 768, "sdxl": 1024, "sdxl-refiner": 1024}


def build(name: str, folder: Path) -> None:
    """Write a model of this preset with random bfloat16 weights, scaled so that activations keep their size."""
    import torch

    from mezzotint.checkpoints.component import Checkpoint, Component, text_roles
    from mezzotint.checkpoints.save import save_folder
    from mezzotint.checkpoints.scheduler import default_config
    from mezzotint.models.clip import TextTower
    from mezzotint.models.presets import PRESETS
    from mezzotint.models.unet import UNet
    from mezzotint.models.vae import AutoencoderKL
    from mezzotint.names import PRESETS as NAMES

    generator = torch.Generator().manual_seed(0)

    def drawn(role: str, network: torch.nn.Module, config: object) -> Component:
        state = {
            key: torch.ones(value.shape, dtype=torch.bfloat16)
            if "norm" in key and key.endswith("weight")
            else torch.empty(value.shape, dtype=torch.bfloat16).uniform_(
                -(width := (3 / max(1, value[0].numel() if value.ndim > 1 else 10**4)) ** 0.5),
                width,
                generator=generator,
            )
            for key, value in network.state_dict().items()
        }
        return Component(role=role, config=config, state=state, source=folder)  # pyright: ignore[reportArgumentType]

    preset, objective = PRESETS[name], NAMES[name].objective
    with torch.device("meta"):
        unet, vae = UNet(preset.unet), AutoencoderKL(preset.vae)
        towers = [TextTower(config) for config in preset.text]
    checkpoint = Checkpoint(
        preset=name,
        objective=objective,
        unet=drawn("unet", unet, preset.unet),
        vae=drawn("vae", vae, preset.vae),
        text=tuple(
            drawn(role, tower, config)
            for role, tower, config in zip(text_roles(preset.text), towers, preset.text, strict=True)
        ),
        scheduler=default_config(name, objective),
        tokenizers=(None,) * len(preset.text),
    )
    save_folder(checkpoint, folder)


def measure(name: str, folder: Path, steps: int) -> dict[str, object]:
    """One picture with the model in `folder`; called in a fresh process."""
    import torch

    imported = time.perf_counter()
    resident = Resident(os.getpid())
    import numpy as np

    import mezzotint

    system = mezzotint.load(folder, dtype="bfloat16")
    loaded = time.perf_counter()
    starts: list[float] = []
    system.unet.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter()))
    running = mezzotint.stream(system, prompt="a red fox in the snow", steps=steps, seed=1)
    ends = [time.perf_counter() for _ in running]
    finished = time.perf_counter()
    picture = np.asarray(running.result.images[0])
    assert picture.shape == (SIZES[name], SIZES[name], 3)
    assert picture.std() > 0
    return {
        "preset": name,
        "size": SIZES[name],
        "load_s": round(loaded - imported, 2),
        "first_step_starts_s": round(starts[0] - imported, 2),
        "first_step_done_s": round(ends[0] - imported, 2),
        "step_s": round(statistics.median(end - start for start, end in zip(starts, ends, strict=True)), 2),
        "decode_and_hash_s": round(finished - ends[-1], 2),
        "peak_gib": resident.peak_gib(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Build what is missing, measure each model in its own process, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["sd15", "sd2-v", "sdxl"], metavar="preset")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--weights", type=Path, help="where random models are kept; default: a temporary folder")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # the child process: measure this folder
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.presets[0], asked.one, asked.steps)))
        return
    import torch

    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.presets:
            folder = (asked.weights or Path(temporary)) / name
            if not folder.exists():
                build(name, folder)
            command = [sys.executable, __file__, name, "--steps", str(asked.steps), "--one", str(folder)]
            for _ in range(2):  # the first run warms the page cache and the hash cache
                done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr)
    table = {"torch": torch.__version__, "platform": platform.platform(), "steps": asked.steps, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
