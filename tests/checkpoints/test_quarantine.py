"""Pickle formats come out equal, and nothing that a hostile one asks for happens."""

import collections
import io
import json
import os
import pickle
import platform
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mezzotint.checkpoints import archives, confinement, pickles, quarantine
from mezzotint.checkpoints.archives import convert
from mezzotint.checkpoints.files import read_header, read_state
from mezzotint.checkpoints.pickles import Machine, Refused
from mezzotint.checkpoints.quarantine import cache_folder, is_pickle, to_safetensors
from mezzotint.errors import CheckpointError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on a process need Linux")

Make = Callable[[Path], bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))


def saved(value: object, **options: Any) -> bytes:
    """A file as PyTorch writes it."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def refusal_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        to_safetensors(path)
    message = str(error.value)
    assert message.count("\n") == 2, message
    assert str(path) in message
    return message


def refused(data: bytes, tmp_path: Path) -> Refused:
    """What the reader says about a file; read in this process, which is as safe: nothing in it is ever called."""
    (tmp_path / "in").write_bytes(data)
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("wb") as target,
        pytest.raises(Refused) as error,
    ):
        convert(source, target)
    return error.value


# ---- what is read comes out equal


def weights() -> dict[str, torch.Tensor]:
    """Every dtype that files have, and every way of lying in a storage."""
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    tagged = base[1].clone()
    vars(tagged)["note"] = "attributes make PyTorch write a tensor in another way"
    return {
        "float32": base,
        "with attributes": tagged,
        "float16": base.half(),
        "bfloat16": base.bfloat16(),
        "float64": base.double(),
        "int64": torch.arange(5) - 2,
        "int32": torch.arange(4, dtype=torch.int32),
        "int16": torch.arange(3, dtype=torch.int16),
        "int8": torch.arange(-3, 3, dtype=torch.int8),
        "uint8": torch.arange(7, dtype=torch.uint8),
        "bool": base > 0,
        "parameter": torch.nn.Parameter(base[0] * 2),
        "rows.of.another": base[2:5],
        "strided": base[1:4, ::3],
        "transposed": base.t(),
        "channels last": torch.arange(48.0).reshape(2, 4, 3, 2).contiguous(memory_format=torch.channels_last),
        "repeated": base[:2, :1].expand(2, 4),
        "row": torch.arange(77).expand(1, -1),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "ein süßer Name": base[0],
    }


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", ["dictionary", "ordered", "training"])
def test_saved_tensors_come_out_equal(is_zip: bool, kind: str, tmp_path: Path) -> None:
    expected = weights()
    ordered = collections.OrderedDict(expected)
    value = {"dictionary": expected, "ordered": ordered, "training": {"state_dict": ordered, "global_step": 5}}[kind]
    path = tmp_path / "model.ckpt"
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    assert is_pickle(path)
    found = read_state(to_safetensors(path))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("is_zip", [True, False])
def test_module_states_and_other_protocols_are_read(is_zip: bool, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pt"
        data = saved(module.state_dict(), _use_new_zipfile_serialization=is_zip, pickle_protocol=protocol)
        path.write_bytes(data)
        found = read_state(to_safetensors(path))
        assert all(torch.equal(found[name], tensor) for name, tensor in module.state_dict().items())


def test_what_is_not_a_tensor_of_the_model_is_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    value = {
        "epoch": 3,
        "global_step": 875_000,
        "callbacks": {"x": 1},
        "optimizer_states": [{"state": {0: torch.zeros(2)}}],
        "hyper": torch.device("cpu"),
        "state_dict": {"a": torch.ones(2), "note": "text", "sizes": torch.Size([1])},
    }
    torch.save(value, path)
    header = read_header(to_safetensors(path))
    assert set(header.tensors) == {"a"}
    assert header.metadata == {
        "format": "pt",
        "global_step": "875000",
        "left_out": "epoch: int, callbacks: dict, optimizer_states: list, hyper: torch.device, note: str, "
        "sizes: torch.Size",
    }


def test_learned_words_of_other_programs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    words = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(2, 768))})
    torch.save({"string_to_token": {"*": 265}, "string_to_param": words, "name": "style"}, path)
    found = read_state(to_safetensors(path))
    assert {tuple(tensor.shape) for tensor in found.values()} == {(2, 768)}
    torch.save({"<cat>": torch.ones(768)}, path)
    assert list(read_state(to_safetensors(path))) == ["<cat>"]
    torch.save({"a": torch.ones(2), "lists": {7: torch.ones(4)}}, path)
    header = read_header(to_safetensors(path))
    assert (set(header.tensors), header.metadata["left_out"]) == ({"a"}, "lists.int: list")
    torch.save(torch.ones(3), path)
    assert list(read_state(to_safetensors(path))) == ["tensor"]


def test_a_file_is_converted_once_and_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved({"a": torch.ones(2)}))
    (tmp_path / "b.ckpt").write_bytes((tmp_path / "a.pt").read_bytes())
    first = to_safetensors(tmp_path / "a.pt")
    stamp = first.stat().st_mtime_ns
    assert to_safetensors(tmp_path / "b.ckpt") == first
    assert first.stat().st_mtime_ns == stamp
    assert first.is_relative_to(tmp_path / "cache")
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]


def test_cache_is_where_the_variables_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MEZZOTINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/mezzotint")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "mezzotint"


def test_pickles_are_known_by_name_unless_they_are_safetensors(tmp_path: Path) -> None:
    safe = (0x80).to_bytes(8, "little") + b"{"  # a header of 128 bytes: begins like a pickle
    for file, data, expected in [
        ("a.ckpt", b"PK\x03\x04....", True),
        ("a.PT", b"<html>", True),
        ("a.bin", b"", True),
        ("a.bin", safe, False),
        ("a.safetensors", saved({}), False),
    ]:
        (tmp_path / file).write_bytes(data)
        assert is_pickle(tmp_path / file) is expected
    assert is_pickle(tmp_path / "none.ckpt")


def test_other_systems_get_the_command_that_converts_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert "mezzotint convert model.ckpt model.safetensors" in refusal_of(tmp_path / "model.ckpt")


# ---- hostile files: refused with the reason, and nothing happens


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


def test_the_hand_made_file_is_a_good_one(tmp_path: Path) -> None:
    """What follows is this file with one thing wrong."""
    (tmp_path / "a.pt").write_bytes(in_zip(PLAIN))
    assert torch.equal(read_state(to_safetensors(tmp_path / "a.pt"))["a"], torch.zeros(16))


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


@pytest.mark.parametrize("container", ["zip", "sequence"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", CALLS)
def test_calls_are_refused_by_name_and_never_made(attack: str, protocol: int, container: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickled = CALLS[attack](str(canary), protocol)
    if container == "zip":
        data = in_zip(pickled)
    else:
        head = saved({}, _use_new_zipfile_serialization=False)
        empty = pickle.dumps({}, protocol=2)
        data = head[: head.rindex(empty)] + pickled + pickle.dumps([], protocol=2)
    message = refused(data, tmp_path).what
    assert "could run code" in message or "pickle instruction" in message
    assert not canary.exists()


def test_calls_are_refused_in_the_closed_process(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attack = Call(SYSTEM, f"touch {canary}")
    for value in (attack, {"a": torch.ones(2), "b": [attack]}, {"state_dict": {"a": torch.ones(2)}, "extra": attack}):
        path = tmp_path / "model.ckpt"
        path.write_bytes(saved(value))
        message = refusal_of(path)
        assert message.startswith(f"model.ckpt is refused: it asks for '{os.name}.system'")
        assert "data.pkl, byte" in message
        assert not canary.exists()
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_the_samples_would_work_on_a_reader_that_trusts(tmp_path: Path) -> None:
    """The planted fault: the same bytes, read by pickle itself, create the canary."""
    for i, attack in enumerate(("os.system", "builtins.exec", "getattr of an import")):
        canary = tmp_path / f"canary-{i}"
        pickle.loads(CALLS[attack](str(canary), 2))
        assert canary.exists()


def laughs() -> bytes:
    """Dictionaries that each hold the one before ten times: 10^30 leaves in 4 kB."""
    levels = b"}q\x000"
    for i in range(14):
        entries = b"".join(text(str(k)) + b"h" + bytes([i]) for k in range(10))
        levels += b"}(" + entries + b"uq" + bytes([i + 1]) + b"0"
    return b"\x80\x02" + levels + b"h\x0e."


def deep(levels: int) -> bytes:
    return b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."


HOSTILE: dict[str, tuple[bytes, str]] = {
    "billion laughs": (in_zip(laughs()), "more than 100,000 entries or 16 levels"),
    "a list inside a list, 100,000 times": (in_zip(deep(100_000)), "no dictionary of tensors but list"),
    "a dictionary that holds itself": (in_zip(b"\x80\x02}q\x00" + text("a") + b"h\x00s."), "or 16 levels"),
    "compound key": (in_zip(table(b"N" + b"\x85" * 100_000, b"N")), "dictionary key of kind tuple"),
    "memo without entry": (in_zip(b"\x80\x02h\x07."), "damaged pickle"),
    "memo far away": (in_zip(b"\x80\x02}r\xff\xff\xff\xff."), "no tensors in the file"),
    "text longer than the file": (in_zip(b"\x80\x02X\xff\xff\xff\x7fabc."), "damaged pickle"),
    "bytes longer than the file": (in_zip(b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."), "damaged pickle"),
    "number of a million digits": (in_zip(b"\x80\x02L" + b"9" * 1_000_000 + b"L\n."), "damaged pickle"),
    "stack below its bottom": (in_zip(b"\x80\x020000."), "damaged pickle"),
    "marks below their bottom": (in_zip(b"\x80\x02(01."), "damaged pickle"),
    "no end": (in_zip(b"\x80\x02}"), "damaged pickle"),
    "extension registry": (in_zip(b"\x80\x02\x82\x01."), "EXT1"),
    "class instance": (in_zip(b"\x80\x02(ios\nsystem\n."), "INST"),
    "call of a text": (in_zip(b"\x80\x02" + text("os.system") + b")R."), "it calls str"),
    "call of a tensor's name with nothing": (in_zip(one(name("torch._utils._rebuild_tensor_v2") + b")R")), "damaged"),
    "parameter without a tensor": (in_zip(one(name("torch._utils._rebuild_parameter") + b")R")), "not a tensor"),
    "tensor class inside itself": (in_zip(one(TYPED + b"(" + TYPED + b"N)}tR")), "tensor class that is not described"),
    "tensor of nothing": (in_zip(one(name("torch._utils._rebuild_tensor") + b"(NK\x00))tR")), "not described as"),
    "name that is a number": (in_zip(b"\x80\x04K\x01K\x02\x93."), "a name that is not text"),
    "key without a value": (in_zip(b"\x80\x02}(Nu."), "a key too many"),
    "dictionary of numbers": (
        in_zip(one(name("collections.OrderedDict") + b"(](K\x01etR")),
        "something else than pairs",
    ),
    "entries of a list": (in_zip(b"\x80\x02](NNu."), "entries are added to list"),
    "attributes of a tensor": (in_zip(one(tensor((1,), (1,)) + b"}b")), "attributes are set on Tensor"),
    "items added to text": (in_zip(one(text("x") + b"Na")), "items are added to str"),
    "tensor of 10^12 elements": (in_zip(one(tensor((10**12,), (0,)))), "in a storage of 16 elements"),
    "tensor behind its storage": (in_zip(one(tensor((4,), (1,), offset=13))), "in a storage of 16 elements"),
    "negative stride": (in_zip(one(tensor((4,), (-1,), offset=8))), "not a whole number from 0"),
    "negative offset": (in_zip(one(tensor((4,), (1,), offset=-1))), "1 dimensions and 1 strides"),
    "more sizes than strides": (in_zip(one(tensor((4, 1), (1,)))), "2 dimensions and 1 strides"),
    "9 dimensions": (in_zip(one(tensor((1,) * 9, (1,) * 9))), "9 dimensions"),
    "storage that claims 10^15": (
        in_zip(one(tensor((10**15,), (1,), data=storage(count=10**15)))),
        "far larger than the file",
    ),
    "storage that claims 10^6": (in_zip(one(tensor((1,), (1,), data=storage(count=10**6)))), "4,000,000 are needed"),
    "storage smaller than its entry": (in_zip(one(tensor((8,), (1,), data=storage(count=8)))), "32 are needed"),
    "storage that is not there": (in_zip(one(tensor((1,), (1,), data=storage(key="9")))), "not in the file"),
    "storage with a path for a key": (
        in_zip(one(tensor((1,), (1,), data=storage(key="../../../etc/passwd")))),
        "not in the file",
    ),
    "storage of two sizes": (
        in_zip(b"\x80\x02" + storage() + b"0" + storage(count=3) + b"."),
        "two sizes of storage '0'",
    ),
    "storage of unknown class": (in_zip(one(storage("torch.QInt8Storage"))), "'torch.QInt8Storage'"),
    "storage class of another kind": (in_zip(one(storage("torch.Tensor"))), "storage of class"),
    "storage made by the pickle": (in_zip(one(name("torch.FloatStorage") + number(1 << 40) + b"\x85R")), "made by the"),
    "storage without a size": (in_zip(one(storage(count=-1))), "without a key and a size"),
    "storage that is no tuple": (in_zip(one(b"NQ")), "not described as PyTorch does"),
    "sparse tensor": (in_zip(one(name("torch._utils._rebuild_sparse_tensor"))), "could run code"),
    "too much shared": (
        in_zip(
            b"\x80\x02}(" + b"".join(text(str(i)) + tensor((4096,), (1,), data=BIG) for i in range(500)) + b"u.",
            {"m/data/0": bytes(4 * 4096)},
        ),
        "far larger than the file",
    ),
    "tensor name with a line break": (in_zip(table(text("a\nb"), tensor((1,), (1,)))), "unusable name"),
    "no name at all": (in_zip(table(text(""), tensor((1,), (1,)))), "unusable name"),
    "metadata as a tensor": (in_zip(table(text("__metadata__"), tensor((1,), (1,)))), "unusable name"),
    "one name twice": (
        in_zip(
            b"\x80\x02}("
            + text("a.b")
            + tensor((1,), (1,))
            + text("a")
            + b"}"
            + text("b")
            + tensor((1,), (1,))
            + b"su."
        ),
        "two tensors of the same name",
    ),
    "big-endian": (in_zip(PLAIN, {"m/byteorder": b"big"}), "big-endian"),
    "path that leads out": (in_zip(PLAIN, {"m/../../evil": b"x"}), "leads out"),
    "absolute path": (in_zip(PLAIN, {"/etc/evil": b"x"}), "leads out"),
    "path of Windows": (in_zip(PLAIN, {"C:\\evil": b"x"}), "leads out"),
    "compressed": (in_zip(PLAIN, {"m/data/1": bytes(1 << 20)}, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "TorchScript": (in_zip(PLAIN, {"m/code/__torch__.py": b"x"}), "TorchScript"),
    "two pickles": (in_zip(PLAIN, {"n/data.pkl": PLAIN}), "2 data.pkl"),
    "no pickle": (in_zip(PLAIN).replace(b"data.pkl", b"data.pkx"), "0 data.pkl"),
    "cut off zip": (in_zip(PLAIN)[:-40], "damaged or cut off zip"),
    "changed weights": (in_zip(PLAIN, {"m/data/0": b"x" * 64}).replace(b"x" * 64, b"y" * 64), "their checksum"),
    "changed pickle": (in_zip(PLAIN).replace(b"storage", b"sTorage"), "their checksum"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "text": (b"hello", "an unknown kind"),
    "empty": (b"", "the file is empty"),
    "another pickle": (pickle.dumps({"a": 1}, 2), "not PyTorch's"),
    "another pickle, newer": (pickle.dumps(["a"] * 9, 5), "not PyTorch's"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_or_damaged_file_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    data, words = HOSTILE[kind]
    error = refused(data, tmp_path)
    assert words in error.what
    assert error.where


@pytest.mark.parametrize(
    ("module", "limit", "words"),
    [
        (pickles, "MAX_INSTRUCTIONS", "more than 3 instructions"),
        (archives, "MAX_ENTRIES", "4 entries"),
        (archives, "MAX_PICKLE_BYTES", f"a pickle of {len(PLAIN)} bytes"),
    ],
)
def test_size_of_the_description_is_bounded(
    module: ModuleType, limit: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, limit, 3)
    assert words in refused(in_zip(PLAIN), tmp_path).what


def rewritten(change: Callable[[zipfile.ZipInfo], None]) -> bytes:
    """The good file with one attribute of the directory entry of data/0 changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("m/data.pkl", PLAIN)
        archive.writestr("m/data/0", bytes(64))
        change(archive.filelist[-1])
    return out.getvalue()


