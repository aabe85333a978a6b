"""Looking on with the fast kernels: the picture's bits stay, and what is seen is what the plain network attends to."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mezzotint.explain.attention import probabilities
from mezzotint.explain.story import made
from mezzotint.kernels import native, policy
from mezzotint.models.attention import Attention
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.system import System, load

pytestmark = pytest.mark.usefixtures("compiled")

REQUEST = Request(prompt="a red fox", steps=3, seed=11, sampler="euler")
MAPS = 1e-2  # measured: below 4e-3 in bfloat16, 5e-7 in float32


@pytest.fixture(params=[("packed", "auto"), ("native", "auto"), ("native", "float32")], ids="-".join)
def fast(request: pytest.FixtureRequest, tiny_folder: object) -> System:
    """The small model on kernels that are not torch's; bfloat16 where the processor multiplies in it."""
    kernels, dtype = request.param
    system = load(str(tiny_folder), dtype=dtype, kernels=kernels)
    assert native.available()
    assert system.kernels.kernels == policy.possible(policy.NAMED[kernels], system.dtype)
    return system


def same_bits(system: System) -> bool:
    """Whether the picture that was looked at is the one that was not."""
    plain, seen = generate(system, REQUEST).images[0], made(system, REQUEST)[1].images[0]
    return np.array_equal(np.asarray(plain), np.asarray(seen))


def test_the_picture_is_the_same_to_the_bit(fast: System) -> None:
    assert same_bits(fast)


def test_a_look_that_touches_what_it_sees_is_caught(fast: System, monkeypatch: pytest.MonkeyPatch) -> None:
    def touching(layer: Attention, x: Tensor, keys: Tensor) -> Tensor:
        found = probabilities(layer, x, keys)
        x.mul_(1.05)
        return found

    monkeypatch.setattr("mezzotint.explain.attention.probabilities", touching)
    assert not same_bits(fast)


def test_maps_are_those_of_the_plain_network(fast: System, tiny: System) -> None:
    """Every layer, every step; rows that the fast network computes once for both sides of guidance among them."""
    ours, theirs = (made(system, REQUEST)[0].watching.maps for system in (fast, tiny))
    assert ours is not None
    assert theirs is not None
    assert list(ours.by_layer) == list(theirs.by_layer)
    assert {mean.count for mean in ours.by_layer.values()} == {REQUEST.steps}
    for name, mean in theirs.by_layer.items():
        torch.testing.assert_close(ours.by_layer[name].value, mean.value, atol=MAPS, rtol=0)
