"""Any number of processes train the same run: same order, same draws, same bits where sums have two terms."""

import json
import logging
import os
import re
import socket
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet, initialise
from mezzotint.training import loop, state
from mezzotint.training.config import TrainConfig
from mezzotint.training.loop import train
from mezzotint.training.part import Batch, Loss
from mezzotint.training.processes import Processes, joined, shard, whole
from mezzotint.training.run import Run
from training.toy import ToyPart, config

FOUR = {"train_batch_size": 2, "gradient_accumulation_steps": 4}  # micro-batches a step; the toy's own recipe has two


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.setattr("mezzotint.training.journal.find_spec", lambda name: None)  # pyright: ignore


def processes(count: int, task: Callable[[int], None]) -> list[int]:
    """Run `task(rank)` in processes as torchrun would start them; their exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children: list[int] = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        try:
            told = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {name: str(value) for name, value in told.items()} | {"TORCHELASTIC_RUN_ID": "test"}
            task(rank)
            dist.destroy_process_group()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def trained(folder: Path, settings: TrainConfig, count: int, part: Callable[[], ToyPart] = ToyPart) -> Path:
    """A run of the toy in some number of processes, continued if the folder holds one."""
    if count == 1:
        train(part(), settings, folder)
    else:
        assert processes(count, lambda rank: void(train(part(), settings, folder))) == [0] * count
    return folder


def void(_: object) -> None:
    """Make an expression a statement."""


def records(folder: Path) -> list[dict[str, Any]]:
    """The log without its paces."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "pace"} for record in found]


def held(folder: Path) -> Mapping[str, Tensor]:
    saved = state.newest(folder / "checkpoints")
    assert saved is not None
    return saved.tensors


def same(one: Path, other: Path) -> bool:
    """Whether two runs agree in every record and every bit."""
    first, second = held(one), held(other)
    is_equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return is_equal and records(one) == records(other)


def assert_near(one: Path, other: Path) -> None:
    """Agreement up to the order of sums."""
    first, second = held(one), held(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)
    for record, expected in zip(records(one), records(other), strict=True):
        assert record.pop("what") == expected.pop("what")
        assert record == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run in one process: two micro-batches a step, dropout, two averages, an opponent from step 4 on."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.journal.find_spec", lambda name: None)  # pyright: ignore
        return trained(folder, config(), 1)


def test_two_processes_train_the_same_bits(alone: Path, tmp_path: Path) -> None:
    assert same(trained(tmp_path, config(), 2), alone)
    newest = state.complete(tmp_path / "checkpoints")[-1]
    files = sorted(path.name for path in newest.glob("state*"))
    assert files == ["state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors"]


def test_more_micro_batches_agree_to_rounding(tmp_path: Path) -> None:
    one = trained(tmp_path / "1", config(**FOUR), 1)
    for count in (2, 4):
        assert_near(trained(tmp_path / str(count), config(**FOUR), count), one)


@pytest.mark.parametrize("counts", [(2, 1), (1, 2)])
def test_a_run_continues_in_another_number_of_processes(
    alone: Path, tmp_path: Path, counts: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, config(max_train_steps=6, validation_steps=3), counts[0])
    assert same(trained(tmp_path, config(), counts[1]), alone)
    if counts[1] == 1:
        assert re.search(r"begun on .*'processes': 2.*: bits may differ", caplog.text)


def test_processes_share_out_the_order_of_one(tmp_path: Path) -> None:
    """Every position of every step is computed once, with the sample that one process gives it."""

    class Told(ToyPart):
        def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
            if player == "learner":
                with (tmp_path / f"{os.getpid()}.txt").open("a") as file:
                    file.writelines(
                        f"{batch.step} {position} {sample}\n"
                        for position, sample in zip(batch.positions, batch.samples, strict=True)
                    )
            return super().loss(player, networks, batch)

    trained(tmp_path / "2", config(), 2, Told)
    found = [file.read_text().splitlines() for file in tmp_path.glob("*.txt")]
    run = Run(ToyPart(), config())
    expected: list[str] = []
    for run.step in range(9):
        for batch in run.batches():
            expected += [f"{batch.step} {p} {s}" for p, s in zip(batch.positions, batch.samples, strict=True)]
    assert [len(lines) for lines in found] == [36, 36]
    assert sorted(found[0] + found[1]) == sorted(expected)