def test_links_encryption_overlaps_and_false_names_are_refused(tmp_path: Path) -> None:
    def linked(entry: zipfile.ZipInfo) -> None:
        entry.create_system, entry.external_attr = 3, 0o120777 << 16

    def encrypted(entry: zipfile.ZipInfo) -> None:
        entry.flag_bits |= 1

    def overlapping(entry: zipfile.ZipInfo) -> None:
        entry.filename, entry.header_offset = "m/data.pkl2", 0

    def outside(entry: zipfile.ZipInfo) -> None:
        entry.file_size = entry.compress_size = 1 << 30

    def elsewhere(entry: zipfile.ZipInfo) -> None:
        entry.header_offset += 1

    def renamed(entry: zipfile.ZipInfo) -> None:
        entry.filename = "m/data/1"

    assert "symbolic link" in refused(rewritten(linked), tmp_path).what
    assert "encrypted" in refused(rewritten(encrypted), tmp_path).what
    assert "two different names" in refused(rewritten(overlapping), tmp_path).what
    assert "leaves the file" in refused(rewritten(outside), tmp_path).what
    assert "not where the directory says" in refused(rewritten(elsewhere), tmp_path).what
    assert "two different names" in refused(rewritten(renamed), tmp_path).what


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    out = io.BytesIO(in_zip(PLAIN))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(out, "a") as archive:
        archive.writestr("m/data.pkl", PLAIN)
    assert "two entries of the same name" in refused(out.getvalue(), tmp_path).what


