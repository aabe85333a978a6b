"""The story of one training step of any recipe: what the network is shown, what it should say, what it says, the loss.

The step is the recipe's own, with its own data, random numbers and weights (those of the run's newest checkpoint, else
the ones that a run would begin with). It is really taken, on a copy in memory: nothing on disk changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.explain.blocks import (
    REACH,
    Section,
    bars,
    code_of,
    coloured,
    grey,
    heat,
    matrix,
    picture,
    pictures,
    sizes,
    table,
    unchanged,
)
from mezzotint.explain.denoising import part_of, sections_of
from mezzotint.explain.story import Story
from mezzotint.models.vae import AutoencoderKL
from mezzotint.training import state
from mezzotint.training.autoencoder import AutoencoderPart, autoencoder_of
from mezzotint.training.clip import ClipPart, also_true, clip_of, contrastive
from mezzotint.training.config import TrainConfig
from mezzotint.training.lineage import NOTHING, place_of, start_of, tiny, train_tiny
from mezzotint.training.part import Inputs, make
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.run import Run
from mezzotint.training.samples import as_image
from mezzotint.training.unet import UNetPart

SHOWN = 4  # samples of the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """The step that was taken: its log record, its loss before and after on the same batch, and how long it took."""

    record: Mapping[str, float]
    before: float
    after: float
    ms: float


def explain_training(
    stages: Sequence[TrainConfig],
    name: str,
    out: Path,
    *,
    data: Path | None = None,
    scale: str = "full",
    start: str | None = None,
) -> Story:
    """The story of the next step of a recipe's last stage; `out` is the folder of its run, which may not exist.

    At tiny scale, what the recipe builds on is trained first, beside `out`, unless it is there.
    Raises: ConfigError if there is no data, or what the recipe builds on is missing.
    """
    if scale == "tiny":
        stages = tiny(stages, out)
        data = train_tiny(stages, out) if data is None else data
    if data is None:
        raise ConfigError("--data PICTURES is needed: a folder, or a .parquet, .tar or .toml file")
    config, last = stages[-1], len(stages) - 1
    saved = state.newest(out / "checkpoints")
    needs = {role: place_of(said, out) for role, said in config.needs.items()}
    if saved is None and start is not None and (before := start_of(config, last, out, start)) is not None:
        needs["start"] = before
    part = make(config, Inputs(data=data, needs=needs, cache=out.parent / "cache"))
    run = Run(part, config)
    if saved is not None:
        run.restore(saved)
    told = saved is None and (start in (None, NOTHING))
    weights = (
        "random, as at the very beginning" if told else f"after {run.step} steps" if saved else f"those of {start}"
    )
    facts = [("recipe", name), ("part", config.part), ("weights", weights), ("batch", str(config.batch))]
    if isinstance(part, UNetPart):
        sections = [*sections_of(part, run), _step_section(run, "unet")]
    elif isinstance(part, ClipPart):
        sections = _clip_sections(part, run)
    elif isinstance(part, AutoencoderPart):
        sections = _autoencoder_sections(part, run)
    else:
        raise ConfigError(f"recipe.part {config.part!r}: its training step cannot be shown")
    return Story(
        title=f"One training step of {name}",
        subtitle="What the network is shown, what it should say, what it says",
        facts=facts,
        sections=sections,
        kind="training",
    )


def _taken(run: Run, player: str) -> Taken:
    """Take the step; the loss of its first micro-batch before and after."""
    part, batch = run.part, run.batches()[0]

    def loss() -> float:
        with torch.no_grad(), ExplicitAttention():
            found = part.loss(player, run.working.networks, batch)
        return float("nan") if found is None else float(found.total)

    before, begun = loss(), perf_counter()
    record = run.take_step()
    ms = round(1000 * (perf_counter() - begun), 1)
    return Taken(record=record, before=before, after=loss(), ms=ms)


def _step_section(run: Run, player: str) -> Section:
    """The last section of every part: gradient, learning rate, and what the step changed."""
    step = run.step
    taken = _taken(run, player)
    rows = [(name, f"{value:.5g}") for name, value in taken.record.items()]
    both = (("before", taken.before), ("after", taken.after))
    size = sum(p.numel() for p in run.part.players[player].parameters())
    return Section(
        id="step",
        title="One step downhill",
        lead=f"The loss is one number; its gradient says for each of the {size:,} weights which way to move. AdamW "
        f"moves them a little. The same examples after the step: loss {taken.before:.5f} → {taken.after:.5f}. Then "
        "come the next examples, thousands of times.",
        formula="weights -= rate * m / (sqrt(v) + eps);   m, v: running means of the gradient and of its square",
        shapes=(f"step {step} → {run.step}", f"{size:,} weights"),
        ms=taken.ms,
        code=(code_of(Run.take_step, "losses =", 13),),
        blocks=[
            bars([(name, value, f"{value:.5f}") for name, value in both], "Loss on the same examples"),
            table(("", ""), rows, "What the log says of this step"),
        ],
    )  # fmt: skip


def _clip_sections(part: ClipPart, run: Run) -> list[Section]:
    batch = run.batches()[0]
    kept: list[tuple[Tensor, Tensor]] = []

    def after(module: nn.Module, arguments: object, output: tuple[Tensor, Tensor]) -> None:
        kept.append((output[0].detach().float(), output[1].detach().float()))

    network = clip_of(run.working.networks)
    hook = network.register_forward_hook(after)
    begun = perf_counter()
    try:
        with torch.no_grad(), ExplicitAttention():
            loss = part.loss("clip", run.working.networks, batch)
    finally:
        hook.remove()
    ms = round(1000 * (perf_counter() - begun), 1)
    assert loss is not None
    images, texts = kept[0]
    said = [part.said(sample, position) for sample, position in zip(batch.samples, batch.positions, strict=True)]
    few = range(min(2 * SHOWN, len(batch.samples)))
    pixels = part.pictures.pixels([batch.samples[i] for i in few], part.size)
    alike = images[: len(few)] @ texts[: len(few)].T
    ignored = also_true([frozenset(part.pictures.pictures[i].captions) for i in batch.samples], said)
    names = [f"picture {i + 1}" for i in few]
    seen = [picture(unchanged(one), said[i]) for i, one in zip(few, pixels, strict=True)]
    title = "Cosine of picture (row) and caption (column)"
    high = max(0.05, float(alike.abs().max()))
    return [
        Section(
            id="examples",
            title="Pictures and what is said of them",
            lead=f"A step takes {run.config.batch} pictures{part_of(run)}, each with one of its captions. Nobody "
            "says what is in them: all that is known is which caption belongs to which picture.",
            shapes=(f"pictures [{len(batch.samples)} 3 {part.size} {part.size}]",),
            blocks=[pictures(seen, "Some of them", side=96)],
        ),
        Section(
            id="alike",
            title="Which belongs to which?",
            lead="Two towers turn pictures and captions into arrows of length 1. The right pairs lie on the diagonal; "
            "training pulls these together and pushes all others apart. Captions that are also true of another picture "
            f"are no wrong answer and are left out ({int(ignored.sum())} pairs here). Loss {float(loss.total):.4f}; "
            f"guessing would cost {torch.log(torch.tensor(float(len(said)))):.4f}.",
            formula="logits = scale * images textsᵀ;   loss = (cross-entropy of rows + of columns) / 2",
            shapes=(f"images {sizes(images)}", f"texts {sizes(texts)}"),
            ms=ms,
            code=(code_of(contrastive, "logits =", 4), code_of(also_true, "rows =", 2)),
            blocks=[
                matrix(names, [said[i] for i in few], alike, title, low=-high, high=high),
                table(("", ""), [(name, f"{float(value):.4f}") for name, value in loss.parts.items()]),
            ],
        ),
        _step_section(run, "clip"),
    ]  # fmt: skip


@torch.no_grad()
def _autoencoder_sections(part: AutoencoderPart, run: Run) -> list[Section]:
    batch = run.batches()[0]
    network = autoencoder_of(run.working.networks)
    few = [batch.samples[i] for i in range(min(SHOWN, len(batch.samples)))]
    image = as_image(part.pictures.pixels(few, part.size))
    dtype = next(network.parameters()).dtype
    begun = perf_counter()
    posterior = network.encode(image.to(dtype))
    back = network.decode(posterior.mean).float()
    ms = round(1000 * (perf_counter() - begun), 1)
    with ExplicitAttention():
        loss = part.loss("autoencoder", run.working.networks, batch)
    assert loss is not None
    mean, std = posterior.mean.float(), posterior.std.float()
    reach = max(REACH, float(mean.abs().max()))
    error = (back - image).abs()
    parts = [(name, float(value), f"{float(value):.5f}") for name, value in loss.parts.items()]
    with torch.enable_grad():
        step = _step_section(run, "autoencoder")
    return [
        Section(
            id="examples",
            title="Pictures become a cloud of latents",
            lead="The encoder answers with a mean and a deviation for every number of the latent; the latent is "
            "drawn from this cloud, so that neighbours mean neighbouring pictures.",
            formula="latent = mean + deviation * noise",
            shapes=(f"pictures {sizes(image)}", f"latents {sizes(mean)}"),
            code=(code_of(AutoencoderKL.encode),),
            blocks=[
                pictures([picture(coloured(one), "") for one in image], "The pictures"),
                pictures([picture(grey(c, reach), f"mean {i + 1}") for i, c in enumerate(mean[0])], "First means"),
                pictures([picture(heat(c), f"deviation {i + 1}") for i, c in enumerate(std[0])], "Its deviations"),
            ],
        ),
        Section(
            id="loss",
            title="What comes back, what is lost",
            lead="The decoder paints the picture again. The loss adds the differences of pixels at several sizes "
            "and of edges, and a little for clouds that are not near the unit Gaussian. Here: "
            f"{float(loss.total):.5f}.",
            formula="loss = |pixels| + w_edges * |edges| + w_kl * KL(cloud, N(0, 1))",
            shapes=(f"decoded {sizes(back)}",),
            ms=ms,
            code=(code_of(AutoencoderPart.loss, 'parts["kl"]', 3),),
            blocks=[
                pictures([picture(coloured(one), "") for one in back], "What comes back"),
                pictures([picture(heat(one.mean(0), 0.5), "") for one in error], "What was lost"),
                bars(parts, "Parts of the loss"),
            ],
        ),
        step,
    ]  # fmt: skip
