"""Does the picture match the words? A CLIP that had no part in making it compares both, step by step.

The CLIP in this package was trained on 64-pixel icons; it is asked about models of that size only. For others the story
says that there is none.
"""

from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mezzotint.evaluation.accuracy import picture_features
from mezzotint.evaluation.clip_score import WEIGHT, cosines, read_texts
from mezzotint.evaluation.tower import place_of
from mezzotint.explain.blocks import Section, Telling, code_of, curves, line, matrix, picture, pictures
from mezzotint.explain.steps import Scene
from mezzotint.explain.watch import chosen
from mezzotint.models.clip import CLIP
from mezzotint.prompts.tokenizer import Tokenizer, from_folder
from mezzotint.training.clip import ClipSettings
from mezzotint.training.network import read_config, read_weights

SHOWN = 7  # pictures that are compared
WORDS = 8
OTHERS = ("a smiling face", "a green tree", "a yellow star")  # texts that are about something else


class Evaluator(NamedTuple):
    """The packaged CLIP that only judges."""

    clip: CLIP
    tokenizer: Tokenizer


def evaluator() -> Evaluator | None:
    """The packaged one, if this installation has it."""
    folder = place_of("evaluator")
    if not (folder / "clip.safetensors").exists():
        return None
    settings = read_config(folder, "clip", ClipSettings)
    clip = CLIP(settings.text, settings.image)
    read_weights(folder, "clip", clip)
    return Evaluator(clip.eval().requires_grad_(False), from_folder(folder / "tokenizer"))


def judged_section(scene: Scene) -> Telling[Section | None]:
    """Similarities of the estimates and of several texts; None where no evaluator suits the model."""
    judge = evaluator()
    side = None if judge is None else judge.clip.image.config.size
    if judge is None or scene.system.size != (side, side) or scene.image.size != (side, side):
        return None
    steps = sorted(scene.watching.moments)
    shown = [steps[i] for i in chosen(len(steps), SHOWN)]
    looks = yield from scene.looks(scene.watching.moments[step].answer for step in shown)
    looks.append(scene.image)
    begun = perf_counter()
    names = [f"step {step + 1}" for step in shown] + ["picture"]
    prompt = scene.resolved.request.prompt
    words = [word for word in dict.fromkeys(prompt.replace(",", " ").split()) if len(word) > 1]
    texts = list(dict.fromkeys([prompt, *words[:WORDS], *OTHERS]))
    features = picture_features(judge.clip, torch.cat([_pixels(look) for look in looks]))
    read = read_texts(judge.clip, judge.tokenizer, texts)
    alike = features @ read.features.T  # [pictures texts]
    score = WEIGHT * max(float(cosines(features[-1:], read, [prompt])), 0.0)
    ms = round(1000 * (perf_counter() - begun), 1)
    rise = [
        line(text, [(step + 1, float(alike[i, texts.index(text)])) for i, step in enumerate(shown)], has_dots=True)
        for text in (prompt, *OTHERS)
    ]
    high = max(0.05, float(alike.abs().max()))
    return Section(
        id="judged",
        title="Does it match the words?",
        lead="Another CLIP, which had no part in making this picture, turns pictures and texts into arrows; the "
        "more two arrows point the same way, the better they match. CLIP score of this picture and its prompt: "
        f"{score:.3f}, of at most {WEIGHT:g}. Texts about something else are there to compare with.",
        formula="CLIP score = w * max(cos(picture, text), 0),   w = 2.5",
        shapes=(f"pictures [{len(looks)} {features.shape[1]}]", f"texts [{len(texts)} {features.shape[1]}]"),
        ms=ms,
        code=(code_of(picture_features, "found =", 2), code_of(cosines, "own =", 2)),
        blocks=[
            pictures(
                [picture(look, name) for look, name in zip(looks, names, strict=True)], "What is compared", side=72
            ),
            matrix(names, texts, alike, "Similarity (cosine) of every picture with every text", low=-high, high=high),
            curves(rise, "How similarity changes while the picture forms", "step", "cosine"),
        ],
    )


def _pixels(image: Image.Image) -> UInt8[Tensor, "1 3 s s"]:
    return torch.as_tensor(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
