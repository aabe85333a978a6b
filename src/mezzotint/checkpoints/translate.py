"""Key maps between our module names and the names in files, applied and inverted without changing a bit.

A `KeyMap` has one `Entry` per tensor of our module; `ldm`, `diffusers` and `openclip` generate theirs from a config, so
that a new shape of a network needs no new table. Forms are views wherever possible: a memory-mapped file stays unread.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mezzotint.checkpoints.files import more
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from mezzotint.models.unet import UNet, UNetConfig
from mezzotint.models.vae import AutoencoderKL, VAEConfig

Config = UNetConfig | VAEConfig | TextConfig | ImageConfig
Form = Literal["same", "conv", "transposed"]
PARTS = 3  # q, k and v, in this order, in one matrix
SHOWN = 5  # problems written out in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where one of our tensors is in a file, and in which form.

    "conv": the file has a 1x1 convolution [o i 1 1] where we have a matrix. "transposed": the matrix in the file acts
    from the right. `part`: ours is this third of the rows of the file's tensor, which three entries share.
    """

    key: str
    form: Form = "same"
    part: int | None = None
    aliases: tuple[str, ...] = ()  # names of the same tensor in older files


KeyMap = dict[str, Entry]


@runtime_checkable
class Shaped(Protocol):
    """A tensor, or what a header says about one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of every dimension."""
        ...


class _Uninitialised(TorchFunctionMode):
    """Skips the drawing of random weights: on the meta device it means nothing, but imports for most of a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # torch's signature
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def network(config: Config) -> nn.Module:
    """The network of a config without memory for weights (meta device); load a state dict with `assign=True`."""
    with torch.device("meta"), _Uninitialised():
        match config:
            case UNetConfig():
                return UNet(config)
            case VAEConfig():
                return AutoencoderKL(config)
            case TextConfig():
                return TextTower(config)
            case ImageConfig():
                return ImageTower(config)


@lru_cache(maxsize=64)
def shapes_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of a network."""
    return {name: tuple(tensor.shape) for name, tensor in network(config).state_dict().items()}


def fitted(keymap: KeyMap, config: Config) -> KeyMap:
    """The entries that the network has, in its order, out of a map with more."""
    return {name: keymap[name] for name in shapes_of(config)}


def modules(pairs: Iterable[tuple[str, str]], *, bias: bool = True) -> KeyMap:
    """Entries for modules with weight and bias, from (our module, their module) pairs."""
    kinds = ("weight", "bias") if bias else ("weight",)
    return {f"{ours}.{kind}": Entry(key=f"{theirs}.{kind}") for ours, theirs in pairs for kind in kinds}


def nested(ours: str, theirs: str, keymap: KeyMap) -> KeyMap:
    """The map of a module that is called `ours` by us and `theirs` in the file."""
    return {f"{ours}.{name}": entry for name, entry in renamed(keymap, lambda key: f"{theirs}.{key}").items()}


def renamed(keymap: KeyMap, rename: Callable[[str], str]) -> KeyMap:
    """The same map with other names in the file."""
    return {
        name: replace(entry, key=rename(entry.key), aliases=tuple(rename(alias) for alias in entry.aliases))
        for name, entry in keymap.items()
    }


def prefixed(keymap: KeyMap, prefix: str) -> KeyMap:
    """The same map for a file that has other tensors, too."""
    return renamed(keymap, lambda key: prefix + key)


def formed(keymap: KeyMap, form: Form) -> KeyMap:
    """The same map with every matrix, that is every weight, in another form."""
    return {name: replace(entry, form=form) if name.endswith("weight") else entry for name, entry in keymap.items()}