def sequence(value: bytes, keys: object, data: bytes, *, system: object = None, protocol: int = 1001) -> bytes:
    """A file of the older form."""
    heads = (0x1950A86A20F9469CFC6C, protocol, system or {"little_endian": True})
    return b"".join(pickle.dumps(head, 2) for head in heads) + value + pickle.dumps(keys, 2) + data


def legacy(count: int = 16) -> bytes:
    """A pickle with one tensor; its storage has six fields in the older form."""
    six = storage().removesuffix(b"tQ") + b"NtQ"
    return one(tensor((count,), (1,), data=six))


def test_older_form_is_checked_as_closely(tmp_path: Path) -> None:
    data = (16).to_bytes(8, "little") + bytes(64)
    (tmp_path / "good.pt").write_bytes(sequence(legacy(), ["0"], data))
    assert torch.equal(read_state(to_safetensors(tmp_path / "good.pt"))["a"], torch.zeros(16))
    for file, words in {
        sequence(legacy(), ["0"], data, system={"little_endian": False}): "big-endian",
        sequence(legacy(), ["0"], data, system=["little_endian"]): "big-endian",
        sequence(legacy(), ["0"], data, protocol=1002): "another protocol",
        sequence(legacy(), ["0"], (1 << 40).to_bytes(8, "little") + bytes(64)): "another size",
        sequence(legacy(), ["0"], data[:-1]): "cut off",
        sequence(legacy(), ["0"], data[:5]): "cut off",
        sequence(legacy(), ["1"], data): "no tensor has",
        sequence(legacy(), [], data): "not in the file",
        sequence(legacy(), {"0": 1}, data): "no list of storages",
        sequence(legacy().replace(b"NtQ", b"K\x01tQ"), ["0"], data): "not described as PyTorch does",
    }.items():
        assert words in refused(file, tmp_path).what, words


