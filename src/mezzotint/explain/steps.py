"""Noise → schedule → steps → guidance: how one latent became a picture, from what a `Watching` has seen."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from mezzotint.checkpoints.scheduler import plan
from mezzotint.diffusion.guidance import guided
from mezzotint.diffusion.parameterisation import Scalings
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import staged
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.diffusion.spacing import SPACINGS
from mezzotint.errors import MezzotintError
from mezzotint.explain.attention import Maps, probabilities
from mezzotint.explain.blocks import (
    MOST_DOTS,
    MOST_SIDE,
    Block,
    Section,
    Telling,
    bars,
    code_of,
    coloured,
    curves,
    dots,
    grey,
    heat,
    histogram,
    line,
    packed,
    picture,
    pictures,
    sizes,
    slider,
    table,
    text,
    three,
    uri,
)
from mezzotint.explain.watch import Activation, Moment, Watching
from mezzotint.explain.words import told_apart
from mezzotint.models.unet import Conditioning, UNet
from mezzotint.names import SAMPLERS as NAMES
from mezzotint.pipeline.drive import Predictor, evaluated
from mezzotint.pipeline.making import Making
from mezzotint.pipeline.picture import Studio
from mezzotint.pipeline.resolve import Resolved

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

DECODED = 32 * 32  # positions of latents that are decoded at every step; larger ones are shown by a linear map
CURVE_POINTS = 101
COMPARED = ("karras", "trailing", "linspace", "exponential", "beta")  # spacings next to the chosen one
SCALES = (0.5, 1.0, 1.5, 2.0)  # times the guidance that was asked for, next to none


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One picture that was made under a watch."""

    making: Making
    watching: Watching
    image: Image.Image
    ms: float  # that making it took, looking on included

    @property
    def system(self) -> "System":
        """The model."""
        return self.making.system

    @property
    def resolved(self) -> Resolved:
        """The request with everything filled in."""
        return self.making.resolved

    @property
    def told(self) -> Conditioning:
        """What the network was told besides x and t."""
        assert self.watching.told is not None  # every picture takes a step
        return self.watching.told

    @property
    def moments(self) -> list[Moment]:
        """What was kept, first step first."""
        return [self.watching.moments[step] for step in sorted(self.watching.moments)]

    @property
    def is_decoded(self) -> bool:
        """Whether latents are small enough to be decoded at every step."""
        x = self.moments[0].query.x
        return x.shape[-1] * x.shape[-2] <= DECODED

    def look(self, latent: Tensor) -> Image.Image:
        """A latent as a picture."""
        return pixels(self.system, latent) if self.is_decoded else self.system.preview(latent)

    def looks(self, latents: Iterable[Tensor]) -> Telling[list[Image.Image]]:
        """`look` of each."""
        found: list[Image.Image] = []
        for latent in latents:
            found.append(self.look(latent))
            yield
        return found


def pixels(system: "System", latent: Tensor) -> Image.Image:
    """A latent [1 c h w] through the decoder."""
    return coloured(system.decode(latent)[0])


def noise_section(scene: Scene) -> Section:
    """Section 3: where the picture starts."""
    first = scene.moments[0].query
    request, levels = scene.resolved.request, scene.resolved.levels
    is_pure = scene.resolved.is_pure_noise
    noise = first.x / (scene.resolved.plan.initial_scale if is_pure else (1 + levels[0].sigma ** 2) ** 0.5)
    channels = [
        picture(grey(channel), f"channel {i + 1}", f"mean {float(channel.mean()):+.2f}")
        for i, channel in enumerate(noise[0])
    ]
    c, h, w = noise.shape[1:]
    said = "is nothing but noise" if is_pure else "is the given picture's latent under noise"
    factor = scene.system.vae.factor
    return Section(
        id="noise",
        title="The picture starts as noise",
        lead=f"The network does not work on pixels but on a latent: {c} numbers for every {factor}x{factor} pixels. "
        f"The first one {said}, drawn from seed {request.seed} on the processor, so that the same seed gives the same "
        "noise on any machine. The picture is already decided: everything from here on only uncovers it.",
        formula="x = sigma_max * noise,   noise ~ N(0, 1)" if is_pure else "x = x0 + sigma * noise,   noise ~ N(0, 1)",
        shapes=(f"noise {sizes(noise)} float32", f"picture [1 3 {h * factor} {w * factor}]"),
        code=(code_of(Studio.rows, "x = plan.initial_scale", 2), code_of(Studio.rows, "generator =", 1)),
        blocks=[
            pictures(channels, f"Seed {request.seed}: the {c} channels"),
            histogram(noise, "How often each value occurs, and the bell curve that it was drawn from"),
        ],
    )


