"""Makes inception.json: what torch-fidelity, pytorch-fid, torchmetrics and clean-fid do with drawn weights.

    sh benchmarks/peers/fid.sh FOLDER
    FOLDER/bin/python tests/golden/inception.py [--tensors FILE] > tests/golden/inception.json

The weights of 2015 are not needed: any weights show whether two programs compute the same function. They are drawn by
name, for the full-size network, and given to each program in its own file layout. FILE receives everything in full.
Needs torch alone to be imported, so that tests draw the same weights and pictures.
"""

import argparse
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

SIZES = ((299, 299), (64, 48), (341, 512))  # rows, columns: kept, enlarged, reduced
PROGRAMS = ("torch-fidelity", "pytorch-fid", "torchmetrics", "clean-fid", "torch", "pillow")
KEPT = 24  # features and logits, spread over all branches of the last block
PLACES = tuple((channel, 23 * i % 299, 67 * i % 299) for channel in range(3) for i in range(14))


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """A weight of this name: scaled by fan-in, so that what goes in comes out about as large."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith((".running_var", ".bn.weight")):
        return torch.rand(shape, generator=generator) + 0.5
    spread = (2 / (shape[1] * shape[2] * shape[3])) ** 0.5 if len(shape) == 4 else 0.1
    return torch.randn(shape, generator=generator) * spread


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """8-bit [3 h w] with slopes, edges and fine texture; whole numbers only."""
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    planes = [
        (x * (3 + c) + y * (5 - c) + (x * y) // (7 + seed) + 80 * ((x // 9 + y // 13 + c) % 2)) % 256 for c in range(3)
    ]
    return torch.stack(planes).to(torch.uint8)


def resized() -> dict[str, dict[str, Tensor]]:
    """Pictures at 299 x 299 in 0 … 255 by program, then by size."""
    tf = import_module("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    clean = import_module("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    found: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("torch-fidelity", "pytorch-fid", "torchmetrics", "clean-fid")
    }
    for height, width in SIZES:
        x, key = picture(height, width)[None].float(), f"{height}x{width}"
        half = torch.nn.functional.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        wide = torch.nn.functional.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False, antialias=True)
        found["torch-fidelity"][key] = tf(x, size=(299, 299), align_corners=False)[0]
        found["pytorch-fid"][key] = half[0] * 255
        found["torchmetrics"][key] = wide[0]
        found["clean-fid"][key] = torch.as_tensor(clean(picture(height, width).permute(1, 2, 0).numpy())).permute(
            2, 0, 1
        )
    return found


def networks() -> dict[str, dict[str, Tensor]]:
    """Features, and of torch-fidelity and torchmetrics logits, by program and size."""
    fidelity = import_module("torch_fidelity.feature_extractor_inceptionv3")
    pytorch_fid: Any = import_module("pytorch_fid.inception")  # Any: attributes are replaced
    metrics = import_module("torchmetrics.image.fid")
    shapes = _shapes(pytorch_fid)
    state = {name: drawn(name, shape) for name, shape in shapes.items()}
    pytorch_fid.load_state_dict_from_url = _answer(state)
    ours: dict[str, dict[str, Tensor]] = {name: {} for name in ("torch-fidelity", "pytorch-fid", "torchmetrics")}
    with tempfile.NamedTemporaryFile(suffix=".pth") as file, torch.inference_mode():
        torch.save(state, file.name)
        wanted = ["2048", "logits_unbiased"]
        one = fidelity.FeatureExtractorInceptionV3("peer", wanted, feature_extractor_weights_path=file.name)
        other = pytorch_fid.InceptionV3([3]).eval()
        third = metrics.NoTrainInceptionV3("peer", wanted, feature_extractor_weights_path=file.name)
        for height, width in SIZES:
            pixels, key = picture(height, width)[None], f"{height}x{width}"
            ours["torch-fidelity"][key], ours["torch-fidelity"][f"{key} logits"] = (found[0] for found in one(pixels))
            ours["pytorch-fid"][key] = other(pixels.float() / 255)[0][0, :, 0, 0]
            ours["torchmetrics"][key] = third._torch_fidelity_forward(pixels)[0][0]
    return ours


def _shapes(pytorch_fid: Any) -> Mapping[str, tuple[int, ...]]:  # Any: attributes are replaced
    """Names and shapes of the .pth layout, from pytorch-fid's own model."""
    torchvision = import_module("torchvision")
    network = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    names = {"A": ("5b", "5c", "5d"), "C": ("6b", "6c", "6d", "6e"), "E_1": ("7b",), "E_2": ("7c",)}
    for kind, blocks in names.items():  # the classes have the same layers as those that they replace
        assert all(
            issubclass(getattr(pytorch_fid, f"FIDInception{kind}"), type(getattr(network, f"Mixed_{b}")))
            for b in blocks
        )
    state: Mapping[str, Tensor] = network.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("tracked")}


def _answer(state: Mapping[str, Tensor]) -> Callable[..., Mapping[str, Tensor]]:
    """In place of a download."""

    def answer(*_: object, **__: object) -> Mapping[str, Tensor]:
        return state

    return answer


def import_torchvision() -> None:
    """torchvision beside a torch of another build: operators that do not exist are declared, and never called."""
    while True:
        try:
            import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(f"torchvision::{missing[1]}", "(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
        else:
            return


def main() -> None:
    """Ask all programs; print a few values of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensors")
    asked = parser.parse_args()
    import_torchvision()
    torch.set_num_threads(1)
    kernels, features = resized(), networks()
    if asked.tensors:
        torch.save({"resized": kernels, "features": features}, asked.tensors)
    print(
        json.dumps(
            {
                "source": "; ".join(f"{name} {version(name)}" for name in PROGRAMS),
                "resized": {
                    program: {
                        size: [round(float(image[place]), 5) for place in PLACES] for size, image in images.items()
                    }
                    for program, images in kernels.items()
                },
                "features": {
                    program: {
                        size: {
                            "kept": [round(float(value), 6) for value in values[:: len(values) // KEPT]],
                            "mean": round(float(values.double().mean()), 7),
                            "deviation": round(float(values.double().std()), 7),
                        }
                        for size, values in found.items()
                    }
                    for program, found in features.items()
                },
            }
        )
        .replace('"features"', '\n"features"')
        .replace('"resized"', '\n"resized"')
    )


if __name__ == "__main__":
    main()