def test_plain_values_of_other_libraries_do_no_harm() -> None:
    """Names that real files hold become inert, whatever they are called with."""
    trainer = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    scalar = name("numpy.core.multiarray.scalar") + b"(" + name("numpy.dtype") + b"(" + text("f8") + b"tRNtR"
    default = name("collections.defaultdict") + b"(" + name("builtins.list") + b"tR" + text("k") + b"K\x01s"
    pairs = name("collections.OrderedDict") + b"(](" + text("k") + b"K\x02\x86etR"
    copied = name("collections.OrderedDict") + b"(}" + text("k") + b"K\x03stR"
    held = name("omegaconf.dictconfig.DictConfig") + b")\x81}b(" + text("k") + b"Nu"
    items = name("builtins.set") + b"(](K\x01etR(K\x02e"
    pickled = b"\x80\x02(" + name(trainer) + scalar + default + pairs + copied + held + items + b"\x8f(K\x01\x90l."
    value: Any = Machine().run(io.BytesIO(pickled), "test")
    assert [getattr(item, "name", item) for item in value] == [
        trainer,
        "numpy.core.multiarray.scalar",
        {"k": 1},
        {"k": 2},
        {"k": 3},
        "omegaconf.dictconfig.DictConfig",
        "builtins.set",
        "builtins.set",
    ]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.integers(0, 3),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes_are_read_or_refused_and_nothing_else(
    which: int, changes: list[tuple[int, int]], tmp_path: Path
) -> None:
    """Mutants of the container and of the pickle inside: only `Refused` ever comes out."""
    plain = bytearray([PLAIN, legacy(), in_zip(PLAIN), sequence(legacy(), ["0"], bytes(72))][which])
    for at, byte in changes:
        plain[at % len(plain)] = byte
    if which == 0:
        plain = bytearray(in_zip(bytes(plain)))
    elif which == 1:
        plain = bytearray(sequence(bytes(plain), ["0"], (16).to_bytes(8, "little") + bytes(64)))
    (tmp_path / "in").write_bytes(plain)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        try:
            convert(source, target)
        except Refused:
            return
    assert read_header(tmp_path / "out").tensors


