"""Training CLIP: pictures and captions of one batch tell each other apart.

A caption that is also true of another picture of the batch ("a red apple" of every red apple) is no wrong answer there:
such pairs are left out of the comparison. Same concept, other style, stays in: that is what teaches style.

Source: Radford et al. 2021, arXiv:2103.00020.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet
from mezzotint.errors import ConfigError
from mezzotint.models.clip import CLIP, ImageConfig, TextConfig, normalised
from mezzotint.models.unet import initialise
from mezzotint.prompts.encode import padded_ids
from mezzotint.prompts.tokenizer import from_folder
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.network import write_network
from mezzotint.training.part import Batch, Inputs, Loss
from mezzotint.training.samples import displaced, read_split
from mezzotint.training.vocabulary import vocabulary_folder

MAX_LOG_SCALE = math.log(100)
TRIES = 5
CHUNK = 128  # pictures at once without gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """The towers. `sees_held_out`: an evaluator that judges pictures should know all of them."""

    text: TextConfig
    image: ImageConfig
    sees_held_out: bool = False


class ClipPart:
    """A `CLIP` and its vocabulary."""

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        self.seed, self.size = config.seed, config.data.resolution
        self.settings = parse(ClipSettings, config.settings, "recipe.settings")
        if self.settings.image.size != self.size:
            raise ConfigError(
                f"settings.image.size {self.settings.image.size} → {self.size} (data.resolution) expected"
            )
        train, self.held = read_split(inputs, config.data)
        self.pictures = PictureSet(train.pictures + self.held.pictures) if self.settings.sees_held_out else train
        self.count = len(self.pictures)
        group = config.data.group
        self.groups = [p.columns[group] for p in self.pictures.pictures] if group else None
        captions = [caption for picture in train.pictures for caption in picture.captions]
        self.vocabulary = vocabulary_folder(captions, self.settings.text.vocabulary, inputs.cache)
        self.tokenizer = from_folder(self.vocabulary)
        self._check_tokens()
        clip = CLIP(self.settings.text, self.settings.image)
        initialise_clip(clip, keyed(self.seed, "weights"))
        self.players: dict[str, nn.Module] = {"clip": clip}

    def _check_tokens(self) -> None:
        text, tokenizer = self.settings.text, self.tokenizer
        found = (tokenizer.engine.get_vocab_size(), tokenizer.bos, tokenizer.eos)
        if found != (text.vocabulary, text.bos, text.eos):
            raise ConfigError(
                f"settings.text: vocabulary, bos, eos {(text.vocabulary, text.bos, text.eos)} → "
                f"{found} learnt from the captions"
            )

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        """Mean of both directions' cross-entropies."""
        network = clip_of(networks)
        generators = [keyed(self.seed, "view", position) for position in batch.positions]
        image = displaced(self.pictures.pixels(batch.samples, self.size), generators, flips=False)
        said = [self.said(sample, position) for sample, position in zip(batch.samples, batch.positions, strict=True)]
        images, texts = network(normalised(image).to(network.logit_scale.dtype), padded_ids(self.tokenizer, said))
        known = [frozenset(self.pictures.pictures[sample].captions) for sample in batch.samples]
        logits = images.float() @ texts.float().T * network.logit_scale.float().clamp(max=MAX_LOG_SCALE).exp()
        total, hits = contrastive(logits, also_true(known, said))
        return Loss(total, {"hits": hits, "scale": network.logit_scale.exp()})

    def said(self, sample: int, position: int) -> str:
        """One of the picture's captions."""
        captions = self.pictures.pictures[sample].captions
        return captions[int(torch.randint(len(captions), (), generator=keyed(self.seed, "caption", position)))]

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """Share of held-out captions whose own picture is the nearest, or among the nearest 5, of all held out."""
        network = clip_of(networks)
        dtype = network.logit_scale.dtype
        pixels = self.held.pixels(range(len(self.held)), self.size)
        ids = padded_ids(self.tokenizer, [picture.captions[0] for picture in self.held.pictures])
        images = torch.cat(
            [network.image(normalised(chunk).to(dtype)).embedding for chunk in torch.split(pixels, CHUNK)]
        )
        texts = torch.cat([network.text(chunk).pooled for chunk in torch.split(ids, CHUNK)])
        scores = F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T
        rank = (scores > scores.diagonal()[:, None]).sum(1)
        return {"hit@1": float((rank < 1).float().mean()), f"hit@{TRIES}": float((rank < TRIES).float().mean())}

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        """Nothing to show."""
        return None

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """The towers, the temperature with the image tower's pair, and the tokenizer."""
        network = clip_of(networks)
        write_network(folder, "clip", network, self.settings)
        write_network(folder, "text", network.text, self.settings.text)
        shutil.copytree(self.vocabulary, folder / "tokenizer", dirs_exist_ok=True)


def clip_of(networks: Mapping[str, nn.Module]) -> CLIP:
    """The CLIP among the players."""
    network = networks["clip"]
    assert isinstance(network, CLIP)
    return network


def initialise_clip(clip: CLIP, generator: torch.Generator) -> None:
    """Weights for training from scratch; embeddings with the deviations of OpenAI's code."""
    initialise(clip, generator)
    nn.init.normal_(clip.text.token_embedding.weight, std=0.02, generator=generator)
    nn.init.normal_(clip.text.position_embedding.weight, std=0.01, generator=generator)
    width = clip.image.config.width
    for weight in (clip.image.class_embedding, clip.image.position_embedding.weight):
        nn.init.normal_(weight, std=width**-0.5, generator=generator)


def also_true(known: Sequence[frozenset[str]], said: Sequence[str]) -> Bool[Tensor, "b b"]:
    """[i, j]: what was said of picture j is a caption of picture i, too, and i is not j."""
    rows = [[i != j and caption in captions for j, caption in enumerate(said)] for i, captions in enumerate(known)]
    return torch.tensor(rows)


def contrastive(logits: Float[Tensor, "b b"], ignored: Bool[Tensor, "b b"]) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy of both directions, share of texts that find their picture), ignored pairs left out."""
    logits = logits.masked_fill(ignored, float("-inf"))
    wanted = torch.arange(len(logits))
    total = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
    return total, (logits.argmax(0) == wanted).float().mean()
