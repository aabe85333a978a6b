"""Working copies and written-out attention change nothing but speed; accumulation equals the large batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet, initialise
from mezzotint.training.precision import ExplicitAttention, Working, explicit_attention
from mezzotint.training.run import Run, swapped
from training.toy import ToyPart, config, stacked


@pytest.mark.parametrize("is_causal", [False, True])
def test_explicit_attention_is_attention(is_causal: bool, generator: torch.Generator) -> None:
    q, k, v = (torch.randn(2, 3, 7, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    torch.testing.assert_close(explicit_attention(q, k, v, is_causal), expected)


def test_only_short_attention_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool = False) -> torch.Tensor:
        seen.append(q.shape[-2])
        return v

    monkeypatch.setattr("mezzotint.training.precision.explicit_attention", spy)
    with ExplicitAttention():
        for n in (4, 2000):
            q = torch.zeros(1, 1, n, 2)
            F.scaled_dot_product_attention(q, q, q)
    F.scaled_dot_product_attention(q, q, q)
    assert seen == [4]


def test_checkpointed_activations_are_computed_again_with_the_same_attention(generator: torch.Generator) -> None:
    config = PRESETS["tiny"].unet
    x, context = (
        torch.randn(1, 4, 8, 8, generator=generator),
        torch.randn(1, 5, config.context or 0, generator=generator),
    )
    unet = UNet(config)
    initialise(unet, generator)
    found: list[torch.Tensor] = []
    for unet.is_checkpointed in (False, True):
        with ExplicitAttention():
            output = unet(x, torch.zeros(1), unet.prepare(Conditioning(context)))
            grads = torch.autograd.grad(output.square().sum(), list(unet.parameters()))
        found.append(stacked(list(grads)))
    assert torch.equal(*found)


def test_copies_give_their_gradients_to_the_masters() -> None:
    """bfloat16 gradients arrive in float32 and add up there: 256 + 1 is not 256."""
    master = nn.Linear(1, 1, bias=False)
    working = Working({"it": master}, torch.bfloat16)
    for scale in (256.0, 1.0):
        torch.autograd.backward(working.networks["it"](torch.full((1, 1), scale, dtype=torch.bfloat16)).sum())
        working.collect("it")
    assert master.weight.grad is not None
    assert float(master.weight.grad) == 257
    with torch.no_grad():
        master.weight.fill_(3)
    working.refresh("it")
    assert [p.item() for p in working.networks["it"].parameters()] == [3]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accumulation_equals_the_large_batch(precision: str) -> None:
    """Two micro-batches of 4 step like one batch of 8, in the order of samples and in the weights."""
    runs: list[Run] = []
    for size, count in ((4, 2), (8, 1)):
        part = ToyPart()
        part.players["learner"].eval()  # no dropout: its draws do not belong to samples
        settings = config(train_batch_size=size, gradient_accumulation_steps=count, mixed_precision=precision)
        run = Run(part, settings)
        run.working.networks["learner"].eval()
        for _ in range(6):  # the opponent joins at step 4
            run.take_step()
        runs.append(run)
    tolerance = 1e-5 if precision == "no" else 2e-2
    for player in runs[0].part.players:
        one, other = (stacked([p.detach() for p in run.part.players[player].parameters()]) for run in runs)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_validation_looks_at_every_average_and_changes_nothing() -> None:
    for precision in ("no", "bf16"):
        run = Run(ToyPart(), config(mixed_precision=precision))
        for _ in range(3):
            run.take_step()
        before = {name: tensor.clone() for name, tensor in run.tensors().items()}
        found = run.validate()
        assert set(found) == {"error", "error@power-0.05", "error@classic-0.9"}
        assert found["error"] != found["error@classic-0.9"]
        assert all(torch.equal(before[name], tensor) for name, tensor in run.tensors().items())


def test_swapped_weights_come_back_after_an_error() -> None:
    network = nn.Linear(2, 2)
    before = stacked([p.detach().clone() for p in network.parameters()])
    within: list[float] = []

    def interrupted() -> None:
        with swapped(network, [torch.zeros_like(p) for p in network.parameters()]):
            within.append(float(network.weight.abs().sum()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert within == [0]
    assert torch.equal(before, stacked([p.detach() for p in network.parameters()]))


def test_vectors_do_not_decay() -> None:
    """With gradients of 0, weight decay alone moves matrices, and matrices alone."""
    run = Run(ToyPart(), config(adam_weight_decay=0.5))
    learner = run.part.players["learner"]
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizers["learner"].step()  # pyright: ignore[reportUnknownMemberType]  # untyped in torch
    moved = {name for name, p in learner.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"0.weight", "3.weight"}
