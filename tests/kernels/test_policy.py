"""What a machine's kernel check decides, what is forced, what is remembered, and what stands in for what is lacking."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.errors import ConfigError
from mezzotint.kernels import native, packed, policy
from mezzotint.kernels.choices import NATIVE, PACKED, PLAIN, KernelSet, by_matrix_products, by_torch, from_record
from models.oracles import relative

Patch = pytest.MonkeyPatch


@pytest.fixture
def unforced(monkeypatch: Patch, tmp_path: Path) -> Path:
    """A machine that has not been measured, with a cache of its own."""
    monkeypatch.delenv(policy.VARIABLE)
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    monkeypatch.setattr(policy, "_known", {})
    monkeypatch.setattr(policy, "ROUNDS", 1)
    return tmp_path


def races(monkeypatch: Patch, **winners: str) -> list[str]:
    """Decide races by name instead of time; what was raced, in order. `slow` names a dtype that loses to others."""
    raced: list[str] = []

    def race(what: str, candidates: Any, times: dict[str, float]) -> str:  # Any: of `_race`
        raced.append(what)
        name = winners.get(what.split()[1]) or str(next(iter(candidates)))
        times[f"{what} {name}"] = 2.0 if what.startswith(winners.get("slow", "-")) else 1.0
        return name

    monkeypatch.setattr(policy, "_race", race)
    return raced


def with_bfloat16(monkeypatch: Patch, *, is_there: bool) -> None:
    monkeypatch.setattr(policy, "has_bfloat16", lambda: is_there)
    monkeypatch.setattr(policy, "is_packable", lambda dtype: dtype is not torch.float16)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


def test_the_real_check_names_the_fastest_of_what_it_timed(unforced: Path):
    verdict = policy.verdict()
    for name, kernels in verdict.kernels.items():
        for key, value in kernels.recorded().items():
            raced = {k: t for k, t in verdict.times.items() if k.startswith(f"{name} {key} ")}
            assert not raced or min(raced, key=lambda k: raced[k]) == f"{name} {key} {value}"
    assert verdict.dtype in verdict.said()


def test_a_verdict_is_timed_once_and_read_afterwards(unforced: Path, monkeypatch: Patch):
    with_bfloat16(monkeypatch, is_there=True)
    raced = races(monkeypatch, weights="packed", attention="matmul")
    first = policy.verdict()
    assert first.dtype == "bfloat16"
    assert first.kernels["bfloat16"] == KernelSet(weights="packed", attention="matmul")
    assert len(raced) == 8
    monkeypatch.setattr(policy, "_known", {})  # another process
    assert policy.verdict().kernels == first.kernels
    assert len(raced) == 8
    policy.verdict(is_fresh=True)
    assert len(raced) == 16


@pytest.mark.parametrize("damage", ["", "{", '{"dtype": "bfloat16", "kernels": {"bfloat16": {"weights": "melted"}}}'])
def test_a_damaged_verdict_is_timed_again(unforced: Path, monkeypatch: Patch, damage: str):
    raced = races(monkeypatch)
    policy.verdict()
    (file,) = unforced.rglob("*.json")
    file.write_text(damage)
    monkeypatch.setattr(policy, "_known", {})
    count = len(raced)
    policy.verdict()
    assert len(raced) == 2 * count
    assert json.loads(file.read_text())["machine"]["torch"] == torch.__version__


def test_another_torch_is_another_machine(unforced: Path, monkeypatch: Patch):
    raced = races(monkeypatch)
    policy.verdict()
    count = len(raced)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    policy.verdict()
    assert len(raced) == 2 * count


def test_bfloat16_that_is_slower_is_not_used(unforced: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture):
    with_bfloat16(monkeypatch, is_there=True)
    races(monkeypatch, weights="packed", slow="bfloat16")
    assert policy.preferred_dtype() is torch.float32
    assert "float32 is used" in caplog.text


def test_without_bfloat16_in_hardware_float32_is_preferred(unforced: Path, monkeypatch: Patch):
    with_bfloat16(monkeypatch, is_there=False)
    raced = races(monkeypatch, weights="packed")
    assert policy.preferred_dtype() is torch.float32
    assert policy.chosen(torch.float32) == PACKED
    assert policy.chosen(torch.bfloat16) == PLAIN
    assert not [what for what in raced if what.startswith("bfloat16")]


def test_what_is_forced_is_not_timed(unforced: Path, monkeypatch: Patch):
    raced = races(monkeypatch)
    with_bfloat16(monkeypatch, is_there=True)
    assert policy.chosen(torch.float32, "torch") == PLAIN
    monkeypatch.setenv(policy.VARIABLE, "packed")
    assert policy.chosen(torch.float32) == PACKED
    assert policy.chosen(torch.float32, "torch") == PLAIN  # an argument is nearer than the environment
    assert policy.chosen(torch.float32, {"weights": "packed", "attention": "matmul"}).attention == "matmul"
    assert policy.preferred_dtype() is torch.bfloat16
    assert not raced


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="unknown kernel set 'pakced'; did you mean 'packed'"):
        policy.chosen(torch.float32, "pakced")
    with pytest.raises(ConfigError, match="unknown attention 'flash'"):
        policy.chosen(torch.float32, {"attention": "flash"})
    with pytest.raises(ConfigError, match="unknown operation 'sofmax'"):
        policy.chosen(torch.float32, {"sofmax": "native"})


def test_records_come_back_as_they_were():
    for kernels in (PLAIN, PACKED, NATIVE):
        assert from_record(json.loads(json.dumps(kernels.recorded()))) == kernels
    assert from_record("torch") == PLAIN  # pictures made before there was a choice


def test_what_a_machine_lacks_is_replaced_and_said(monkeypatch: Patch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(native, "available", lambda: False)
    assert policy.possible(NATIVE, torch.float32) == PACKED
    assert "doctor --build" in caplog.text
    monkeypatch.setattr(native, "available", lambda: True)
    assert policy.possible(NATIVE, torch.float32) == NATIVE
    assert policy.possible(NATIVE, torch.float16) == PLAIN  # oneDNN has no kernels for it on processors


def test_without_onednn_everything_is_plain(monkeypatch: Patch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packed.is_packable(torch.float32)
    assert policy.possible(PACKED, torch.float32) == PLAIN


def test_threads_are_only_ever_lowered(monkeypatch: Patch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    now = torch.get_num_threads()
    monkeypatch.setattr(policy, "usable_cores", lambda: now + 3)
    assert policy.settle_threads() == now
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    lowered: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", lowered.append)
    policy.settle_threads()
    assert lowered == [now + 3]
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    policy.settle_threads()
    assert lowered == [now + 3]


@pytest.mark.parametrize("tokens", [77, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_products_are_attention(tokens: int, dtype: torch.dtype, generator: torch.Generator):
    q = torch.randn(2, 290, 3, 40, generator=generator).to(dtype)
    k, v = (torch.randn(2, tokens, 3, 40, generator=generator).to(dtype) for _ in range(2))
    exact = by_torch(q.double(), k.double(), v.double())
    limit = 1e-6 if dtype is torch.float32 else 4e-3  # measured: 4e-7, 2.4e-3
    assert relative(by_matrix_products(q, k, v).double(), exact) < limit
