"""The story of one picture: made as always, with somebody looking on, and told in eight sections."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple  # Any: JSON, and the fields of Request, which validates them

from PIL import Image

from mezzotint.explain.attention import FullMaps, Maps, Shape
from mezzotint.explain.blocks import MOST_DOTS, Block, Section, Telling, dots, three, uri
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
from mezzotint.kernels.autoencoder import finished
from mezzotint.pipeline.generate import Result, watched
from mezzotint.pipeline.making import Making
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
    scene, result = made(system, request, full_maps)
    return Told(finished(telling(scene)), result)


def made(system: "System", request: Request, full_maps: str | Path | None = None) -> tuple[Scene, Result]:
    """The first picture of a request, made under a watch, and its result as `generate` gives it.

    Raises: RequestError.
    """
    making, watching = looked_at(system, request)
    full = None if full_maps is None or watching.maps is None else FullMaps(Path(full_maps))
    if watching.maps is not None:
        watching.maps.full = full
    begun = perf_counter()
    running = watched(making)
    try:
        for _ in running:
            pass
    finally:
        running.close()
        if full is not None:
            full.close()
    result, ms = running.result, 1000 * (perf_counter() - begun)
    return Scene(making=making, watching=watching, image=result.images[0], ms=ms), result


def looked_at(system: "System", request: Request) -> tuple[Making, Watching]:
    """The first picture of a request, to be made by whoever asked for it, and what will have seen it.

    Raises: RequestError if the system cannot do what is asked.
    """
    request = request.model_copy(update={"count": 1})
    resolved = resolve(system, request)
    wanted, factor, steps = resolved.request, system.vae.factor, len(resolved.levels) - 1
    kept = frozenset(chosen(steps, FRAMES))
    maps = None
    if system.unet.config.context is not None:
        groups = read(wanted.prompt, system.tokenizers[0], system.text[0].config.positions).groups
        latent = Shape((wanted.height or 0) // factor, (wanted.width or 0) // factor)
        maps = Maps(groups=groups, latent=latent, steps=kept)
    watching = Watching(steps=kept, maps=maps, activations_at=steps // 2)
    return Making(system, request, resolved=resolved, watch=watching), watching


def telling(scene: Scene) -> Telling[Story]:
    """The story of a picture that was made under a watch."""
    system, request, watching = scene.system, scene.resolved.request, scene.watching
    first, found = tokens_section(system, request)
    numbers = numbers_section(system, request, found, scene.told)
    yield
    steps = yield from steps_section(scene)
    guidance = yield from guidance_section(scene)
    latent = yield from latent_section(scene)
    judged = yield from judged_section(scene)
    looking = ("looking on (only here)", 1000 * (watching.maps.seconds if watching.maps is not None else 0.0))
    tower = "text tower" if len(system.text) == 1 else "text towers"
    known = [(tower, numbers.ms or 0.0), ("U-Net", steps.ms or 0.0), ("decoder", latent.ms or 0.0)]
    rest = scene.ms - sum(ms for _, ms in [*known, looking])
    parts = [*known, ("everything else", max(0.0, rest)), looking]
    told = [first, numbers, noise_section(scene), schedule_section(scene), steps, guidance, latent]
    sections = [*told, *([judged] if judged is not None else []), code_section(scene, parts)]
    return Story(
        title=request.prompt or "a picture of nothing",
        subtitle="How this picture was made, from the words to the pixels",
        facts=[
            ("model", system.name), ("seed", str(request.seed)), ("steps", str(request.steps)),
            ("sampler", str(request.sampler)), ("guidance", f"{request.guidance:g}"),
            ("size", f"{request.width}x{request.height}"),
        ],
        sections=sections,
        image=scene.image,
        flow=_flow(scene, found),
    )  # fmt: skip


def _flow(scene: Scene, found: Read) -> Block:
    """What the drawing on top says of this picture."""
    request, context, first = scene.resolved.request, scene.told.context, scene.moments[0].query
    latent = scene.moments[-1].answer
    return {
        "tower": "text tower" if len(scene.system.text) == 1 else "text towers",
        "tokens": len(found.tokens),
        "slots": found.slots,
        "context": "" if context is None else f"{context.shape[1]} × {context.shape[2]} numbers",
        "seed": request.seed,
        "noise": uri(dots(three(first.x[0] / (1 + first.sigma**2) ** 0.5))),
        "steps": len(scene.resolved.levels) - 1,
        "guidance": request.guidance,
        "shape": " × ".join(map(str, latent.shape[1:])),
        "latent": uri(dots(three(latent[0]))),
        "picture": uri(scene.image, 2 * MOST_DOTS),
        "size": f"{request.width} × {request.height}",
    }
