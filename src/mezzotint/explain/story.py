"""The story of one picture: made as always, with somebody looking on, and told in eight sections."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple  # Any: JSON, and the fields of Request, which validates them

from PIL import Image

from mezzotint.explain.attention import FullMaps, Maps, Shape
from mezzotint.explain.blocks import Block, Section, three, uri
from mezzotint.explain.judge import judged_section
from mezzotint.explain.latent import latent_section
from mezzotint.explain.page import page, shown_in_notebook
from mezzotint.explain.steps import (
    Scene,
    code_section,
    guidance_section,
    noise_section,
    schedule_section,
    steps_section,
)
from mezzotint.explain.watch import Watching, chosen
from mezzotint.explain.words import Read, numbers_section, read, tokens_section
from mezzotint.images import write_file
from mezzotint.pipeline.condition import Sides, told
from mezzotint.pipeline.generate import Result, watched
from mezzotint.pipeline.request import Request
from mezzotint.pipeline.resolve import resolve

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

SCHEMA = 1
FRAMES = 24  # steps that the film shows at most


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """What happened, as sections of data; it shows itself in a notebook. `image` is the picture, if it is about one."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    image: Image.Image | None = None
    flow: Block | None = None  # the whole in one drawing
    kind: str = "picture"

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Everything that the page shows, as plain data; without milliseconds it is the same in every run."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "title": self.title,
            "subtitle": self.subtitle,
            "facts": [list(fact) for fact in self.facts],
            "image": None if self.image is None else uri(self.image),
            "flow": self.flow,
            "sections": [section.to_json() for section in self.sections],
        }

    def html(self) -> str:
        """One page that needs nothing else, and no network."""
        return page(self.title, self.to_json())

    def save(self, path: str | Path) -> Path:
        """Write the page, or the data if the name ends in .json; the file appears whole or not at all.

        Raises: RequestError if it cannot be written.
        """
        path = Path(path)
        told = json.dumps(self.to_json(), ensure_ascii=False) if path.suffix == ".json" else self.html()
        write_file(path, told.encode())
        return path

    def _repr_html_(self) -> str:
        return shown_in_notebook(self.html())


class Made(NamedTuple):
    """A picture made under a watch, its result as `generate` gives it, and what the networks were told."""

    scene: Scene
    result: Result
    sides: Sides
    text_ms: float
    loop_ms: float


class Told(NamedTuple):
    """A story, and the picture's result as `generate` gives it."""

    story: Story
    result: Result


def explain(
    system: "System", request: Request | None = None, /, *, full_maps: str | Path | None = None, **fields: Any
) -> Story:
    """The story of the first picture of a request or of its fields; the picture is that of `generate`, bit for bit.

    `full_maps` is a .npz file for every attention map of every head, layer and step.
    Raises: RequestError.
    """
    return tell(system, Request(**fields) if request is None else request, full_maps).story


def tell(system: "System", request: Request, full_maps: str | Path | None = None) -> Told:
    """`explain`, with the result.

    Raises: RequestError.
    """
    picture = made(system, request, full_maps)
    scene, resolved = picture.scene, picture.scene.resolved
    first, found = tokens_section(system, resolved.request)
    latent = latent_section(scene)
    network_ms = 1000 * sum(scene.watching.seconds.values())
    maps_ms = 1000 * (scene.watching.maps.seconds if scene.watching.maps is not None else 0.0)
    spent = [
        ("text towers", picture.text_ms),
        ("U-Net", network_ms),
        ("decoder", latent.ms or 0.0),
        ("everything else", max(0.0, picture.loop_ms - network_ms - maps_ms - picture.text_ms - (latent.ms or 0.0))),
        ("looking on (only here)", maps_ms),
    ]
    judged = judged_section(scene)
    sections = [
        first,
        numbers_section(system, resolved.request, found, scene.watching.told or picture.sides.conditional),
        noise_section(scene),
        schedule_section(scene),
        steps_section(scene),
        guidance_section(scene),
        latent,
        *([judged] if judged is not None else []),
        code_section(scene, spent),
    ]
    return Told(_bound(scene, sections), picture.result)


def made(system: "System", request: Request, full_maps: str | Path | None = None) -> Made:
    """The first picture of a request, made under a watch.

    Raises: RequestError.
    """
    resolved = resolve(system, request.model_copy(update={"count": 1}))
    begun = perf_counter()
    sides = told(system, resolved.request)
    text_ms = 1000 * (perf_counter() - begun)
    request, vae = resolved.request, system.vae
    steps = len(resolved.levels) - 1
    kept = frozenset(chosen(steps, FRAMES))
    full = FullMaps(Path(full_maps)) if full_maps is not None else None
    maps = None
    if system.unet.config.context is not None:
        groups = read(request.prompt, system.tokenizers[0], system.text[0].config.positions).groups
        latent = Shape((request.height or 0) // vae.factor, (request.width or 0) // vae.factor)
        maps = Maps(groups=groups, latent=latent, steps=kept, full=full)
    watching = Watching(steps=kept, maps=maps, activations_at=steps // 2)
    begun = perf_counter()
    running = watched(system, resolved, watching)
    try:
        for _ in running:
            pass
    finally:
        running.close()
        if full is not None:
            full.close()
    loop_ms = 1000 * (perf_counter() - begun)
    result = running.result
    scene = Scene(system=system, resolved=resolved, watching=watching, image=result.images[0])
    return Made(scene, result, sides, text_ms, loop_ms)


def _bound(scene: Scene, sections: Sequence[Section]) -> Story:
    request = scene.resolved.request
    facts: list[tuple[str, str]] = [
        ("model", scene.system.name), ("seed", str(request.seed)), ("steps", str(request.steps)),
        ("sampler", str(request.sampler)), ("guidance", f"{request.guidance:g}"),
        ("size", f"{request.width}x{request.height}"),
    ]  # fmt: skip
    return Story(
        title=request.prompt or "a picture of nothing",
        subtitle="How this picture was made, from the words to the pixels",
        facts=facts,
        sections=sections,
        image=scene.image,
        flow=_flow(scene, read(request.prompt, scene.system.tokenizers[0], scene.system.text[0].config.positions)),
    )


def _flow(scene: Scene, found: Read) -> Block:
    """What the drawing on top says of this picture."""
    request, told, first = scene.resolved.request, scene.watching.told, scene.moments[0].query
    context = None if told is None or told.context is None else list(told.context.shape[1:])
    latent = scene.moments[-1].answer
    return {
        "tokens": len(found.tokens),
        "slots": found.slots,
        "context": "" if context is None else f"{context[0]} × {context[1]} numbers",
        "seed": request.seed,
        "noise": uri(three(first.x[0] / (1 + first.sigma**2) ** 0.5)),
        "steps": len(scene.resolved.levels) - 1,
        "guidance": request.guidance,
        "shape": " × ".join(map(str, latent.shape[1:])),
        "latent": uri(three(latent[0])),
        "picture": uri(scene.image),
        "size": f"{request.width} × {request.height}",
    }
