"""Where Inception's weights are, and the public files that hold them. Nothing is ever downloaded.

| file | of | read |
|---|---|---|
| `pt_inception-2015-12-05-6726825d.pth` | pytorch-fid | in the closed process of `quarantine` |
| `weights-inception-2015-12-05-6726825d.pth` | torch-fidelity, torchmetrics | in the same way |
| `classify_image_graph_def.pb` from `inception-2015-12-05.tgz` | TensorFlow | by `graphdef` |
| `inception-2015-12-05.pt`, `inception-v3-2015-12-05.pkl` | NVIDIA | no: these are programs |
| a `.safetensors` with the names of the .pth files | anybody | yes |

All hold the same network, so they are told apart by their tensors: two files with the same tensors give comparable
numbers. Only files with a hash that is known give numbers called FID.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mezzotint.checkpoints.detection import refusal
from mezzotint.checkpoints.files import read_state, sha256_of
from mezzotint.checkpoints.quarantine import is_pickle, to_safetensors
from mezzotint.checkpoints.translate import listed
from mezzotint.evaluation.graphdef import read_constants
from mezzotint.evaluation.inception import layers, shapes

VARIABLE = "MEZZOTINT_INCEPTION"
NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
GRAPH = "classify_image_graph_def.pb"
KNOWN = ("6726825d",)  # beginnings of SHA-256 of files: that of both .pth files is in their names, as torch hub has it

_GET = (
    f"get {NAMES[0]} (91 MB, release fid_weights of mseitzer/pytorch-fid) and name it: --features inception:FILE, or "
    f"{VARIABLE}=FILE, or put it into {{folder}}"
)


class Weights(NamedTuple):
    """Tensors of `inception.shapes`, in float32; the SHA-256 over them; and whether the file is known by its hash."""

    state: dict[str, Tensor]
    sha256: str
    is_known: bool


def read_inception(path: str | Path | None = None) -> Weights:
    """The weights in `path`, else in the file that $MEZZOTINT_INCEPTION names, else in torch hub's cache.

    Raises: CheckpointError that says which file to get and where to put it, or what does not fit.
    """
    found = _found(path)
    state = _read(found)
    if lines := _problems(state):
        raise refusal(
            f"{found.name} is not the Inception of FID",
            listed(str(found), lines),
            f"torchvision's own inception_v3 is another network; {_get()}",
        )
    ours = {name: state[name].float().contiguous() for name in shapes()}
    return Weights(ours, content_hash(ours), sha256_of(found).startswith(KNOWN))


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, whatever file they came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def hub_folder() -> Path:
    """Where torch hub keeps weights: below $TORCH_HOME, else $XDG_CACHE_HOME/torch, else ~/.cache/torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def from_graph(constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TensorFlow's constants under our names: kernels [rows columns in out] become [out in rows columns]."""
    norms = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    state: dict[str, Tensor] = {}
    for layer in layers():
        if (kernel := constants.get(f"{layer.graph}/conv2d_params")) is not None:
            state[f"{layer.name}.conv.weight"] = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel
        for ours, theirs in norms.items():
            if (values := constants.get(f"{layer.graph}/batchnorm/{theirs}")) is not None:
                state[f"{layer.name}.bn.{ours}"] = values
    if (last := constants.get("softmax/weights")) is not None:
        state["fc.weight"] = last.T if last.ndim == 2 else last
    return state


def _found(path: str | Path | None) -> Path:
    """The file that counts. A name that was given must exist: it is not passed over for another."""
    said, where = (path, "") if path is not None else (os.environ.get(VARIABLE), f"{VARIABLE}=")
    if said:
        if Path(said).is_file():
            return Path(said)
        raise refusal("the Inception weights are not there", f"{where}{said}: no such file", _get())
    folder = hub_folder()
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise refusal(
        "FID needs the Inception weights of 2015-12-05, which this package may not ship and never downloads",
        f"looked at: --features, {VARIABLE}, {folder}",
        f"{_get()}; or measure with other features: --features evaluator",
    )


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pb":
        return from_graph(read_constants(path))
    if path.suffix == ".pkl" or _is_script(path):
        raise refusal(
            f"{path.name} is a program (NVIDIA's wrapper around the same network), and would have to be run to be read",
            str(path),
            _get(),
        )
    return read_state(to_safetensors(path) if is_pickle(path) else path)


def _is_script(path: Path) -> bool:
    """Whether a .pt file is a TorchScript archive: a zip file with code in it."""
    with path.open("rb") as file:
        data = file.read(4) == b"PK\x03\x04"
        if not data:
            return False
        file.seek(-min(path.stat().st_size, 1 << 20), os.SEEK_END)  # the directory of the archive is at the end
        return b"/code/__torch__" in file.read()


def _problems(state: Mapping[str, Tensor]) -> list[str]:
    lines: list[str] = []
    for name, shape in shapes().items():
        if name not in state:
            lines.append(f"{name}: not in the file, {shape} in the model")
        elif tuple(state[name].shape) != shape:
            lines.append(f"{name}: shape {tuple(state[name].shape)} in the file, {shape} in the model")
    return lines


def _get() -> str:
    return _GET.format(folder=hub_folder())