def schedule_section(scene: Scene) -> Section:
    """Section 4: which noise levels are visited."""
    resolved, planned = scene.resolved, scene.resolved.plan
    schedule, levels = planned.schedule, resolved.levels
    trained = [round(i * (len(schedule) - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)]
    curve = line("trained levels", [(t, float(schedule.sigmas[t])) for t in trained])
    own = [(level.t, level.sigma) for level in levels if level.sigma > 0]
    lines = [curve, line(f"{planned.spacing or 'own'} (used here)", own, has_dots=True)]
    steps = resolved.request.steps or len(levels) - 1
    for name in COMPARED:
        if name in SPACINGS and name != planned.spacing:
            try:
                other = plan(scene.system.scheduler, steps, sampler=planned.sampler, spacing=name)
            except MezzotintError:  # this spacing has not so many levels
                continue
            lines.append(
                line(name, [(level.t, level.sigma) for level in other.levels if level.sigma > 0], has_dots=True)
            )
    signal = schedule.alphas_cumprod
    mixing = [
        line("signal sqrt(ᾱ)", [(t, float(signal[t]) ** 0.5) for t in trained]),
        line("noise sqrt(1 - ᾱ)", [(t, (1 - float(signal[t])) ** 0.5) for t in trained]),
    ]
    spacing = SPACINGS.get(str(planned.spacing))
    listed = [
        (i, round(now.t, 1), round(now.sigma, 3), round(after.sigma, 3))
        for i, (now, after) in enumerate(pairwise(levels))
    ]
    return Section(
        id="schedule",
        title="A few of the thousand noise levels are visited",
        lead=f"The model was trained at {len(schedule)} noise levels, from a little (t = 0) to almost nothing but "
        f"noise (t = {len(schedule) - 1}). Each level is a weighted mean of picture and noise. Making a picture "
        f"visits only {len(levels) - 1} of them, from the noisiest down. Choosing which is called spacing.",
        formula="x_t = sqrt(ᾱ_t) * x0 + sqrt(1 - ᾱ_t) * noise,   sigma = sqrt((1 - ᾱ) / ᾱ)",
        shapes=(f"levels [{len(levels)}] of (sigma, t)",),
        code=(
            code_of(NoiseSchedule.add_noise, "signal, spread", 2),
            *((code_of(spacing.points),) if spacing else ()),
        ),
        blocks=[
            curves(mixing, "How much picture and how much noise a level holds", "training step t", "share"),
            curves(
                lines, "The levels visited, on the curve of the trained ones", "training step t", "noise level sigma",
                is_log=True, is_chosen=True,
            ),
            table(("step", "t", "sigma", "next sigma"), listed, "Every step"),
        ],
    )  # fmt: skip


def steps_section(scene: Scene) -> Telling[Section]:
    """Section 5: the film, the words, the inside of the network."""
    watching, system = scene.watching, scene.system
    frames: list[Block] = []
    for moment in scene.moments:
        x, sigma = moment.query.x, moment.query.sigma
        step = next(step for step, kept in watching.moments.items() if kept is moment)
        noisy, expected = yield from scene.looks([x / (1 + sigma**2) ** 0.5, moment.answer])
        frame: Block = {
            "step": step,
            "sigma": round(sigma, 4),
            "t": round(moment.query.t, 1),
            "ms": round(1000 * watching.seconds[step], 1),
            "x": uri(noisy if scene.is_decoded else dots(noisy)),
            "x0": uri(expected, MOST_SIDE if scene.is_decoded else 2 * MOST_DOTS),
            "noise": uri(dots(three(((x - moment.answer) / max(sigma, 1e-6))[0]))),
        }
        conditional = moment.x0.get("conditional")
        if conditional is not None and len(moment.x0) > 1:
            change = (moment.answer - conditional)[0].abs().mean(0)
            frame |= {"change": uri(dots(heat(change))), "changed": round(float(change.mean()), 4)}
        frames.append(frame)
    info = NAMES[scene.resolved.plan.sampler]
    how = (
        "Latents are decoded to pixels at every step."
        if scene.is_decoded
        else "Latents are large: steps are shown by a linear map to colours, one dot for each place of the latent."
    )
    block: Block = {
        "kind": "steps",
        "frames": frames,
        "final": uri(scene.image),
        "how": how,
        "maps": None if watching.maps is None else maps_block(watching.maps, sorted(watching.moments)),
    }
    blocks = [block]
    if watching.maps is None or not watching.maps.by_layer:
        blocks.append(
            text("This network has no cross-attention that could be looked at, so there are no maps of words.")
        )
    if watching.activations:
        blocks.append(ladder_block(watching.activations))
    rows = len(scene.moments[0].x0)
    x = scene.moments[0].query.x
    parameterisation = system.network.parameterisation
    return Section(
        id="steps",
        title="Step by step, the noise is taken away",
        lead=f"At every step the U-Net looks at the noisy latent, at the level, and at the words, and says what noise "
        f"it sees. Taking all of that away gives an estimate of the finished picture; the sampler ({info.title}) goes "
        "only part of the way there and asks again. Choose a step; point at a word to see where it acts, and at the "
        "picture to see which words act there.",
        formula="x0 = c_skip(sigma) * x + c_out(sigma) * U-Net(c_in(sigma) * x, t, words);   maps = softmax(q k / "
        "sqrt(d))",
        shapes=(
            f"x {sizes(x)}",
            f"U-Net input [{rows} {x.shape[1]} {x.shape[2]} {x.shape[3]}]",
            *_scalings(scene),
        ),
        ms=round(1000 * sum(watching.seconds.values()), 1),
        code=(
            code_of(SAMPLERS[scene.resolved.plan.sampler]),
            code_of(evaluated, "c_in =", 8),
            code_of(parameterisation),
            code_of(UNet.forward, "for level in self.down", 14),
            code_of(probabilities, "q =", 2),
        ),
        blocks=blocks,
    )


def _scalings(scene: Scene) -> list[str]:
    at: Scalings = scene.system.network.parameterisation(scene.moments[0].query.sigma)
    return [f"at the first step c_skip {at.c_skip:.3g}, c_out {at.c_out:.3g}, c_in {at.c_in:.3g}"]


def maps_block(maps: Maps, steps: Sequence[int]) -> Block:
    """Heat maps for the page: word by step, by layer and by head, a byte for each value.

    A step at which no layer that looks at words was run shows the maps of the one before.
    """
    if not maps.by_step:
        return {"words": []}
    seen = sorted(maps.by_step)
    latest = [max((at for at in seen if at <= step), default=seen[0]) for step in steps]
    by_step = torch.stack([maps.by_step[step].value for step in latest])
    by_layer = torch.stack([mean.value for mean in maps.by_layer.values()])
    by_head = torch.cat([mean.value for mean in maps.by_head.values()])
    sizes = [f"{maps.sizes[name].h}×{maps.sizes[name].w}" for name in maps.by_layer]
    return {
        "words": told_apart(maps.groups.names),
        "steps": _grouped(by_step),
        "layers": {"names": list(maps.by_layer), "sizes": sizes, **_grouped(by_layer)},
        "heads": {"counts": [len(mean.value) for mean in maps.by_head.values()], **_grouped(by_head)},
    }


def _grouped(maps: Tensor) -> Block:
    """[k g h w] as bytes, each group with its own brightest value, and the mean share of each group."""
    highs = maps.amax((0, 2, 3)).clamp(min=1e-9)
    shares = [round(float(share), 4) for share in maps.mean((0, 2, 3))]
    return {**packed(maps / highs[:, None, None], 0, 1), "highs": [float(f"{h:.5g}") for h in highs], "shares": shares}


def ladder_block(activations: Sequence[Activation]) -> Block:
    """The U-Net part by part: what each gave, how large, how long it took."""
    rows = [
        {
            "name": a.name,
            "shape": list(a.shape),
            "ms": round(1000 * a.seconds, 2),
            "strength": float(f"{a.strength:.3g}"),
            "src": uri(heat(a.map)),
        }
        for a in activations
    ]
    return {"kind": "ladder", "title": "Inside the U-Net at one step: down to few places, and up again", "rows": rows}


def guidance_section(scene: Scene) -> Telling[Section]:
    """Section 6: with the words, without them, and past them."""
    request = scene.resolved.request
    scale = 1.0 if request.guidance is None else request.guidance
    both = [moment for moment in scene.moments if {"conditional", "unconditional"} <= set(moment.x0)]
    lead = (
        "The network is asked twice: once with the prompt, once with the empty (or the negative) one. The difference "
        f"is what the words change; guidance multiplies it, here by {scale:g}. More makes the picture obey, at the "
        "price of glaring colours and less variety."
    )
    code = (code_of(guided, "x0 = unconditional_x0", 1),)
    formula = "x0 = x0_without + scale * (x0_with - x0_without)"
    if not both:
        said = "Guidance is off (scale 1, or a distilled model): the network is asked once, with the prompt."
        return Section(
            id="guidance", title="Guidance is off", lead=said, formula=formula, code=code, blocks=[]
        )  # fmt: skip
    blocks: list[Block] = []
    for name, moment in zip(("early", "midway", "at the end"), _spread(both, 3), strict=False):
        shown = (
            ("without the words", moment.x0["unconditional"]),
            ("with the words", moment.x0["conditional"]),
            (f"guided, x {scale:g}", moment.answer),
        )
        looks = yield from scene.looks(x0 for _, x0 in shown)
        items = [picture(look, label) for look, (label, _) in zip(looks, shown, strict=True)]
        difference = (moment.x0["conditional"] - moment.x0["unconditional"])[0].abs().mean(0)
        items.append(
            picture(heat(difference), "what the words change", f"dark 0, bright {float(difference.max()):.2g}")
        )
        blocks.append(pictures(items, f"{name.capitalize()}, sigma {moment.query.sigma:.2f}"))
    moment = _spread(both, 3)[len(_spread(both, 3)) // 2]
    scales = sorted({1.0, *(round(scale * factor, 2) for factor in SCALES)})
    looks = yield from scene.looks(mixture(scene, moment, s) for s in scales)
    mixed = [picture(look, f"scale {s:g}") for look, s in zip(looks, scales, strict=True)]
    blocks.append(slider(mixed, f"The estimate at sigma {moment.query.sigma:.2f} with other scales", "guidance scale"))
    said = "The slider mixes the two answers of this one step anew. Whole pictures made with two scales are shown by "
    blocks.append(text(f"{said}mezzotint explain … --compare guidance=1 guidance=7.5."))
    x = both[0].query.x
    return Section(
        id="guidance",
        title="Guidance: the words, louder",
        lead=lead,
        formula=formula,
        shapes=(f"two rows of {sizes(x)} in, one x0 out",),
        code=code,
        blocks=blocks,
    )


def mixture(scene: Scene, moment: Moment, scale: float) -> Tensor:
    """The answer of a moment had guidance been `scale`, by the stage that guides."""
    if scale == 1:
        return moment.x0["conditional"]
    request = scene.resolved.request
    stage = guided(
        None,
        None,
        scale,
        rescale=request.guidance_rescale,
        parameterisation=scene.system.network.parameterisation,
    )
    asked = stage(moment.query)
    next(asked)
    try:
        asked.send([moment.x0["conditional"], moment.x0["unconditional"]])
    except StopIteration as finished:
        answer: Tensor = finished.value
        return answer
    raise AssertionError("guidance asks once")


def code_section(scene: Scene, spent: Sequence[tuple[str, float]]) -> Section:
    """Section 8: where the time went, and the loop that ties everything together."""
    total = sum(ms for _, ms in spent) or 1.0
    rows = [(name, ms, f"{ms:,.1f} ms, {ms / total:.0%}") for name, ms in spent]
    request = scene.resolved.request
    execution = scene.system.execution()
    facts = [
        ("model", scene.system.name), ("family", scene.system.preset),
        ("parameters of the U-Net", f"{sum(p.numel() for p in scene.system.unet.parameters()):,}"),
        ("sampler", request.sampler), ("spacing", request.spacing), ("steps", request.steps),
        ("network evaluations", scene.watching.evaluations), ("dtype", execution["dtype"]),
        ("instructions", execution["processor"]),
    ]  # fmt: skip
    return Section(
        id="code",
        title="The code that ran",
        lead="Every section above quotes the lines that did its work; these tie them together. A sampler asks, a stage "
        "turns the question into rows for the network, the driver runs the network. Nothing else happens.",
        formula="sampler: yields (x, sigma, t), is sent x0;   stage: yields rows, is sent their x0;   predict(rows) "
        "-> x0",
        code=(code_of(staged, "query ="), code_of(Predictor.__call__, "found"), code_of(Studio.finishing, "made =", 1)),
        blocks=[
            {**bars(rows, "Where the time went"), "ms": total},
            table(("", ""), facts, "What ran"),
        ],
    )


def _spread(moments: Sequence[Moment], count: int) -> list[Moment]:
    places = sorted({round(i * (len(moments) - 1) / (count - 1)) for i in range(count)})
    return [moments[place] for place in places]
