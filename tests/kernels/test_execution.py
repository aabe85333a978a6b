"""Towers made ready: the function stays; layers of large ones are not kept in memory once they were used."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from mezzotint.kernels import execution
from mezzotint.kernels.choices import PACKED, PLAIN
from mezzotint.kernels.execution import Execution
from mezzotint.models.clip import TextTower
from mezzotint.models.presets import PRESETS
from models.oracles import relative


@torch.no_grad()
def test_a_tower_is_packed_if_it_is_small_and_passes_if_it_is_large(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    tower, ids = TextTower(PRESETS["tiny"].text[0]), torch.randint(0, 100, (1, 77), generator=generator)
    given: list[nn.Module] = []

    def spy(modules: Iterable[nn.Module]) -> int:
        given.extend(modules)
        return 0

    monkeypatch.setattr(execution, "give_back", spy)
    wanted = tower(ids).pooled
    assert Execution(PLAIN).tower(tower) is tower
    assert relative(Execution(PACKED).tower(tower)(ids).pooled, wanted) < 1e-5
    assert given == []
    monkeypatch.setattr(execution, "LARGE_TOWER", 1)
    assert torch.equal(Execution(PACKED).tower(tower)(ids).pooled, wanted)
    linear = [module for module in tower.modules() if type(module) is nn.Linear]
    assert len(given) == len(linear)
    assert {*map(id, given)} == {*map(id, linear)}
