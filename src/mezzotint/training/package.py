"""Finished runs as files to give away: a network that other runs can build on, or a whole model as a diffusers folder.

Weights are float16. `card.json` stands beside every network: steps, held-out measures, recipe, and the pictures that it
learnt from with their licences; a model's README.md is written from the cards of its three networks.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml

from mezzotint.checkpoints.checkpoint import Checkpoint, Component, read, save_folder
from mezzotint.checkpoints.files import read_header, read_json, read_state, sha256_of, write_json, write_state
from mezzotint.checkpoints.scheduler import SchedulerConfig
from mezzotint.checkpoints.translate import Config
from mezzotint.errors import ConfigError
from mezzotint.models.clip import TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from mezzotint.pipeline.preview import fit_preview, stated
from mezzotint.storage import atomic
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.network import read_config
from mezzotint.training.part import CARD, Inputs
from mezzotint.training.samples import read_split
from mezzotint.training.state import MANIFEST, complete
from mezzotint.training.unet import UNetSettings

NETWORKS = {"autoencoder": "autoencoder", "clip": "text", "unet": "unet"}  # part -> what others need of its export
COMPONENTS = {"autoencoder": "vae", "clip": "text_encoder"}  # role in `needs` -> folder of a model
TOKENIZER, MODEL_INDEX = "tokenizer", "model_index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where pictures come from: under which licence, and how many."""

    licence: str
    pictures: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a trained network is. `data_card` is the SHA-256 of the picture set's card.json, if it has one."""

    part: str
    parameters: int
    steps: int
    samples: int
    measures: Mapping[str, float]
    pictures: int
    sources: Mapping[str, Source]
    data_card: str | None
    recipe: Mapping[str, Any]  # Any: the settings of a recipe, as YAML has them


def pack_network(stages: Sequence[TrainConfig], run: Path, data: Path, out: Path) -> Card:
    """Write a run's network, with its vocabulary if it has one, so that `needs` of a recipe can name the folder.

    Raises: ConfigError if the run is of another recipe or has exported nothing.
    """
    export, card = run / "export", card_of(stages, run, data)
    name = network_of(stages[-1])
    write_state(out / f"{name}.safetensors", read_state(export / f"{name}.safetensors"), dtype=torch.float16)
    write_json(out / f"{name}.json", read_json(export / f"{name}.json"))
    if (export / TOKENIZER).is_dir():
        shutil.copytree(export / TOKENIZER, out / TOKENIZER, dirs_exist_ok=True)
    write_json(out / CARD, asdict(card))
    return card


def network_of(config: TrainConfig) -> str:
    """Which exported network others build on: of a CLIP the text tower, but of one that judges pictures all of it."""
    return "clip" if config.settings.get("sees_held_out") else NETWORKS[config.part]


def pack_model(
    stages: Sequence[TrainConfig], run: Path, inputs: Inputs, out: Path, *, measured: str = ""
) -> tuple[Card, ...]:
    """Write the U-Net of a run, with the packaged networks that it was trained on, as a diffusers folder; the cards.

    `measured` is Markdown for README.md: what was measured of the model.

    Raises: ConfigError if the run is of another recipe, has exported nothing, or one of its needs is not packaged;
        CheckpointError if `out` has content.
    """
    config = stages[-1]
    built = {role: _built_on(inputs.run(role), role) for role in COMPONENTS}
    vae, text = built["autoencoder"].component, built["clip"].component
    cards = {
        vae.role: built["autoencoder"].card,
        text.role: built["clip"].card,
        "unet": card_of(stages, run, inputs.data),
    }
    latents = config.data.resolution // cast("VAEConfig", vae.config).factor  # cast: the role says which config
    scheduler = scheduler_of(config)
    autoencoder = AutoencoderKL(cast("VAEConfig", vae.config))  # cast: as above
    autoencoder.load_state_dict(vae.state)
    checkpoint = Checkpoint(
        preset="sd15",
        objective=scheduler.objective,
        unet=_component("unet", run / "export", "unet", UNetConfig),
        vae=vae,
        text=(text,),
        scheduler=scheduler,
        tokenizers=(built["clip"].place / TOKENIZER,),
        info={
            "null": {"text_encoder": "empty"},  # the text that guidance was trained to leave out
            "preview": stated(fit_preview(autoencoder)),
            "data": {card.part: card.data_card for card in cards.values()},
            "recipe": {card.part: card.recipe for card in cards.values()},
            "hints": {"unet": {"sample_size": latents}, "vae": {"sample_size": config.data.resolution}},
        },
    )
    save_folder(checkpoint, out, dtype=torch.float16)
    for component, card in cards.items():
        write_json(out / component / CARD, asdict(card))
    with atomic(out / "README.md") as file:
        file.write(readme(config, [*cards.values()], out.name, measured).encode())
    return tuple(cards.values())