def share_the_same(self: Processes, micro_batches: Any) -> Any:
    return micro_batches[: len(micro_batches) // self.count]


def keep_gradients(self: Processes, tensors: Any) -> None:
    """As if nobody had added them."""


@pytest.mark.parametrize(("method", "broken"), [("share", share_the_same), ("add", keep_gradients)])
def test_planted_bugs_are_caught(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, broken: Callable[..., Any]
) -> None:
    monkeypatch.setattr(Processes, method, broken)
    assert not same(trained(tmp_path, config(), 2), alone)


def test_dropout_that_is_not_keyed_is_caught(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)  # pyright: ignore
    assert not same(trained(tmp_path, config(), 2), alone)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_sharded_networks_train_alike(tmp_path: Path, precision: str) -> None:
    """A third of the run in one process, a third sharded over two, a third in one: as if nobody had touched it."""
    settings = config(mixed_precision=precision)
    one = trained(tmp_path / "whole", settings, 1)
    trained(tmp_path / "mixed", config(mixed_precision=precision, max_train_steps=3), 1)
    sharded = config(mixed_precision=precision, sharded=True, max_train_steps=6)
    trained(tmp_path / "mixed", sharded, 2)
    newest = state.complete(tmp_path / "mixed" / "checkpoints")[-1]
    rows = [state.Pieces([file])["network.learner.0.weight"].shape for file in sorted(newest.glob("state*"))]
    assert rows == [(4, 3), (4, 3)]
    exported = state.read_state(tmp_path / "mixed" / "export" / "learner.safetensors")
    average = held(tmp_path / "mixed")
    assert all(torch.equal(tensor, average[f"average.power-0.05.{name}"]) for name, tensor in exported.items())
    trained(tmp_path / "mixed", settings, 1)
    if precision == "no":
        return assert_near(tmp_path / "mixed", one)
    first, second = held(tmp_path / "mixed"), held(one)
    for name in first:  # sums of bfloat16 gradients are rounded once more
        torch.testing.assert_close(first[name], second[name], rtol=2e-2, atol=2e-2)


def test_sharded_unet_has_the_gradients_of_a_whole_one(tmp_path: Path) -> None:
    """Through `prepare` and `forward`, checkpointed, two micro-batches in two processes."""
    preset = PRESETS["tiny"].unet

    def built() -> UNet:
        network = UNet(preset)
        initialise(network, torch.Generator().manual_seed(0))
        network.is_checkpointed = True
        return network

    generator = torch.Generator().manual_seed(1)
    x, context = (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.randn(2, 5, preset.context or 0, generator=generator),
    )

    def pull(network: UNet, row: slice) -> None:
        output = network(x[row], torch.tensor([500.0])[[0] * len(x[row])], network.prepare(Conditioning(context[row])))
        torch.autograd.backward(output.square().sum())

    def task(rank: int) -> None:
        joined()
        network = built()
        shard(network)
        pull(network, slice(rank, rank + 1))
        state.write_state(
            tmp_path / f"{rank}.safetensors",
            {name: whole(p.grad) for name, p in network.named_parameters() if p.grad is not None},
        )

    assert processes(2, task) == [0, 0]
    network = built()
    pull(network, slice(0, 2))
    for rank in (0, 1):
        found = state.read_state(tmp_path / f"{rank}.safetensors")
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_micro_batches_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(ConfigError, match="gradient_accumulation_steps 2: 3 processes need a multiple of 3"):
        Run(ToyPart(), config(), Processes(0, 3))


def test_one_process_asked_to_stop_stops_all_at_one_step(alone: Path, tmp_path: Path) -> None:
    def task(rank: int) -> None:
        answers = iter([False] * 3 + [rank == 1] + [False] * 9)
        assert not train(ToyPart(), config(), tmp_path, should_stop=lambda: next(answers))

    assert processes(2, task) == [0, 0]
    assert state.complete(tmp_path / "checkpoints")[-1].name == "step-00000003"
    assert same(trained(tmp_path, config(), 2), alone)


def test_what_one_process_cannot_save_nobody_saves(alone: Path, tmp_path: Path) -> None:
    """The second process cannot write at step 4: both go on, nothing half-written is taken, step 6 is saved."""

    def task(rank: int) -> None:
        seen: list[str] = []
        logging.getLogger(loop.__name__).error = lambda message, *values: seen.append(message % values)  # pyright: ignore
        write = state.write_state

        def refuse(path: Path, tensors: Mapping[str, Tensor]) -> None:
            if rank == 1 and ".partial-00000004" in str(path):
                raise CheckpointError("the disk is full")
            write(path, tensors)

        state.write_state = refuse  # pyright: ignore
        train(ToyPart(), config(checkpoints_total_limit=9), tmp_path)
        why = "the disk is full" if rank else "another process could not do its part; its log says why"
        assert seen == [f"step 4 has no checkpoint, training goes on: {why}"], seen

    assert processes(2, task) == [0, 0]
    steps = [path.name[-2:] for path in state.complete(tmp_path / "checkpoints")]
    assert steps == ["02", "06", "08", "09"]
    assert same(tmp_path, alone)
