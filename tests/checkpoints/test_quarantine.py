"""Pickle formats come out equal, once, and nothing that a hostile one asks for happens."""

import collections
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints.handmade import CALLS, PLAIN, SYSTEM, Call, in_zip, legacy, saved, sequence
from mezzotint.checkpoints import quarantine
from mezzotint.checkpoints.files import read_header, read_state
from mezzotint.checkpoints.quarantine import cache_folder, is_pickle, to_safetensors
from mezzotint.errors import CheckpointError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on a process need Linux")

Make = Callable[[Path], bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))


def refusal_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        to_safetensors(path)
    message = str(error.value)
    assert message.count("\n") == 2, message
    assert str(path) in message
    return message


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


def test_hand_made_files_are_good_ones(tmp_path: Path) -> None:
    """The hostile files of the tests beside this one are these with one thing wrong."""
    older = sequence(legacy(), ["0"], (16).to_bytes(8, "little") + bytes(64))
    for i, data in enumerate((in_zip(PLAIN), older)):
        (tmp_path / f"{i}.pt").write_bytes(data)
        assert torch.equal(read_state(to_safetensors(tmp_path / f"{i}.pt"))["a"], torch.zeros(16))


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


def test_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        to_safetensors(tmp_path / "none.ckpt")