class _Built(NamedTuple):
    """A network that a U-Net was trained on."""

    place: Path
    card: Card
    component: Component


def _built_on(place: Path, role: str) -> _Built:
    """What a need of a recipe is: a packaged network, or the component of a model that was packaged here."""
    component, is_model = COMPONENTS[role], (place / MODEL_INDEX).is_file()
    file = (place / component if is_model else place) / CARD
    if not file.is_file():
        raise ConfigError(f"needs.{role}: {place} has no {CARD}; package that run first and name the folder")
    kind = VAEConfig if role == "autoencoder" else TextConfig
    found = read(place).components[component] if is_model else _component(component, place, NETWORKS[role], kind)
    return _Built(place, parse(Card, read_json(file), str(file)), found)


def card_of(stages: Sequence[TrainConfig], run: Path, data: Path) -> Card:
    """What a run's exported network is, from its log, its recipe and its pictures; steps and samples of all stages.

    Raises: ConfigError if the run is of another recipe or has exported nothing.
    """
    *before, config = stages
    weights, saved = run / "export" / f"{network_of(config)}.safetensors", complete(run / "checkpoints")
    if not saved or not weights.is_file():
        raise ConfigError(f"{run}: no exported networks; train the {config.part} first")
    if read_json(saved[-1] / MANIFEST)["trajectory"] != config.trajectory():
        raise ConfigError(f"{run} was trained by another recipe; name the one that it was trained by, with its changes")
    records: list[dict[str, Any]] = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    last = next(record for record in reversed(records) if record["what"] == "held-out")  # exported right after it
    average = f"@{config.ema[0].name}" if config.ema else ""
    measures = {name.removesuffix(average): value for name, value in last.items() if name.endswith(average)}
    pictures, _ = read_split(Inputs(data=data, needs={}, cache=run), config.data)
    origins = Counter(
        (p.columns.get("source", "").partition("#")[0], p.columns.get("licence", "")) for p in pictures.pictures
    )
    return Card(
        part=config.part,
        parameters=sum(math.prod(info.shape) for info in read_header(weights).tensors.values()),
        steps=last["step"] + sum(stage.max_train_steps for stage in before),
        samples=last["step"] * config.batch + sum(stage.max_train_steps * stage.batch for stage in before),
        measures={name: round(value, 4) for name, value in measures.items() if isinstance(value, float)},
        pictures=len(pictures),
        sources={
            name or "not said": Source(licence=licence or "not said", pictures=n)
            for (name, licence), n in sorted(origins.items())
        },
        data_card=sha256_of(data / "card.json") if (data / "card.json").is_file() else None,
        recipe={"stages": [said(stage) for stage in stages]} if before else said(config),
    )


def said(value: Any) -> Any:  # Any, cast: settings and what YAML makes of them
    """Settings as plain data, without those that have their default value."""
    if is_dataclass(value):
        defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(value)}
        return {
            name: said(getattr(value, name)) for name, default in defaults.items() if getattr(value, name) != default
        }
    if isinstance(value, Mapping):
        return {name: said(item) for name, item in cast("Mapping[str, Any]", value).items()}
    return [said(item) for item in cast("list[Any]", value)] if isinstance(value, tuple | list) else value


