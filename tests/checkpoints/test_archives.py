"""Hostile and damaged files are refused with the reason; mutants of good ones are read or refused and nothing else."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.handmade import (
    BIG,
    CALLS,
    PLAIN,
    TYPED,
    in_zip,
    legacy,
    name,
    number,
    one,
    saved,
    sequence,
    storage,
    table,
    tensor,
    text,
)
from mezzotint.checkpoints import archives, pickles
from mezzotint.checkpoints.archives import convert
from mezzotint.checkpoints.files import read_header
from mezzotint.checkpoints.pickles import Machine, Refused


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


def test_older_form_is_checked_as_closely(tmp_path: Path) -> None:
    data = (16).to_bytes(8, "little") + bytes(64)
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


def test_text_with_an_escape_that_is_none_is_damage(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(in_zip(b"S'\\g'\n."))
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("wb") as target,
        pytest.raises(Refused, match="a damaged pickle"),
    ):
        convert(source, target)


def test_result_is_bounded_by_the_file() -> None:
    assert archives.largest_result(10**9) < 2.1 * 10**9