def file_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the file of a tensor that has `shape` in our module."""
    if entry.part is not None:
        return (PARTS * shape[0], *shape[1:])
    if entry.form == "conv":
        return (*shape, 1, 1)
    return shape[::-1] if entry.form == "transposed" else shape


def used(keymap: KeyMap, state: Mapping[str, Shaped]) -> dict[str, str]:
    """our name -> the name in the file, for the tensors that the file has."""
    found: dict[str, str] = {}
    for name, entry in keymap.items():
        if key := next((key for key in (entry.key, *entry.aliases) if key in state), None):
            found[name] = key
    return found


def problems(keymap: KeyMap, state: Mapping[str, Shaped], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line per tensor that is missing from a file or has another shape, with both names."""
    keys = used(keymap, state)
    lines: list[str] = []
    for name, entry in keymap.items():
        expected = file_shape(entry, shapes[name])
        if name not in keys:
            lines.append(f"{entry.key}: not in the file, {expected} in the model ({name})")
        elif (found := tuple(state[keys[name]].shape)) not in _accepted(entry, shapes[name]):
            lines.append(f"{keys[name]}: shape {found} in the file, {expected} in the model ({name})")
    return lines


def apply(
    keymap: KeyMap, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], *, where: str
) -> dict[str, Tensor]:
    """Our state dict from the tensors of a file, as views of them.

    Raises: CheckpointError that lists what is missing or of another shape; `where` names the file.
    """
    if lines := problems(keymap, state, shapes):
        raise CheckpointError(listed(where, lines))
    return {name: _ours(keymap[name], state[key], shapes[name]) for name, key in used(keymap, state).items()}


def apply_all(
    maps: Mapping[str, KeyMap],
    configs: Mapping[str, Config],
    state: Mapping[str, Tensor],
    *,
    where: str,
    optional: re.Pattern[str],
    within: tuple[str, ...] = ("",),
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Our state dicts of several networks by role, and the tensors that none of them has, by their names in the file.

    Raises: CheckpointError as `apply`, and for a left-over tensor whose name begins with one of `within`, unless it is
    `optional`.
    """
    shapes = {role: shapes_of(configs[role]) for role in maps}
    lines = [line for role, keymap in maps.items() for line in problems(keymap, state, shapes[role])]
    known = {key for keymap in maps.values() for key in used(keymap, state).values()}
    extras = {key: tensor for key, tensor in state.items() if key not in known}
    for key, tensor in extras.items():
        if key.startswith(within) and not optional.search(key):
            lines.append(f"{key}: {tuple(tensor.shape)} in the file, not in the model")
    if lines:
        raise CheckpointError(listed(where, lines))
    return {role: apply(keymap, state, shapes[role], where=where) for role, keymap in maps.items()}, extras


def invert(keymap: KeyMap, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file from our state dict: the inverse of `apply`, bit by bit."""
    theirs: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for name, entry in keymap.items():
        tensor = ours[name]
        if entry.part is not None:
            parts.setdefault(entry.key, []).append(tensor)  # q, k, v: maps are generated in this order
        elif entry.form == "conv":
            theirs[entry.key] = tensor[..., None, None]
        else:
            theirs[entry.key] = tensor.T if entry.form == "transposed" else tensor
    return theirs | {key: torch.cat(thirds) for key, thirds in parts.items()}


def listed(where: str, lines: list[str]) -> str:
    """An error text of at most `SHOWN` lines of problems, with the rest counted."""
    count = f"{len(lines)} tensor{'s do' if len(lines) > 1 else ' does'} not fit"
    return f"{where}: {count}:\n  " + "\n  ".join(lines[:SHOWN]) + more(len(lines) - SHOWN)


def _accepted(entry: Entry, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes that can be read: some programs store the matrix where the layout has a 1x1 convolution."""
    expected = file_shape(entry, shape)
    return (expected, shape) if entry.form == "conv" else (expected,)


def _ours(entry: Entry, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if entry.part is not None:
        return tensor[entry.part * shape[0] : (entry.part + 1) * shape[0]]
    if entry.form == "conv":
        return tensor.reshape(shape)
    return tensor.T if entry.form == "transposed" else tensor
