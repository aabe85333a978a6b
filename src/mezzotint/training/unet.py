"""Training the U-Net on cached latents and cached text: from nothing, or from the weights of another run.

Latents are cached as moments of several slightly displaced views of each picture, and sampled anew every time. Text is
cached as the tower's states for every caption. Null is the empty string, as in Stable Diffusion 1 and 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mezzotint.data.cache import cached, digest_of
from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet
from mezzotint.diffusion.guidance import guided
from mezzotint.diffusion.loss import snr_weight, squared_error
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, x0_from
from mezzotint.diffusion.samplers import ddim
from mezzotint.diffusion.sampling import Row, staged
from mezzotint.diffusion.spacing import spaced
from mezzotint.errors import ConfigError
from mezzotint.models.clip import TextConfig, TextTower
from mezzotint.models.unet import Conditioning, UNet, UNetConfig, initialise
from mezzotint.models.vae import LOG_VARIANCE_RANGE, AutoencoderKL, VAEConfig
from mezzotint.prompts.tokenizer import from_folder
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.network import read_config, read_weights, write_network
from mezzotint.training.part import Batch, Inputs, Loss
from mezzotint.training.samples import as_image, displaced, read_split, sheet_of
from mezzotint.training.step import DiffusionSettings, examples

CHUNK = 64  # pictures or texts at once without gradients
VALIDATED = 128  # pictures of each side that validation looks at
SHEET_COLUMNS = 6
SHEET_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetSettings:
    """The network, its objective, and how the sheet is sampled. `views`: displaced copies of each picture."""

    model: UNetConfig
    diffusion: DiffusionSettings
    views: int = 4
    sheet_guidance: float = 3.0


class UNetPart:
    """A `UNet` with frozen autoencoder and text tower."""

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        self.seed, self.size = config.seed, config.data.resolution
        self.settings = parse(UNetSettings, config.settings, "recipe.settings")
        self.schedule = self.settings.diffusion.schedule()
        self.prompts = config.validation_prompts
        self.autoencoder = read_autoencoder(inputs.run("autoencoder"))
        self.pictures, held = read_split(inputs, config.data)
        if config.data.by:
            concepts = {picture.columns[config.data.by] for picture in self.pictures.pictures}
            held = PictureSet(tuple(p for p in held.pictures if p.columns[config.data.by] in concepts))
        self.count, self.groups = len(self.pictures), None
        if not len(held):
            raise ConfigError("data: no held-out picture shows one of the trained concepts")
        self.held = PictureSet(held.pictures[:VALIDATED])
        self._encode_pictures(inputs.cache)
        self._encode_texts(inputs)
        unet = UNet(self.settings.model)
        if "start" in inputs.needs:
            read_weights(inputs.run("start"), "unet", unet)
        else:
            initialise(unet, keyed(self.seed, "weights"))
        self.players: dict[str, nn.Module] = {"unet": unet}

    def _encode_pictures(self, cache: Path) -> None:
        """Moments of every view of the training pictures, and of the held-out ones as they are."""
        views = self.settings.views
        weights = digest_of(self.autoencoder)

        def moments(pictures: PictureSet, rows: range, copies: int) -> Tensor:
            parts: list[Tensor] = []
            for start in range(rows.start, rows.stop, CHUNK):
                chosen = range(start, min(start + CHUNK, rows.stop))
                pixels = pictures.pixels([row // copies for row in chosen], self.size)
                if copies > 1:
                    keys = [pictures.pictures[row // copies].key for row in chosen]
                    generators = [keyed("view", k, row % copies) for k, row in zip(keys, chosen, strict=True)]
                    pixels = displaced(pixels, generators, flips=False)
                parts.append(self.autoencoder.moments(as_image(pixels)))
            return torch.cat(parts)

        def of(pictures: PictureSet, copies: int) -> Tensor:
            said = {
                "what": "latents", "version": 1, "pictures": pictures.fingerprint(), "size": self.size, "views": copies,
                "autoencoder": weights,
            }  # fmt: skip
            with torch.no_grad():
                return cached(cache, said, copies * len(pictures), lambda rows: moments(pictures, rows, copies))

        found = of(self.pictures, views)
        self.moments = found.view(-1, views, *found.shape[1:])  # [pictures views 2c h w]
        self.held_moments = of(self.held, 1)

    def _encode_texts(self, inputs: Inputs) -> None:
        """States of the text tower for every caption, for the prompts of the sheet and for the empty text."""
        folder = inputs.run("clip")
        tower = TextTower(read_config(folder, "text", TextConfig))
        read_weights(folder, "text", tower)
        tokenizer = from_folder(folder / "tokenizer")
        said = [caption for p in self.pictures.pictures + self.held.pictures for caption in p.captions]
        texts = ["", *sorted({*said, *self.prompts} - {""})]
        self.text_row = {text: row for row, text in enumerate(texts)}

        def states(rows: range) -> Tensor:
            parts: list[Tensor] = []
            for start in range(rows.start, rows.stop, CHUNK):
                ids = torch.tensor([tokenizer.chunk(text) for text in texts[start : min(start + CHUNK, rows.stop)]])
                parts.append(tower.final_norm(tower(ids).states[-1]).to(torch.bfloat16))
            return torch.cat(parts)

        depends_on = {
            "what": "texts", "version": 1, "texts": texts, "tower": digest_of(tower),
            "vocabulary": (folder / "tokenizer" / "vocab.json").read_text("utf-8"),
        }  # fmt: skip
        with torch.no_grad():
            self.texts = cached(inputs.cache, depends_on, len(texts), states)  # [texts n d]

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        """Weighted squared error of the objective."""
        draws = [keyed(self.seed, "pick", position) for position in batch.positions]
        views = [int(torch.randint(self.settings.views, (), generator=draw)) for draw in draws]
        latent = sampled(self.moments[batch.samples, views], draws)
        listed = [self.pictures.pictures[sample].captions for sample in batch.samples]
        said = [
            captions[int(torch.randint(len(captions), (), generator=d))]
            for captions, d in zip(listed, draws, strict=True)
        ]
        return Loss(self._error(networks, latent, said, batch, self.seed), {})

    def _error(
        self, networks: Mapping[str, nn.Module], latent: Tensor, said: Sequence[str], batch: Batch, seed: int
    ) -> Float[Tensor, ""]:
        diffusion = self.settings.diffusion
        shown = examples(diffusion, self.schedule, latent, batch, seed)
        rows = [0 if drop else self.text_row[text] for text, drop in zip(said, map(bool, shown.dropped), strict=True)]
        output = self._output(networks, shown.x, shown.t.float(), rows)
        weight = snr_weight(diffusion.prediction_type, self.schedule, shown.t, diffusion.snr_gamma)
        return squared_error(output, shown.wanted, weight).mean()

    def _output(self, networks: Mapping[str, nn.Module], x: Tensor, t: Tensor, rows: Sequence[int]) -> Tensor:
        network = unet_of(networks)
        dtype = network.conv_in.weight.dtype
        context = self.texts[list(rows)].to(dtype)
        return network(x.to(dtype), t, network.prepare(Conditioning(context)))

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss, at the same noise and evenly spread timesteps every time, on held-out and on training pictures."""
        both = {
            "loss": (self.held_moments, self.held),
            "loss_on_training": (self.moments[:VALIDATED, 0], PictureSet(self.pictures.pictures[:VALIDATED])),
        }
        measured: dict[str, float] = {}
        for name, (moments, pictures) in both.items():
            latent, total = moments.chunk(2, dim=1)[0], 0.0
            for start in range(0, len(pictures), CHUNK):
                part = range(start, min(start + CHUNK, len(pictures)))
                said = [pictures.pictures[i].captions[0] for i in part]
                batch = Batch(0, part, list(part), len(pictures))
                total += len(part) * float(self._error(networks, latent[part.start : part.stop], said, batch, -1))
            measured[name] = total / len(pictures)
        return measured

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        """The recipe's prompts, always from the same noise, guided, DDIM."""
        if not self.prompts:
            return None
        levels = spaced("trailing", self.schedule, SHEET_STEPS)
        shape = self.held_moments.chunk(2, dim=1)[0].shape[1:]
        drawn: list[Tensor] = []
        for prompt in self.prompts:
            x = levels[0].sigma * torch.randn(1, *shape, generator=keyed("sheet", prompt))
            stage = guided(self.text_row[prompt], 0, self.settings.sheet_guidance)
            rows = staged(ddim(x, levels, noise=lambda a, b: torch.zeros(()), schedule=self.schedule), stage)
            asked = next(rows)
            try:
                while True:
                    asked = rows.send([self._x0(networks, row) for row in asked])
            except StopIteration as finished:
                drawn.append(finished.value)
        images = torch.cat([self.autoencoder.decode(latent) for latent in drawn])
        return sheet_of(torch.split(images, SHEET_COLUMNS)) if len(images) % SHEET_COLUMNS == 0 else sheet_of([images])

    def _x0(self, networks: Mapping[str, nn.Module], row: Row) -> Tensor:
        scalings = PARAMETERISATIONS[self.settings.diffusion.prediction_type]
        assert isinstance(row.conditioning, int)
        x = row.x * scalings(row.sigma).c_in
        output = self._output(networks, x, torch.tensor([row.t]), [row.conditioning])
        return x0_from(output.float(), row.x, row.sigma, scalings)

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """The U-Net, and its objective as data."""
        write_network(folder, "unet", unet_of(networks), self.settings.model)


def unet_of(networks: Mapping[str, nn.Module]) -> UNet:
    """The U-Net among the players."""
    network = networks["unet"]
    assert isinstance(network, UNet)
    return network


def read_autoencoder(folder: Path) -> AutoencoderKL:
    """The exported autoencoder of a run."""
    network = AutoencoderKL(read_config(folder, "autoencoder", VAEConfig))
    read_weights(folder, "autoencoder", network)
    return network


def sampled(moments: Float[Tensor, "b c2 h w"], generators: Sequence[torch.Generator]) -> Float[Tensor, "b c h w"]:
    """Latents drawn from their Gaussians."""
    mean, log_variance = moments.chunk(2, dim=1)
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
    return mean + (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp() * noise
