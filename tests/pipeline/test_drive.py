"""From rows to x0: batches, precision, and what is remembered between steps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.parameterisation import epsilon, velocity, x0_from
from mezzotint.diffusion.sampling import Row, Rows
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet
from mezzotint.pipeline.drive import Network, Predictor, drive


@pytest.fixture
def unet() -> UNet:
    network = UNet(PRESETS["tiny"].unet)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn) * 0.05)
    return network.requires_grad_(False)


def _network(unet: UNet, dtype: torch.dtype = torch.float32, parameterisation: Any = epsilon) -> Network:  # Any: either
    return Network(unet.to(dtype), parameterisation, dtype, torch.device("cpu"))


def _rows(generator: torch.Generator, sigma: float = 2.0) -> list[Row]:
    x = torch.randn(1, 4, 8, 8, generator=generator) * sigma
    contexts = [torch.randn(1, 77, 32, generator=generator) for _ in range(2)]
    slots = ("conditional", "unconditional")
    return [Row(x, sigma, 500.0, Conditioning(c), slot=slot) for c, slot in zip(contexts, slots, strict=True)]


@pytest.mark.parametrize("parameterisation", [epsilon, velocity])
def test_x0_is_the_scaled_answer_of_the_network(unet: UNet, generator: torch.Generator, parameterisation: Any):
    rows = _rows(generator)
    network = _network(unet, parameterisation=parameterisation)
    for row, x0 in zip(rows, Predictor({"base": network})(rows), strict=True):
        assert isinstance(row.conditioning, Conditioning)
        scale = parameterisation(row.sigma).c_in
        output = unet(row.x * scale, torch.tensor([row.t]), unet.prepare(row.conditioning))
        torch.testing.assert_close(x0, x0_from(output, row.x, row.sigma, parameterisation))


def test_only_the_network_computes_in_its_dtype(unet: UNet, generator: torch.Generator):
    rows = _rows(generator)
    exact = Predictor({"base": _network(unet)})(rows)
    rough = Predictor({"base": _network(unet, torch.bfloat16)})(rows)
    assert {x0.dtype for x0 in rough} == {torch.float32}
    assert not torch.equal(rough[0], exact[0])
    torch.testing.assert_close(rough[0], exact[0], rtol=1.6e-2, atol=3e-2)  # bfloat16 keeps 8 bits


def test_conditioning_is_prepared_once_for_each_set_of_slots(
    unet: UNet, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    prepared: list[int] = []
    prepare = UNet.prepare

    def counted(self: UNet, conditioning: Conditioning) -> Any:  # Any: what prepare returns
        assert conditioning.context is not None
        prepared.append(len(conditioning.context))
        return prepare(self, conditioning)

    monkeypatch.setattr(UNet, "prepare", counted)
    predict, rows = Predictor({"base": _network(unet)}), _rows(generator)
    for _ in range(3):
        predict(rows)
        predict(rows[:1])
    assert prepared == [2, 1]
    other = _rows(generator)  # same slots, other prompts: what was prepared must not be used
    torch.testing.assert_close(predict(other)[0], Predictor({"base": _network(unet)})(other)[0])
    assert prepared[2] == 2


def test_rows_of_two_networks_come_back_in_order(unet: UNet, generator: torch.Generator):
    first, second = _rows(generator)
    networks = {"base": _network(unet), "other": _network(unet, parameterisation=velocity)}
    mixed = [second._replace(network="other"), first, second]
    answers = Predictor(networks)(mixed)
    assert torch.equal(answers[0], Predictor(networks)([mixed[0]])[0])
    assert torch.equal(answers[1], Predictor(networks)([first, second])[0])


def test_closing_a_drive_closes_what_it_runs():
    ended: list[str] = []

    def endless() -> Rows:
        try:
            while True:
                yield [Row(torch.zeros(1), 1.0, 1.0, None)]
        finally:
            ended.append("closed")

    def answer(rows: list[Row]) -> list[Tensor]:
        return [row.x for row in rows]

    running = drive(endless(), answer)
    next(running)
    running.close()
    assert ended == ["closed"]
