"""What is timed is compared first; what levels cost is remembered for the records."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image

from mezzotint.kernels.execution import Execution
from mezzotint.kernels.int8 import multiplies_bytes
from mezzotint.models.unet import UNet
from mezzotint.pipeline.bench import drawn_bars, level_costs, psnr, timings
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.system import System, load


@pytest.fixture
def system(reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:  # Any: a fixture of conftest
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    return load(reference("sd1")[1], dtype="float32")


def test_both_ways_compute_the_same_and_ratios_are_of_one_round(system: System):
    step, decode = timings(system, [64], rounds=3)
    assert (step.part, decode.part) == ("U-Net step", "decode")
    for timing in (step, decode):
        assert 0 < timing.difference < 1e-5
        assert timing.ratio[1] <= timing.ratio[0] <= timing.ratio[2]
        assert timing.seconds > 0


def test_a_wrong_network_shows(system: System, monkeypatch: pytest.MonkeyPatch):
    own = system.kernels

    def unet(self: Execution, unet: UNet) -> Any:  # Any: something that is called as a U-Net is
        return _Twice(unet) if self is own else unet

    monkeypatch.setattr(Execution, "unet", unet)
    assert next(timings(system, [64], rounds=1)).difference == pytest.approx(1.0)


class _Twice:
    """A network whose answers are twice those of another."""

    def __init__(self, unet: Any) -> None:  # Any: a U-Net
        self.prepare, self._unet = unet.prepare, unet

    def __call__(self, *given: Any) -> torch.Tensor:
        return 2 * self._unet(*given)


def test_costs_of_levels_are_remembered(system: System):
    costs = {cost.level: cost for cost in level_costs(system, 1, steps=6)}
    assert set(costs) == {"balanced", "fast", "int8"} | ({"w8a8"} if multiplies_bytes() else set())
    assert 20 < costs["int8"].psnr < 99  # of random weights
    assert costs["fast"].psnr_of_reuse <= costs["balanced"].psnr_of_reuse < 99
    recorded = generate(system, prompt="a red fox", steps=2, level="fast").metadata[0]["approximated"]["measured"]
    assert recorded == costs["fast"].recorded()
    rounded = generate(system.with_weights("int8"), prompt="a red fox", steps=2).metadata[0]["approximated"]
    assert rounded["weights"] == {"kind": "int8", "measured": costs["int8"].recorded()}


def test_equal_pictures_are_far_from_others():
    grey, white = Image.new("RGB", (8, 8), "grey"), Image.new("RGB", (8, 8), "white")
    assert psnr(grey, grey) == 99
    assert psnr(grey, white) == pytest.approx(6.05, abs=0.1)


def test_the_plot_is_svg_with_a_bar_for_each():
    root = ElementTree.fromstring(drawn_bars("a model", {"chosen": 1.0, "plain torch": 2.5}, "s"))
    bars = [float(bar.attrib["width"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert bars == [120.0, 300.0]
