"""PyTorch's pickles read without running them: a stack machine that knows tensors and calls nothing.

A pickle is a program for a small stack machine; here its instructions are walked one by one. Where it says "call this
name", the name is looked up in a table of tensors and plain values, and any other name refuses the file. Nothing is
imported or called by a name from the file, ever. Standard library only: this runs in the child process of `quarantine`.

Source: `pickletools` documents the instructions, `torch/_utils.py` the functions that files of weights name.
"""

import math
import mmap
import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, TypeGuard, cast

MAX_INSTRUCTIONS = 10_000_000
MAX_RANK = 8

# storage class -> safetensors dtype, bytes
STORAGES = {
    "torch.DoubleStorage": ("F64", 8),
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_TYPED = "torch._tensor._rebuild_from_type_v2"
_DICTIONARIES = {
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "builtins.dict",
    "__builtin__.dict",
}
# What else is found in real files. Their content does not matter: calling them makes an `Inert`, whatever is passed.
_INERT = {
    "_codecs.encode",
    "__builtin__.set",
    "__builtin__.list",
    "argparse.Namespace",
    "builtins.int",
    "builtins.list",
    "builtins.set",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.Tensor",
    "torch.bfloat16",
    "torch.device",
    "torch.float16",
    "torch.float32",
    "torch.nn.modules.container.ParameterDict",
    "torch.nn.parameter.Parameter",
}
_INERT_MODULES = ("pytorch_lightning.", "lightning.pytorch.", "omegaconf.")


class Refused(Exception):
    """The file is not read: what was found, and where."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(what)
        self.what, self.where = what, where


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle asked for. It stays a name."""

    name: str


class Inert:
    """What calling a harmless name would have made. `state` is kept: a ParameterDict has its tensors there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: object = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements somewhere in the file, under the key that the pickle gives it."""

    key: str
    dtype: str
    itemsize: int
    elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and stride in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


class Machine:
    """The stack machine of one pickle: values are plain data, names, storages and tensors."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, file: BinaryIO | mmap.mmap, where: str) -> object:
        """The value of the pickle that starts at the file's position, which is left behind it."""
        position: int | None = 0
        try:
            with warnings.catch_warnings(action="error"):  # of text with escapes that are none
                for count, step in enumerate(pickletools.genops(cast("BinaryIO", file))):  # a mapped file reads as one
                    instruction, argument, position = step
                    if count == MAX_INSTRUCTIONS:
                        raise Refused(f"more than {MAX_INSTRUCTIONS:,} instructions")
                    if instruction.name == "STOP":
                        break
                    if instruction.name not in _STEPS:
                        raise Refused(f"pickle instruction {instruction.name}, which no file of weights needs")
                    _STEPS[instruction.name](self, argument)
                return self.pop()
        except Refused as error:
            raise Refused(error.what, f"{where}, byte {position}") from None
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, Warning, struct.error) as error:
            raise Refused(f"a damaged pickle ({str(error)[:100]})", f"{where}, after byte {position}") from error

    def pop(self) -> object:
        """The top of the stack, taken off."""
        return self.stack.pop()

    def pop_mark(self) -> list[object]:
        """Everything above the last mark, taken off."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        """Start a new run of values."""
        self.marks.append(self.stack)
        self.stack = []

    def discard(self) -> None:
        """Drop the top of the stack, or the mark if nothing is above it."""
        if self.stack:
            self.pop()
        else:
            self.pop_mark()

    def discard_mark(self) -> None:
        """Drop everything above the last mark."""
        self.pop_mark()

    def take(self, count: int) -> tuple[object, ...]:
        """The topmost values, taken off, in their order."""
        if len(self.stack) < count:
            raise IndexError("not enough values on the stack")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def extend(self, items: list[object]) -> None:
        """APPENDS, ADDITEMS: put items into the container below them."""
        target = self.stack[-1]
        if isinstance(target, list):
            cast("list[object]", target).extend(items)
        elif not isinstance(target, Inert):
            raise Refused(f"items are added to {kind_of(target)}")

    def update(self, items: list[object]) -> None:
        """SETITEMS: put keys and values into the dictionary below them."""
        target = self.stack[-1]
        if isinstance(target, dict):
            cast("dict[object, object]", target).update(_pairs(items))
        elif not isinstance(target, Inert):
            raise Refused(f"entries are added to {kind_of(target)}")

    def name(self, module: object, name: object) -> None:
        """GLOBAL, STACK_GLOBAL: a name that may be used, as a name."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a name that is not text")
        full = f"{module}.{name}"
        if (
            full in STORAGES
            or full in _TENSORS | _PARAMETERS | _DICTIONARIES | _INERT
            or full == _TYPED
            or full.startswith(_INERT_MODULES)
        ):
            self.stack.append(Global(full))
            return
        raise Refused(f"it asks for {full[:100]!r}, which has no place among weights and could run code")

    def call(self) -> None:
        """REDUCE, NEWOBJ: what calling a known name stands for."""
        function, arguments = self.take(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Refused(f"it calls {kind_of(function)}")
        self.stack.append(_made(function.name, cast("tuple[object, ...]", arguments)))

    def build(self) -> None:
        """BUILD: attributes of an object; those of a dictionary are notes of PyTorch and dropped."""
        target, state = self.take(2)
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            raise Refused(f"attributes are set on {kind_of(target)}")
        self.stack.append(cast("object", target))

    def storage(self, persistent: object) -> None:
        """BINPERSID: a storage, written as ('storage', class, key, device, element count)."""
        fields = cast("tuple[object, ...]", persistent) if isinstance(persistent, tuple) else ()
        if len(fields) < 5 or fields[0] != "storage" or any(field is not None for field in fields[5:]):
            raise Refused("a storage that is not described as PyTorch does")
        kind, key, count = fields[1], fields[2], fields[4]
        if not isinstance(kind, Global) or kind.name not in STORAGES:
            raise Refused(f"a storage of class {kind!r:.80}, which is not supported")
        if not isinstance(key, str) or not is_index(count):
            raise Refused("a storage without a key and a size")
        storage = Storage(key, *STORAGES[kind.name], count)
        known = self.storages.setdefault(key, storage)
        if known.elements * known.itemsize != count * storage.itemsize:
            raise Refused(f"two sizes of storage {key[:80]!r}")
        self.stack.append(storage)


def kind_of(value: object) -> str:
    """What a value is, in a word."""
    return value.name[:100] if isinstance(value, Global | Inert) else type(value).__name__


def is_index(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _pairs(items: list[object]) -> dict[object, object]:
    """Alternating keys and values as a dictionary. Compound keys are refused: hashing them can take forever."""
    if len(items) % 2:
        raise Refused("a dictionary with a key too many")
    for key in items[::2]:
        if not isinstance(key, str | int | float | bytes | Inert | Global) and key is not None:
            raise Refused(f"a dictionary key of kind {kind_of(key)}")
    return dict(zip(items[::2], items[1::2], strict=True))


def _made(name: str, arguments: tuple[object, ...]) -> object:
    """What calling a known name with these arguments stands for."""
    if name in _DICTIONARIES:
        return _dictionary(arguments)
    if name in _TENSORS:
        return _tensor(arguments)
    if name in _PARAMETERS:
        if not arguments or not isinstance(arguments[0], Tensor):
            raise Refused("a parameter that is not a tensor")
        return arguments[0]
    if name == _TYPED:  # (function, class, its arguments, attributes)
        function, inner = arguments[0], arguments[2]
        if not isinstance(function, Global) or function.name == _TYPED or not isinstance(inner, tuple):
            raise Refused("a tensor class that is not described as PyTorch does")
        return _made(function.name, cast("tuple[object, ...]", inner))
    if name in STORAGES:
        raise Refused("a storage made by the pickle itself")
    return Inert(name)


def _dictionary(arguments: tuple[object, ...]) -> dict[object, object]:
    entries = arguments[-1] if arguments else None
    if isinstance(entries, dict):
        return dict(cast("dict[object, object]", entries))
    if not isinstance(entries, list | tuple):  # nothing, or the default of a defaultdict
        return {}
    flat: list[object] = []
    for entry in cast("list[object]", entries):
        if not isinstance(entry, list | tuple) or len(cast("list[object]", entry)) != 2:
            raise Refused("a dictionary made of something else than pairs")
        flat.extend(cast("list[object]", entry))
    return _pairs(flat)


def _tensor(arguments: tuple[object, ...]) -> Tensor:
    """A checked view: inside its storage, and not larger than it."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise Refused("a tensor that is not described as PyTorch does")
    sizes, steps = cast("tuple[object, ...]", shape), cast("tuple[object, ...]", stride)
    if len(sizes) != len(steps) or len(sizes) > MAX_RANK or not is_index(offset):
        raise Refused(f"a tensor with {len(sizes)} dimensions and {len(steps)} strides")
    whole = tuple(size for size in sizes if is_index(size))
    jumps = tuple(step for step in steps if is_index(step))
    if len(whole) != len(sizes) or len(jumps) != len(steps):
        raise Refused("a tensor with a size or stride that is not a whole number from 0")
    tensor = Tensor(storage, offset, whole, jumps)
    last = offset + sum((size - 1) * step for size, step in zip(whole, jumps, strict=True))
    if tensor.elements and (last >= storage.elements or tensor.elements > storage.elements):
        raise Refused(f"a tensor of shape {list(whole)} in a storage of {storage.elements:,} elements")
    return tensor


def _constant(value: object) -> Callable[[Machine, object], None]:
    return lambda machine, _: machine.stack.append(value)


def _push(machine: Machine, argument: object) -> None:
    machine.stack.append(argument)


def _put(machine: Machine, index: object) -> None:
    machine.memo[cast("int", index)] = machine.stack[-1]  # the instruction's argument is a number


def _get(machine: Machine, index: object) -> None:
    machine.stack.append(machine.memo[cast("int", index)])  # the instruction's argument is a number


def _global(machine: Machine, argument: object) -> None:
    module, _, name = str(argument).partition(" ")
    machine.name(module, name)


_STEPS: dict[str, Callable[[Machine, object], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.discard(),
    "POP_MARK": lambda machine, _: machine.discard_mark(),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Inert("builtins.set")),
    "LIST": lambda machine, _: _collect(machine, list),
    "TUPLE": lambda machine, _: _collect(machine, tuple),
    "DICT": lambda machine, _: _collect(machine, _pairs),
    "FROZENSET": lambda machine, _: _collect(machine, lambda items: Inert("builtins.frozenset")),
    "TUPLE1": lambda machine, _: machine.stack.append(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.stack.append(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.stack.append(machine.take(3)),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda machine, _: machine.name(*machine.take(2)),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(machine.pop()),
}


def _collect(machine: Machine, make: Callable[[list[object]], object]) -> None:
    items = machine.pop_mark()
    machine.stack.append(make(items))
