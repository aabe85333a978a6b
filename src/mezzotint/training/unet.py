"""Training the U-Net on cached latents and cached conditioning: from nothing, or from the weights of a run or a model.

Latents are cached as moments of several views of each picture, and sampled anew every time. What the network is told
besides follows from its preset: text of one or two towers, sizes (XL), a noisy picture embedding (unCLIP).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mezzotint.checkpoints.component import text_roles
from mezzotint.checkpoints.files import write_json, write_state
from mezzotint.data.buckets import BucketRule
from mezzotint.data.order import keyed
from mezzotint.data.pictures import PictureSet
from mezzotint.diffusion.guidance import guided
from mezzotint.diffusion.loss import snr_weight, squared_error
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, x0_from
from mezzotint.diffusion.samplers import ddim
from mezzotint.diffusion.sampling import Row, staged
from mezzotint.diffusion.spacing import spaced
from mezzotint.errors import ConfigError, unknown
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet, UNetConfig, initialise
from mezzotint.prompts.encode import LAST, RULES, TowerRule
from mezzotint.training.conditioning import (
    Embedded,
    Text,
    drops,
    fitting,
    neutral_sizes,
    read_embeddings,
    read_texts,
    size_count,
    sizes_of,
    vector_of,
)
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.inherited import TOWERS, read_autoencoder, read_image_tower, read_reader, read_start
from mezzotint.training.network import write_network
from mezzotint.training.part import Batch, Inputs, Loss
from mezzotint.training.samples import read_split, sheet_of
from mezzotint.training.step import DiffusionSettings, examples
from mezzotint.training.tiny import shrunk
from mezzotint.training.views import Latents, check_resolution, read_latents, sampled, square

VALIDATED = 128  # pictures of each side that validation looks at
SHEET_COLUMNS = 6
SHEET_STEPS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetSettings:
    """The network (a preset of the family, or a config of its own), its objective, and how the sheet is sampled.

    `views`: copies of each picture, moved or cut a little differently. `null_text`: what dropped text becomes; `drops`:
    whether several towers lose it together. `scale: tiny` shrinks the preset's networks.
    """

    diffusion: DiffusionSettings
    model: UNetConfig | None = None
    preset: str = ""
    scale: Literal["full", "tiny"] = "full"
    null_text: Literal["empty", "zeros"] = "empty"
    drops: Literal["together", "each"] = "together"
    image_drop: float = 0.0  # share of picture embeddings that become zeros
    gradient_checkpointing: bool = False
    views: int = 4
    sheet_guidance: float = 3.0

    def __post_init__(self) -> None:
        if (self.model is None) == (self.preset == ""):
            raise ConfigError("settings: exactly one of model and preset says what is trained")
        if self.preset and self.preset not in PRESETS:
            raise ConfigError(unknown("preset", self.preset, PRESETS))
        if self.model is not None and self.model.vector:
            raise ConfigError("settings.model.vector: only presets say what a vector means; name one instead")

    @property
    def unet(self) -> UNetConfig:
        """The config of the network."""
        if self.model is not None:
            return self.model
        preset = PRESETS[self.preset]
        return shrunk(preset).unet if self.scale == "tiny" else preset.unet

    @property
    def rules(self) -> dict[str, TowerRule]:
        """How each text tower is read, by its role in `needs`."""
        if not self.preset:
            return {"clip": LAST}
        roles = {component: role for role, component in TOWERS.items()}
        names = [roles[component] for component in text_roles(PRESETS[self.preset].text)]
        return dict(zip(names, RULES[self.preset], strict=True))

    @property
    def is_told_picture(self) -> bool:
        """Whether the network is told a picture embedding."""
        return bool(self.preset) and PRESETS[self.preset].image is not None


class Told(NamedTuple):
    """What samples are told: a caption each, and sizes or picture embeddings if the network is told such."""

    said: Sequence[str]
    sizes: Float[Tensor, "b k"] | None
    embedding: Float[Tensor, "b p"] | None


class UNetPart:
    """A `UNet` with frozen autoencoder and towers."""

    groups: list[str] | None = None

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        self.seed, self.size = config.seed, config.data.resolution
        self.settings = parse(UNetSettings, config.settings, "recipe.settings")
        self.schedule = self.settings.diffusion.schedule()
        self.prompts = config.validation_prompts
        self.autoencoder = read_autoencoder(inputs.run("autoencoder"))
        check_resolution(self.size, self.autoencoder.factor, config.data.bucket_step)
        unet = self._unet(inputs)
        unet.is_checkpointed = self.settings.gradient_checkpointing
        self.players: dict[str, nn.Module] = {"unet": unet}
        train, held = read_split(inputs, config.data)
        if config.data.by:
            concepts = {picture.columns[config.data.by] for picture in train.pictures}
            held = PictureSet(tuple(p for p in held.pictures if p.columns[config.data.by] in concepts))
        if not len(held):
            raise ConfigError("data: no held-out picture shows one of the trained concepts")
        self._encode_texts(inputs, train, held := PictureSet(held.pictures[:VALIDATED]))
        rule = BucketRule(resolution=self.size, step=config.data.bucket_step) if config.data.bucket_step else None
        rule = rule or (square(self.size) if self.size_count else None)
        self.train = read_latents(train, self.autoencoder, self.size, self.settings.views, inputs.cache, rule)
        self.held = read_latents(held, self.autoencoder, self.size, 1, inputs.cache, rule)
        self.count, self.buckets = len(self.train.pictures), self.train.buckets
        self.embedded = self._embedded(inputs)

    def _unet(self, inputs: Inputs) -> UNet:
        config, weights = self.settings.unet, keyed(self.seed, "weights")
        if "start" in inputs.needs:
            return read_start(inputs.run("start"), config, self.settings.preset or "this recipe", weights)
        unet = UNet(config)
        initialise(unet, weights)
        return unet

    def _encode_texts(self, inputs: Inputs, train: PictureSet, held: PictureSet) -> None:
        """States of the text towers for every caption, for the prompts of the sheet and for the empty text."""
        rules = self.settings.rules
        readers = [read_reader(inputs.run(role), role) for role in rules]
        widths = [reader.tower.config.width for reader in readers]
        if sum(widths) != self.settings.unet.context:
            raise ConfigError(
                f"needs.{', needs.'.join(rules)}: text towers of width {' + '.join(map(str, widths))} → "
                f"{self.settings.unet.context} (the U-Net's context) expected"
            )
        fitted = [fitting(rule, reader) for rule, reader in zip(rules.values(), readers, strict=True)]
        said = [caption for p in train.pictures + held.pictures for caption in p.captions]
        self.texts = read_texts(readers, fitted, [*said, *self.prompts], inputs.cache)
        self.null = self.texts.zeros if self.settings.null_text == "zeros" else 0
        pooled, vector = self.texts.pooled, self.settings.unet.vector
        self.size_count = 0 if pooled is None else size_count(vector, pooled.shape[1])

    def _embedded(self, inputs: Inputs) -> Embedded | None:
        if not self.settings.is_told_picture:
            return None
        tower, known = read_image_tower(inputs.run("image"))
        if 2 * tower.config.projection != self.settings.unet.vector:
            raise ConfigError(
                f"needs.image: embeddings of width {tower.config.projection} → {self.settings.unet.vector // 2} "
                "(half the U-Net's vector) expected"
            )
        return read_embeddings(tower, known, self.train.pictures, self.held.pictures, self.size, inputs.cache)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        """Weighted squared error of the objective."""
        latent, told = self.drawn(batch)
        return Loss(self._error(networks, latent, told, batch, self.seed), {})

    def drawn(self, batch: Batch) -> tuple[Float[Tensor, "b c h w"], Told]:
        """Latents of a batch, each from one view of its picture, and what the network is told of them."""
        draws = [keyed(self.seed, "pick", position) for position in batch.positions]
        views = [int(torch.randint(self.settings.views, (), generator=draw)) for draw in draws]
        moments = [self.train.moments[sample][view] for sample, view in zip(batch.samples, views, strict=True)]
        latent = sampled(torch.stack(moments), draws)
        listed = [self.train.pictures.pictures[sample].captions for sample in batch.samples]
        said = [
            captions[int(torch.randint(len(captions), (), generator=d))]
            for captions, d in zip(listed, draws, strict=True)
        ]
        embedding = None if self.embedded is None else self.embedded.train[batch.samples]
        return latent, Told(said, self._sizes(self.train, batch.samples, views), embedding)

    def _sizes(self, latents: Latents, samples: Sequence[int], views: Sequence[int]) -> Tensor | None:
        if not self.size_count or latents.views is None:
            return None
        rows = [
            sizes_of(latents.pictures.pictures[sample], [latents.views[sample][view]], self.size_count)
            for sample, view in zip(samples, views, strict=True)
        ]
        return torch.cat(rows)

    def _error(
        self, networks: Mapping[str, nn.Module], latent: Tensor, told: Told, batch: Batch, seed: int
    ) -> Float[Tensor, ""]:
        diffusion = self.settings.diffusion
        shown = examples(diffusion, self.schedule, latent, batch, seed)
        is_each, share = self.settings.drops == "each", diffusion.proportion_empty_prompts
        dropped = drops(batch, seed, share, len(self.texts.context), shown.dropped, is_each=is_each)
        rows = [
            [self.null if drop else self.texts.row[text] for text, drop in zip(told.said, tower, strict=True)]
            for tower in dropped
        ]
        picture = None
        if self.embedded is not None and told.embedding is not None:
            picture = self.embedded.vectors(told.embedding, batch, seed, self.settings.image_drop)
        text = self.texts.told(rows, unet_of(networks).conv_in.weight.dtype)
        output = self._output(networks, shown.x, shown.t.float(), text, vector_of(text.pooled, told.sizes, picture))
        weight = snr_weight(diffusion.prediction_type, self.schedule, shown.t, diffusion.snr_gamma)
        return squared_error(output, shown.wanted, weight).mean()

    def _output(
        self, networks: Mapping[str, nn.Module], x: Tensor, t: Tensor, text: Text, vector: Tensor | None
    ) -> Tensor:
        network = unet_of(networks)
        dtype = network.conv_in.weight.dtype
        vector = None if vector is None else vector.to(dtype)
        return network(x.to(dtype), t, network.prepare(Conditioning(text.context, vector)))

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """The loss, at the same noise and evenly spread timesteps every time, on held-out and on training pictures."""
        embedded = self.embedded
        both = {
            "loss": (self.held, None if embedded is None else embedded.held),
            "loss_on_training": (self.train, None if embedded is None else embedded.train),
        }
        measured: dict[str, float] = {}
        for name, (latents, embedding) in both.items():
            count, total = min(VALIDATED, len(latents.pictures)), 0.0
            for part in latents.chunks(count):
                latent = torch.stack([latents.moments[i][0].chunk(2)[0] for i in part])
                said = [latents.pictures.pictures[i].captions[0] for i in part]
                sizes = self._sizes(latents, part, [0] * len(part))
                told = Told(said, sizes, None if embedding is None else embedding[part.start : part.stop])
                batch = Batch(0, part, list(part), count)
                total += len(part) * float(self._error(networks, latent, told, batch, -1))
            measured[name] = total / count
        return measured

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        """The recipe's prompts, always from the same noise, guided, DDIM; where sizes or pictures are told, neutral."""
        if not self.prompts:
            return None
        levels = spaced("trailing", self.schedule, SHEET_STEPS)
        side = self.size // self.autoencoder.factor
        drawn: list[Tensor] = []
        for prompt in self.prompts:
            shape = (1, self.settings.unet.out_channels, side, side)
            x = levels[0].sigma * torch.randn(shape, generator=keyed("sheet", prompt))
            stage = guided(self.texts.row[prompt], self.null, self.settings.sheet_guidance)
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
        text = self.texts.told([[row.conditioning]] * len(self.texts.context), unet_of(networks).conv_in.weight.dtype)
        sizes = neutral_sizes(self.size, self.size_count) if self.size_count else None
        picture = None if self.embedded is None else torch.zeros(1, self.settings.unet.vector)
        output = self._output(networks, x, torch.tensor([row.t]), text, vector_of(text.pooled, sizes, picture))
        return x0_from(output.float(), row.x, row.sigma, scalings)

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """The U-Net, its objective and null as data, and the statistics that picture embeddings are noised in."""
        write_network(folder, "unet", unet_of(networks), self.settings.unet)
        told = {"preset": self.settings.preset, "null_text": self.settings.null_text, "resolution": self.size}
        write_json(folder / "objective.json", {**told, **asdict(self.settings.diffusion)})
        if self.embedded is not None:
            write_state(folder / "image_noise.safetensors", self.embedded.statistics._asdict())


def unet_of(networks: Mapping[str, nn.Module]) -> UNet:
    """The U-Net among the players."""
    network = networks["unet"]
    assert isinstance(network, UNet)
    return network
