"""Evaluation while training goes on: networks are handed over at chosen steps, numbers come back when they are done.

The loop never waits for a number before its end. Whoever watches must keep what it was handed until the number has been
told, so that neither a crash nor an interruption loses one; the log holds each once, under the step that it belongs to.

    evaluation: {steps: 2000, prompts: icons, clip: evaluator}     in a recipe; the rest are settings of `evaluate`
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from mezzotint.checkpoints.checkpoint import Checkpoint, Component, read
from mezzotint.checkpoints.component import text_roles
from mezzotint.checkpoints.files import read_state
from mezzotint.checkpoints.save import save_folder
from mezzotint.checkpoints.translate import Config
from mezzotint.errors import ConfigError
from mezzotint.models.clip import TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.inherited import TOWERS, is_run
from mezzotint.training.network import read_config
from mezzotint.training.package import TOKENIZER, scheduler_of
from mezzotint.training.part import Inputs
from mezzotint.training.unet import UNetSettings


class Found(NamedTuple):
    """Numbers of the networks of a step."""

    step: int
    values: Mapping[str, float]


class Watcher(Protocol):
    """What the loop hands exported networks to."""

    def look(self, step: int, export: Path) -> None:
        """Take what is needed of a folder of exported networks, whose files will be replaced, and return at once."""
        ...

    def found(self) -> Sequence[Found]:
        """Numbers that are done, of any step; some may have been told before."""
        ...

    def wait(self, should_stop: Callable[[], bool]) -> None:
        """Return when nothing is left to do, or when it should stop; then what is left is for the next run."""
        ...


Watch = Callable[[TrainConfig, Inputs, Path], Watcher]
"""(recipe, what it builds on, folder of the run) -> who watches. Raises: ConfigError for a recipe that it cannot."""


def write_model(config: TrainConfig, export: Path, inputs: Inputs, out: Path) -> None:
    """The exported U-Net, with everything that it was trained on, as a diffusers folder that makes pictures.

    Raises: ConfigError if the recipe trains no U-Net that makes pictures from text; CheckpointError if `out` exists.
    """
    settings = unet_settings(config)
    places = {role: inputs.run(role) for role in ("autoencoder", *settings.rules)}
    vae, _ = _component("vae", places["autoencoder"], "autoencoder", VAEConfig)
    towers = [_component(TOWERS[role], places[role], "text", TextConfig) for role in settings.rules]
    assert isinstance(vae.config, VAEConfig)
    text: list[Component] = []
    for (component, _), rule in zip(towers, settings.rules.values(), strict=True):
        assert isinstance(component.config, TextConfig)
        text.append(component if rule.pooled else _unprojected(component, component.config))
    roles = text_roles([cast("TextConfig", component.config) for component in text])  # just seen
    scheduler = scheduler_of(config)
    unet = Component(
        role="unet", config=read_config(export, "unet", UNetConfig), state=read_state(export / "unet.safetensors"),
        source=export,
    )  # fmt: skip
    null = {role: "zeros" if settings.null_text == "zeros" else "empty" for role in roles}
    save_folder(
        Checkpoint(
            preset=settings.preset or "sd15",
            objective=scheduler.objective,
            unet=unet,
            vae=vae,
            text=tuple(text),
            scheduler=scheduler,
            tokenizers=tuple(folder for _, folder in towers),
            info={
                "null": null,
                "hints": {"unet": {"sample_size": config.data.resolution // vae.config.factor}},
            },
        ),
        out,
    )


def unet_settings(config: TrainConfig) -> UNetSettings:
    """The settings of a recipe whose network makes pictures from text. Raises: ConfigError for another."""
    if config.part != "unet":
        raise ConfigError(f"evaluation: only a U-Net makes pictures; this recipe trains the {config.part}")
    settings = parse(UNetSettings, config.settings, "recipe.settings")
    if settings.is_told_picture:
        raise ConfigError(f"evaluation: {settings.preset} makes pictures from pictures, not from prompts alone")
    return settings


def _component(role: str, place: Path, name: str, kind: type[Config]) -> tuple[Component, Path | None]:
    """A network of a run, a package or a model, and its tokenizer's folder."""
    if is_run(place, name):
        own = place / TOKENIZER
        config: Config = read_config(place, name, kind)
        state = read_state(place / f"{name}.safetensors")
        return Component(role=role, config=config, state=state, source=place), own if own.is_dir() else None
    model = read(place)
    if role not in model.components:
        raise ConfigError(f"{place}: this model has no {role}; it has {', '.join(model.components)}")
    part = model.components[role]
    return part, model.tokenizers[model.text.index(part)] if part in model.text else None


def _unprojected(component: Component, config: TextConfig) -> Component:
    """A tower without the projection, which models that do not read pooled text do not have."""
    state = {key: tensor for key, tensor in component.state.items() if not key.startswith("projection.")}
    return replace(component, config=replace(config, projection=None), state=state)