# ---- the process itself


def confined(code: str, *prepare: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process after it was limited and sealed."""
    lines = [
        "from mezzotint.checkpoints import confinement as c",
        *prepare,
        "c.limit(1 << 20)",
        "assert c.seal()",
        code,
    ]
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(platform.machine() not in {"x86_64", "aarch64"}, reason="no table of system calls")
@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("os.fork()", "os"),
        ("os.open('/etc/passwd', os.O_RDONLY)", "os"),
        ("os.open('canary', os.O_CREAT | os.O_WRONLY)", "os"),
        ("os.execv('/bin/true', ['true'])", "os"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "os"),
        ("os.kill(os.getppid(), 0)", "os"),
        ("os.rename('a', 'b')", "os"),
        ("os.unlink('a')", "os"),
        ("os.mkdir('a')", "os"),
        ("os.symlink('a', 'b')", "os"),
        ("os.chmod('/tmp', 0o777)", "os"),
        ("socket.socket()", "socket"),
        ("socket.socketpair()", "socket"),
    ],
)
def test_sealed_process_cannot_reach_out(code: str, module: str) -> None:
    done = confined(f"try:\n    {code}\nexcept PermissionError as error:\n    print(error.errno)", f"import {module}")
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


@pytest.mark.parametrize(
    ("code", "sign"),
    [
        ("x = bytes(3 << 30)", "MemoryError"),
        ("f.truncate(1 << 40)", "File too large"),
        ("[os.dup(0) for _ in range(99)]", "Too many open files"),
    ],
)
def test_limited_process_cannot_use_more(code: str, sign: str, tmp_path: Path) -> None:
    done = confined(code, "import os", f"f = open({str(tmp_path / 'f')!r}, 'wb')")
    assert done.returncode == 1
    assert sign in done.stderr


def test_a_file_that_breaks_a_limit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(in_zip(PLAIN))
    start = quarantine._START  # pyright: ignore[reportPrivateUsage]
    for line, words in {
        "import os; os.kill(os.getpid(), 11)": "reading it broke a limit (SIGSEGV)",
        "sys.exit(7)": "reading it broke a limit (exit code 7)",
        "print('[]'); sys.exit(7)": "reading it broke a limit (exit code 7)",
    }.items():
        monkeypatch.setattr(quarantine, "_START", f"import sys\n{line}\n{start}")
        assert words in refusal_of(path)
    monkeypatch.setattr(quarantine, "_START", "import time; time.sleep(60)")
    monkeypatch.setattr(quarantine, "WAIT_S", 0.2)
    assert "took more than 0.2 s" in refusal_of(path)
    assert not list((tmp_path / "cache").rglob("*.*"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "more than 1024 MB of memory"),
        (RecursionError(), "values inside values"),
        (OSError(28, "No space left on device"), "cannot be written (No space left on device)"),
        (Refused("this", "there"), "this"),
    ],
)
def test_child_says_why_it_stopped(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> dict[str, str]:
        raise error

    monkeypatch.setattr(confinement, "limit", int)
    monkeypatch.setattr(confinement, "seal", lambda: True)
    monkeypatch.setattr(confinement, "convert", fail)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    code = confinement.main(os.open(path, os.O_RDONLY), os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    assert code == confinement.REFUSED
    assert words in json.loads(capsys.readouterr().out)["what"]


def test_machine_without_a_table_relies_on_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not confinement.seal()


def test_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        to_safetensors(tmp_path / "none.ckpt")


def test_reading_a_pickle_needs_no_torch() -> None:
    code = "import sys, mezzotint.checkpoints.confinement; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "mezzotint.checkpoints.archives" in loaded
    assert not {"torch", "numpy", "safetensors"} & set(loaded)


def test_result_is_bounded_by_the_file() -> None:
    assert archives.largest_result(10**9) < 2.1 * 10**9
