"""Two pictures from one seed, side by side: two prompts, samplers, guidance values, checkpoints, or other settings."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from mezzotint.errors import RequestError, unknown
from mezzotint.explain.blocks import Block, Section, code_of, curves, heat, line, picture, pictures, table, text
from mezzotint.explain.steps import Scene, steps_section
from mezzotint.explain.story import Story, made
from mezzotint.explain.words import tokens_section
from mezzotint.kernels.autoencoder import finished
from mezzotint.pipeline.picture import Studio
from mezzotint.pipeline.request import Request

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System


class Side(NamedTuple):
    """One of the two: what it is called, the model, the request."""

    name: str
    system: "System"
    request: Request


def parsed(said: str) -> tuple[str, str]:
    """`field=value`; anything else is a prompt. `model` is a field, too.

    Raises: RequestError for a name that is no field.
    """
    name, equals, value = said.partition("=")
    if not equals or not name.strip().replace("_", "").isalpha():
        return "prompt", said
    known = ["model", *Request.model_fields]
    if name not in known:
        raise RequestError(f"--compare {said!r}: {unknown('field', name, known)}")
    return name, value


def compare(first: Side, second: Side) -> Story:
    """The story of both.

    Raises: RequestError if the seeds differ or one of them cannot be made.
    """
    if first.request.seed is None or first.request.seed != second.request.seed:
        raise RequestError(
            f"seeds {first.request.seed} and {second.request.seed}: a comparison needs one seed for both"
        )
    (one, _), (two, _) = made(first.system, first.request), made(second.system, second.request)
    names = (first.name, second.name)
    sections = [
        _pictures_section(one, two, names),
        _words_section(one, two, names),
        _steps_section(one, two, names),
        _distance_section(one, two, names),
    ]
    return Story(
        title=f"{names[0]} | {names[1]}",
        subtitle=f"Two pictures from seed {first.request.seed}, side by side",
        facts=[
            ("model", first.system.name),
            *([("and", second.system.name)] if second.system is not first.system else []),
        ],
        sections=sections,
        kind="comparison",
    )


def _pictures_section(one: Scene, two: Scene, names: tuple[str, str]) -> Section:
    items = [picture(scene.image, name) for scene, name in zip((one, two), names, strict=True)]
    if one.image.size == two.image.size:
        a, b = (np.asarray(image.convert("RGB")).astype(np.float32) for image in (one.image, two.image))
        change = np.abs(a - b).mean(-1) / 255
        said = f"mean {float(change.mean()) * 255:.1f} of 255"
        items.append(picture(heat(torch.as_tensor(change)), "where they differ", said))
    left, right = (scene.resolved.request.model_dump(mode="json") for scene in (one, two))
    rows = [(key, str(left[key]), str(right[key])) for key in left if left[key] != right[key]]
    if one.system is not two.system:
        rows.append(("model", one.system.name, two.system.name))
    return Section(
        id="pictures",
        title="Same seed, two pictures",
        lead="Both start from the same noise. Everything that differs between them comes from what the table names.",
        blocks=[pictures(items, side=224), table(("", *names), rows, "What is different")],
        code=(code_of(Studio.rows, "generator =", 1),),
    )


def _words_section(one: Scene, two: Scene, names: tuple[str, str]) -> Section:
    sides: list[Block] = []
    for scene, name in zip((one, two), names, strict=True):
        section, _ = tokens_section(scene.system, scene.resolved.request)
        sides.append({"label": name, "blocks": list(section.blocks)})
    contexts = [scene.told.context for scene in (one, two)]
    lead = "The prompts as the text tower reads them."
    if contexts[0] is not None and contexts[1] is not None and contexts[0].shape == contexts[1].shape:
        alike = F.cosine_similarity(contexts[0].float(), contexts[1].float(), dim=-1).mean()
        lead += f" What the network is told of them is alike by {float(alike):.3f} (mean cosine of the tokens)."
    return Section(id="words", title="The words", lead=lead, blocks=[{"kind": "pair", "sides": sides}])


def _steps_section(one: Scene, two: Scene, names: tuple[str, str]) -> Section:
    both = [finished(steps_section(scene)) for scene in (one, two)]
    sides = [
        {"label": name, "blocks": [block for block in section.blocks if block["kind"] in {"steps", "text"}]}
        for section, name in zip(both, names, strict=True)
    ]
    return Section(
        id="steps",
        title="Step by step",
        lead="The two scrubbers move together. Early steps decide the whole, late ones the details.",
        formula=both[0].formula,
        ms=round(sum(section.ms or 0.0 for section in both), 1),
        code=both[0].code,
        blocks=[{"kind": "pair", "sides": sides}],
    )


def _distance_section(one: Scene, two: Scene, names: tuple[str, str]) -> Section:
    lines: list[Block] = []
    kept = [scene.watching.moments for scene in (one, two)]
    shared = sorted(kept[0].keys() & kept[1].keys())
    is_alike = one.moments[0].query.x.shape == two.moments[0].query.x.shape
    levels_of = [scene.resolved.levels for scene in (one, two)]
    if is_alike and len(levels_of[0]) == len(levels_of[1]):
        apart = [
            (step + 1, float((kept[0][step].answer - kept[1][step].answer).square().mean().sqrt())) for step in shared
        ]
        inputs = [
            (step + 1, float((kept[0][step].query.x - kept[1][step].query.x).square().mean().sqrt())) for step in shared
        ]
        lines = [
            line("between the estimates", apart, has_dots=True),
            line("between the noisy latents", inputs, has_dots=True),
        ]
    levels = [
        line(name, [(i + 1, level.sigma) for i, level in enumerate(visited) if level.sigma > 0], has_dots=True)
        for visited, name in zip(levels_of, names, strict=True)
    ]
    blocks = [curves(levels, "The noise levels that each visits", "step", "sigma", is_log=True)]
    if lines:
        blocks.insert(0, curves(lines, "How far apart the two are", "step", "root mean square"))
    else:
        blocks.append(text("Sizes or numbers of steps differ, so that there are no distances to show."))
    return Section(
        id="distance",
        title="When do they part?",
        lead="The first step starts from the same place (unless the noise levels differ); from then on each goes "
        "its own way. Where the curve rises, the difference that matters is made.",
        formula="distance = sqrt(mean((x0_A - x0_B)²))",
        blocks=blocks,
    )
