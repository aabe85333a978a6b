"""Reading is exact or explained; writing is all or nothing."""

import hashlib
import json
import os
import resource
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mezzotint.checkpoints import files
from mezzotint.errors import CheckpointError


def raw_file(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def state(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        "half": torch.randn(3, 5, generator=generator).half(),
        "full": torch.randn(2, 3, 1, generator=generator),
        "brain": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "column": torch.randn(4, 6, generator=generator).T,  # not contiguous
    }


def test_written_file_is_read_back_by_us_and_by_the_reference(tmp_path: Path, state: dict[str, torch.Tensor]):
    path = tmp_path / "new folder" / "a.safetensors"
    files.write_state(path, state, {"title": "Änne"})
    reference = safetensors.torch.load_file(path)  # pyright: ignore[reportUnknownMemberType]  untyped
    ours = files.read_state(path)
    for name, tensor in state.items():
        assert torch.equal(ours[name], tensor)
        assert torch.equal(reference[name], tensor)
        assert ours[name].dtype == tensor.dtype
    header = files.read_header(path)
    assert header.metadata == {"title": "Änne"}
    assert header.tensors["half"] == files.TensorInfo(dtype="F16", shape=(3, 5))
    assert header.tensors["half"].nbytes == 30


def test_reference_files_are_read(tmp_path: Path, state: dict[str, torch.Tensor]):
    plain = {name: tensor.contiguous() for name, tensor in state.items()}
    (tmp_path / "b.safetensors").write_bytes(safetensors.torch.save(plain))
    ours = files.read_state(tmp_path / "b.safetensors", ["column", "count"])
    assert list(ours) == ["column", "count"]
    assert torch.equal(ours["column"], state["column"])


def test_bytes_depend_on_content_alone(tmp_path: Path, state: dict[str, torch.Tensor]):
    files.write_state(tmp_path / "a.safetensors", state, {"b": "1", "a": "2"})
    files.write_state(tmp_path / "b.safetensors", dict(reversed(state.items())), {"a": "2", "b": "1"})
    assert files.sha256_of(tmp_path / "a.safetensors") == files.sha256_of(tmp_path / "b.safetensors")


def test_dtype_casts_only_floating_point(tmp_path: Path, state: dict[str, torch.Tensor]):
    files.write_state(tmp_path / "a.safetensors", state, dtype=torch.float16)
    ours = files.read_state(tmp_path / "a.safetensors")
    assert torch.equal(ours["full"], state["full"].half())
    assert ours["count"].dtype == torch.int64


def test_data_hash_is_stored_in_the_header(tmp_path: Path, state: dict[str, torch.Tensor]):
    files.write_state(tmp_path / "a.safetensors", state, {"hash": ""}, hash_key="hash")
    raw = (tmp_path / "a.safetensors").read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert files.read_header(tmp_path / "a.safetensors").metadata["hash"] == "0x" + hashlib.sha256(data).hexdigest()


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_state_is_mapped_not_copied(tmp_path: Path):
    """256 MB take no memory until they are used, and writing into a tensor leaves the file alone."""
    path = tmp_path / "large.safetensors"
    files.write_state(path, {"a": torch.zeros(2**26), "b": torch.ones(2)})
    before = resident()
    state = files.read_state(path)
    assert resident() - before < 2**24
    state["b"][0] = 5.0
    assert torch.equal(files.read_state(path)["b"], torch.ones(2))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 4, [4])}, b"abc", "is cut off: 3 of 4 bytes of weights; download it again"),
        ({"a": entry(0, 4, [4])}, b"abcde", "1 bytes after the last tensor; do not trust this file"),
        ({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, b"abcdef", "data of 'b' overlaps another tensor"),
        ({"a": entry(0, 4, [4]), "b": entry(6, 8, [2])}, b"abcdefgh", "2 unused bytes before 'b'"),
        ({"a": entry(0, 4, [5])}, b"abcd", "'a' has 4 bytes of data, 5 are needed for U8 [5]"),
        ({"a": entry(4, 0, [4])}, b"abcd", "'a' has -4 bytes of data"),
        ({"a": entry(-4, 0, [4])}, b"abcd", "the header entry of 'a' is damaged"),
        ({"a": entry(0, 4, [True, 4])}, b"abcd", "the header entry of 'a' is damaged"),
        ({"a": {"dtype": "U8"}}, b"", "the header entry of 'a' is damaged"),
        ({"a": []}, b"", "the header entry of 'a' is damaged"),
        ({"a": entry(0, 4, [4], "C64")}, b"abcd", "'a' has dtype 'C64', which is not supported; one of: BOOL, U8"),
        ({"a": entry(0, 4, [1] * 8 + [4])}, b"abcd", "'a' has 9 dimensions; at most 8 are read"),
        ({"a\n": entry(0, 4, [4])}, b"abcd", "tensor name 'a\\n' is too long or not printable"),
        ({"a" * 600: entry(0, 4, [4])}, b"abcd", "is too long or not printable"),
        ({"__metadata__": {"k": 1}}, b"", "__metadata__ value of 'k' is not a string"),
        ({"__metadata__": []}, b"", "__metadata__ is not a JSON object"),
        (b'{"a": 1, "a": 2}', b"", "two entries named 'a'"),
        (b'{"a": ', b"", "the header is damaged"),
        (b'{"a": "\xff\xfe"}', b"", "the header is damaged"),
        (b'{"a":' + b"[" * 200_000, b"", "the header is damaged"),
        (b"[1, 2, 3]", b"", "its header does not start with '{'"),
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, header: object, data: bytes, message: str):
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError) as error:
        files.read_header(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut off: 0 bytes are less than a header"),
        (b"PK\x03\x04" + b"x" * 40, "is not a safetensors file but a zip archive (a PyTorch .ckpt or .pt file)"),
        (b"\x80\x02}q\x00." + b"x" * 40, "but a Python pickle; name it .ckpt, and it is converted in a closed process"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the weights: run `git lfs pull`"),
        (b"<!DOCTYPE html><html></html>", "a web page, probably a failed download"),
        ((2**63).to_bytes(8, "little") + b"{}  ", "a header of 9,223,372,036,854,775,808 bytes is refused"),
        ((1000).to_bytes(8, "little") + b'{"a": 1}', "is cut off: 16 bytes, the header alone has 1,000"),
    ],
)
def test_disguises_are_named(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        files.read_state(tmp_path / "model.safetensors")
    assert message in str(error.value)


def test_random_damage_raises_nothing_else(tmp_path: Path, state: dict[str, torch.Tensor], generator: torch.Generator):
    files.write_state(tmp_path / "good.safetensors", state, {"title": "x"})
    good = (tmp_path / "good.safetensors").read_bytes()
    path = tmp_path / "bad.safetensors"
    refused = 0
    for _ in range(500):
        where, value, cut = (int(torch.randint(high, (1,), generator=generator)) for high in (len(good), 256, 4))
        bad = bytearray(good)
        bad[where] = value
        path.write_bytes(bad[: len(bad) - cut // 3])
        try:
            files.read_state(path)
        except CheckpointError:
            refused += 1
    assert refused > 300


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "MAX_TENSORS", 1)
    raw_file(tmp_path / "a.safetensors", {"a": entry(0, 0, [0]), "b": entry(0, 0, [0])})
    with pytest.raises(CheckpointError, match="2 tensors are refused; at most 1 are read"):
        files.read_header(tmp_path / "a.safetensors")


def test_paths_that_are_no_files(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"is a folder; a .safetensors file is needed here"):
        files.read_header(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        files.read_header(tmp_path / "none.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        files.read_header(tmp_path / "pipe.safetensors")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files.write_state(tmp_path / "a.safetensors", {"a": torch.zeros(1)})

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"a.safetensors cannot be read: Permission denied"):
        files.read_header(tmp_path / "a.safetensors")


def test_the_official_parser_has_the_last_word(tmp_path: Path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry(0, 0, [0, 2**70])})
    with pytest.raises(CheckpointError, match=r"a.safetensors is not a valid safetensors file: .*; download it again"):
        files.read_state(path)


def test_unknown_key_is_named(tmp_path: Path):
    files.write_state(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="no tensor 'b' in the file and 1 more"):
        files.read_state(tmp_path / "a.safetensors", ["a", "b", "c"])


# folders of shards


def shards(folder: Path, names: dict[str, str], suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    index = {"metadata": {"total_size": 4}, "weight_map": names}
    (folder / f"model.safetensors.index{suffix}.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read_as_one(tmp_path: Path):
    folder = shards(tmp_path / "unet", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    files.write_state(folder / "model-1.safetensors", {"a": torch.ones(2)})
    files.write_state(folder / "model-2.safetensors", {"b": torch.zeros(3)})
    assert sorted(files.read_sharded_header(folder, "model").tensors) == ["a", "b"]
    assert files.read_sharded(folder, "model")["b"].shape == (3,)


def test_missing_shard_is_named(tmp_path: Path):
    folder = shards(tmp_path / "unet", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    files.write_state(folder / "model-1.safetensors", {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"unet: shard model-2.safetensors is missing; download it again"):
        files.read_sharded(folder, "model")


def test_shards_must_agree_with_their_index(tmp_path: Path):
    folder = shards(tmp_path / "unet", {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    files.write_state(folder / "model-1.safetensors", {"a": torch.ones(2)})
    files.write_state(folder / "model-2.safetensors", {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match="tensor 'a' is in another shard too"):
        files.read_sharded(folder, "model")
    files.write_state(folder / "model-2.safetensors", {"c": torch.ones(2)})
    with pytest.raises(CheckpointError, match="tensor 'b' is in no shard"):
        files.read_sharded(folder, "model")


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/a.safetensors", "x\\y.safetensors", "..", "", "C:a", 3]
)
def test_shard_outside_the_folder_is_refused(tmp_path: Path, name: str):
    files.write_state(tmp_path / "secret.safetensors", {"a": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"is not a plain file name; do not trust this folder"):
        files.weight_files(shards(tmp_path / "unet", {"a": name}), "model")


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": "model.bin"}])
def test_bad_index_is_refused(tmp_path: Path, weight_map: object):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"weight_map is missing|is not a .safetensors file"):
        files.weight_files(tmp_path, "model")


def test_variants(tmp_path: Path):
    for name in ("model.fp16", "model"):
        with pytest.raises(CheckpointError, match=r"model.safetensors is missing|fp16"):
            files.weight_files(tmp_path, "model", "fp16" if name == "model" else None)
        files.write_state(tmp_path / f"{name}.safetensors", {"a": torch.ones(1)})
        assert files.weight_files(tmp_path, "model")[0].name == f"{name}.safetensors"  # plain before fp16
        if name == "model.fp16":
            (tmp_path / "model.fp16.safetensors").rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "model.fp16.safetensors")
    assert files.weight_files(tmp_path, "model", "fp16")[0].name == "model.fp16.safetensors"
    with pytest.raises(CheckpointError, match=r"model.ema.safetensors is missing.*or leave out variant 'ema'"):
        files.weight_files(tmp_path, "model", "ema")


def test_sharded_variant(tmp_path: Path):
    folder = shards(tmp_path / "unet", {"a": "model.fp16-1.safetensors", "b": "model.fp16-2.safetensors"}, ".fp16")
    files.write_state(folder / "model.fp16-1.safetensors", {"a": torch.ones(2)})
    files.write_state(folder / "model.fp16-2.safetensors", {"b": torch.ones(2)})
    assert sorted(files.read_sharded(folder, "model", "fp16")) == ["a", "b"]
    assert sorted(files.read_sharded(folder, "model")) == ["a", "b"]


def test_pickles_are_never_a_fallback(tmp_path: Path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(CheckpointError, match="there are only pickle files, which can run code"):
        files.weight_files(tmp_path, "model")


def test_a_link_into_a_cache_is_followed(tmp_path: Path):
    (tmp_path / "blobs").mkdir()
    files.write_state(tmp_path / "blobs" / "abc", {"a": torch.ones(1)})
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").symlink_to(tmp_path / "blobs" / "abc")
    assert files.read_sharded(tmp_path / "unet", "model")["a"].item() == 1


# writing


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    files.write_state(path, {"a": torch.ones(1)})
    with pytest.raises(ZeroDivisionError), files.atomic(path) as file:
        file.write(b"half" * (1 // len(b"")))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
    assert files.read_state(path)["a"].item() == 1


def test_full_disk_is_explained(tmp_path: Path):
    with pytest.raises(CheckpointError, match="No space left on device; free some space"), files.atomic(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*; choose a folder that can be written"):
        files.write_state(tmp_path / "file" / "a.safetensors", {"a": torch.ones(1)})


def test_new_files_have_the_usual_rights(tmp_path: Path):
    files.write_json(tmp_path / "ours.json", {})
    (tmp_path / "usual").write_text("")
    assert stat.S_IMODE((tmp_path / "ours.json").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


def test_dtypes_without_a_name_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"'a' has dtype torch.complex64, which safetensors cannot hold"):
        files.write_state(tmp_path / "a.safetensors", {"a": torch.zeros(1, dtype=torch.complex64)})


def test_json(tmp_path: Path):
    files.write_json(tmp_path / "a.json", {"b": [1], "a": None})
    assert files.read_json(tmp_path / "a.json") == {"a": None, "b": [1]}
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(CheckpointError, match="found list, a JSON object is expected"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(CheckpointError, match=r"none.json cannot be read: No such file"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        files.sha256_of(tmp_path / "none.json")