def scheduler_of(config: TrainConfig) -> SchedulerConfig:
    """The scheduler config of a trained U-Net: its schedule and objective; DDIM that starts at the noisiest step."""
    diffusion = parse(UNetSettings, config.settings, "recipe.settings").diffusion
    start, end = {"linear": (0.0001, 0.02)}.get(diffusion.beta_schedule, (0.00085, 0.012))
    return SchedulerConfig(
        name="DDIMScheduler",
        beta_start=start,
        beta_end=end,
        beta_schedule=diffusion.beta_schedule,
        prediction_type=diffusion.prediction_type,
        rescale_betas_zero_snr=diffusion.rescale_betas_zero_snr,
        timestep_spacing="trailing",
        steps_offset=1,  # means nothing when trailing; without it diffusers warns
        clip_sample=False,
    )


def readme(config: TrainConfig, cards: Sequence[Card], name: str, measured: str) -> str:
    """The model card: what it is, how to use it, what it learnt from and under which licences, and its recipes."""
    settings = parse(UNetSettings, config.settings, "recipe.settings")
    every = {source: entry.licence for card in cards for source, entry in card.sources.items()}
    counts = {source: [c.sources[source].pictures if source in c.sources else 0 for c in cards] for source in every}
    measures = [", ".join(f"{measure} {value:.4g}" for measure, value in card.measures.items()) for card in cards]
    return README.format(
        name=name,
        size=config.data.resolution,
        guidance=f"{settings.sheet_guidance:g}",
        prompts="\n".join(f"- {prompt}" for prompt in config.validation_prompts),
        networks=table(
            ["network", "parameters", "steps", "samples", "training pictures", "measured"],
            [
                [c.part, f"{c.parameters / 1e6:.1f} M", f"{c.steps:,}", f"{c.samples:,}", f"{c.pictures:,}", measured]
                for c, measured in zip(cards, measures, strict=True)
            ],
        ),
        sources=table(
            ["source", "licence", *(card.part for card in cards)],
            [[source, licence, *map(str, counts[source])] for source, licence in sorted(every.items())],
        ),
        measured=measured or "Nothing yet.",
        data_cards=", ".join(sorted({card.data_card for card in cards if card.data_card})) or "none",
        recipes="\n".join(f"```yaml\n{yaml.safe_dump(dict(c.recipe), sort_keys=False, width=110)}```" for c in cards),
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


README = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# {name}

A small text-to-image model of Stable Diffusion's kind for pictures of {size} x {size} pixels, trained from nothing by
mezzotint. It knows what its pictures show and nothing else.

```python
import mezzotint

system = mezzotint.load("{name}")
mezzotint.generate(system, prompt="…", guidance={guidance}).save("outputs")
```

diffusers makes the same picture: `StableDiffusionPipeline.from_pretrained("{name}", torch_dtype=torch.float32)`.

Prompts that it was watched with:

{prompts}

## Networks

{networks}

## Measured

{measured}

## Pictures

How many pictures of each source each network learnt from; mezzotint's THIRD_PARTY.md names the authors.

{sources}

SHA-256 of the set's card.json: {data_cards}

## Recipes

{recipes}
"""


def _component(role: str, folder: Path, name: str, kind: type[UNetConfig | VAEConfig | TextConfig]) -> Component:
    """An exported network; of a text tower without the projection, which Stable Diffusion 1 does not have."""
    config: Config = read_config(folder, name, kind)
    state = read_state(folder / f"{name}.safetensors")
    if isinstance(config, TextConfig):
        config = replace(config, projection=None)
        state = {key: tensor for key, tensor in state.items() if not key.startswith("projection.")}
    return Component(role=role, config=config, state=state, source=folder)
