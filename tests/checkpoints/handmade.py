"""Pickles and archives made by hand, good and hostile: what an attacker can write and PyTorch never would."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def saved(value: object, **options: Any) -> bytes:
    """A file as PyTorch writes it."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


class Call:
    """Pickles into a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


def in_zip(pickled: bytes, entries: dict[str, bytes] | None = None, **options: Any) -> bytes:
    """A zip archive such as PyTorch's around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        archive.writestr("m/data.pkl", pickled)
        for name, data in {
            "m/data/0": bytes(64),
            "m/byteorder": b"little",
            "m/version": b"3\n",
            **(entries or {}),
        }.items():
            archive.writestr(name, data)
    return out.getvalue()


def name(full: str) -> bytes:
    module, _, attribute = full.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(kind: str = "torch.FloatStorage", key: str = "0", count: int = 16) -> bytes:
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, data: bytes | None = None) -> bytes:
    """Instructions that put a tensor on the stack."""
    sizes, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (shape, stride))
    arguments = (data or storage()) + number(offset) + sizes + steps + b"\x89" + b"}"
    return name("torch._utils._rebuild_tensor_v2") + b"(" + arguments + b"tR"


def table(key: bytes, value: bytes) -> bytes:
    return b"\x80\x02}" + key + value + b"s."


def one(value: bytes) -> bytes:
    return table(text("a"), value)


TYPED = name("torch._tensor._rebuild_from_type_v2")
BIG = storage(count=4096)
PLAIN = one(tensor((16,), (1,)))


def chain(canary: str, protocol: int) -> bytes:
    """getattr(__import__("os"), "system")("touch …") in instructions of the first protocol."""
    module = b"cbuiltins\n__import__\n(Vos\ntR"
    function = b"cbuiltins\ngetattr\n(" + module + b"Vsystem\ntR"
    return b"(dVa\n" + function + f"(Vtouch {canary}\ntRs.".encode()


def call(function: object, arguments: Callable[[str], tuple[object, ...]]) -> Callable[[str, int], bytes]:
    return lambda canary, protocol: pickle.dumps({"a": Call(function, *arguments(canary))}, protocol)


SYSTEM = vars(os)["system"]
CALLS: dict[str, Callable[[str, int], bytes]] = {
    "os.system": call(SYSTEM, lambda canary: (f"touch {canary}",)),
    "builtins.eval": call(eval, lambda canary: (f"open({canary!r}, 'w').close()",)),
    "builtins.exec": call(exec, lambda canary: (f"open({canary!r}, 'w').close()",)),
    "builtins.open": call(open, lambda canary: (canary, "w")),
    "getattr of an import": chain,
    "subprocess.call": call(subprocess.call, lambda canary: (["touch", canary],)),
    "pathlib.Path.touch": call(Path.touch, lambda canary: (Path(canary),)),
    "builtins.bytearray": call(bytearray, lambda canary: (1 << 40,)),
}


def sequence(value: bytes, keys: object, data: bytes, *, system: object = None, protocol: int = 1001) -> bytes:
    """A file of the older form."""
    heads = (0x1950A86A20F9469CFC6C, protocol, system or {"little_endian": True})
    return b"".join(pickle.dumps(head, 2) for head in heads) + value + pickle.dumps(keys, 2) + data


def legacy(count: int = 16) -> bytes:
    """A pickle with one tensor; its storage has six fields in the older form."""
    six = storage().removesuffix(b"tQ") + b"NtQ"
    return one(tensor((count,), (1,), data=six))
