"""The lineage in small: from nothing through 1.1, 1.2 and 1.5, from base's noise to 768's v; and what is refused."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cli.conftest import tiny_checkpoint
from mezzotint.checkpoints.files import read_json, read_state
from mezzotint.checkpoints.save import save_folder
from mezzotint.data.sample import Picture
from mezzotint.errors import ConfigError, MezzotintError
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, UNet
from mezzotint.pipeline.unclip import Statistics
from mezzotint.training import lineage
from mezzotint.training.conditioning import Embedded, drops
from mezzotint.training.config import TrainConfig, parse, recipe, stages
from mezzotint.training.inherited import read_autoencoder, read_reader, read_start
from mezzotint.training.lineage import carry_out, folder_of, tiny, train_tiny
from mezzotint.training.network import write_network
from mezzotint.training.part import Batch, Inputs, make
from mezzotint.training.run import Run
from mezzotint.training.tiny import BATCH, MICRO
from mezzotint.training.unet import UNetPart, UNetSettings
from training import test_step
from training.toy import ToyPart

STEPS = 2
CHAIN = ("sd-v1-1", "sd-v1-2", "sd-v1-5", "sd-v2-base", "sd-v2-768-v")


def short(name: str, out: Path, changes: Sequence[str] = ()) -> tuple[TrainConfig, ...]:
    """The tiny stages of a recipe, STEPS long and without sheets."""
    return tuple(
        replace(config, max_train_steps=STEPS, checkpointing_steps=1, validation_steps=STEPS, validation_prompts=())
        for config in tiny(stages(name, changes), out)
    )


@pytest.fixture(scope="module", autouse=True)
def _quick() -> object:  # pyright: ignore[reportUnusedFunction]
    """Leave out TensorBoard's second of import, and look at few held-out pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.journal.find_spec", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        patch.setattr("mezzotint.training.unet.VALIDATED", 4)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain, each recipe beside the one that it starts from."""
    folder = tmp_path_factory.mktemp("runs")
    for name in CHAIN:
        out = folder / name
        assert carry_out(short(name, out), train_tiny(stages(name), out), out)
    return folder


def part_of(name: str, runs: Path, index: int = 0, changes: Sequence[str] = (), **needs: Path) -> UNetPart:
    """The part of one stage, not trained."""
    out = runs / name
    config = short(name, out, changes)[index]
    pictures = train_tiny(stages(name), out)
    found = {role: Path(path) for role, path in config.needs.items()} | needs
    part = make(config, Inputs(data=pictures, needs=found, cache=runs / "cache"))
    assert isinstance(part, UNetPart)
    return part


def exported(run: Path) -> dict[str, Tensor]:
    return read_state(run / "export" / "unet.safetensors")


def told(run: Path) -> dict[str, object]:
    return read_json(run / "export" / "objective.json")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_each_run_begins_where_its_parent_ended(runs: Path) -> None:
    for child, parent in (("sd-v1-2", "sd-v1-1"), ("sd-v1-5", "sd-v1-2"), ("sd-v2-768-v", "sd-v2-base")):
        begun = part_of(child, runs, start=runs / parent).players["unet"].state_dict()
        assert equal(begun, exported(runs / parent))
        assert not equal(begun, exported(runs / child))


def test_a_second_stage_is_the_same_network_at_another_resolution(runs: Path) -> None:
    first, second = runs / "sd-v1-1" / "stage-1", runs / "sd-v1-1"
    assert (told(first)["resolution"], told(second)["resolution"]) == (16, 32)
    begun = part_of("sd-v1-1", runs, index=1, start=first)
    assert equal(begun.players["unet"].state_dict(), exported(first))
    assert begun.train.moments[0].shape[-1] == 16  # latents of 32 px


def test_objective_changes_from_noise_to_v(runs: Path) -> None:
    names = ("sd-v1-1", "sd-v1-5", "sd-v2-base", "sd-v2-768-v")
    assert [told(runs / name)["prediction_type"] for name in names] == ["epsilon"] * 3 + ["v_prediction"]
    drops = [told(runs / name)["proportion_empty_prompts"] for name in ("sd-v1-1", "sd-v1-2", "sd-v1-5")]
    assert drops == [0, 0, 0.1]


def test_stopped_in_any_stage_and_continued_is_the_same_run(runs: Path, tmp_path: Path) -> None:
    whole = exported(runs / "sd-v1-1")
    out = tmp_path / "sd-v1-1"
    (tmp_path / "tiny").symlink_to(runs / "tiny")
    pictures = runs / "tiny" / "pictures"
    for _ in range(4):
        answers = iter([False] + [True] * 9)
        if carry_out(short("sd-v1-1", out), pictures, out, should_stop=lambda answers=answers: next(answers)):
            break
    assert equal(exported(out), whole)


def test_finished_stages_are_not_built_again(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, made = runs / "sd-v1-1", list[int]()

    def counted(config: TrainConfig, inputs: Inputs) -> object:
        made.append(config.data.resolution)
        return make(config, inputs)

    monkeypatch.setattr(lineage, "make", counted)
    assert carry_out(short("sd-v1-1", out), runs / "tiny" / "pictures", out)
    assert made == []


def test_data_rule_leaves_out_what_it_should(runs: Path) -> None:
    every, rule = part_of("sd-v1-1", runs), part_of("sd-v1-2", runs, start=runs / "sd-v1-1")
    assert rule.count < every.count
    assert all(picture.numbers["aesthetic"] >= 5 for picture in rule.train.pictures.pictures)
    assert any(picture.numbers["aesthetic"] < 5 for picture in every.train.pictures.pictures)


REFUSED: list[tuple[str, list[str], str | None, str]] = [
    ("sd-v2-768-v", ["data.resolution=776"], "sd-v1-5", r"not that of sd2-v \(.*context 12 → 16.*--start nothing"),
    ("sd-v1-2", [], None, r"sd-v1-1: no exported networks; train sd-v1-1 there first, or name its weights: --start"),
    ("sd-v1-1", ["data.resolution=272"], "nothing", r"data\.resolution 17: .* multiple of 2; nearest are 16 and 18"),
    ("sdxl-base", ["data.resolution=1088", "data.bucket_step=64"], "nothing", "no bucket fits; a multiple of step 8"),
]


@pytest.mark.parametrize(("name", "changes", "start", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_wrong_starts_and_resolutions_are_refused_before_the_first_step(
    name: str, changes: list[str], start: str | None, message: str, runs: Path, tmp_path: Path
) -> None:
    out = tmp_path / name
    (tmp_path / "tiny").symlink_to(runs / "tiny")
    start = str(runs / start) if start and start != "nothing" else start
    with pytest.raises(ConfigError, match=message):
        carry_out(short(name, out, changes), train_tiny(stages(name), out), out, start=start)
    assert not (out / "log.jsonl").exists()


def test_noise_at_zero_terminal_snr_and_unknown_keys_are_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match="use v_prediction or sample"):
        part_of("sd-v1-1", runs, changes=["settings.diffusion.rescale_betas_zero_snr=true"])
    with pytest.raises(ConfigError, match=r"settings: unknown key 'preste'; did you mean 'preset'\?"):
        part_of("sd-v1-1", runs, changes=["settings.preste=sd2"])
    with pytest.raises(
        ConfigError, match=r"recipe\.stages\[0\]: unknown key 'learning_rat'; did you mean 'learning_rate'\?"
    ):
        stages("sd-v1-1", ["learning_rat=1"])
    with pytest.raises(ConfigError, match="exactly one of model and preset"):
        parse(UNetSettings, {"diffusion": {}})
    with pytest.raises(ConfigError, match=r"data\.filters: unknown key 'aesthetics'; did you mean 'aesthetic'\?"):
        stages("sd-v1-2", ["data.filters.aesthetics={at_least: 5}"])


def test_pictures_without_captions_are_refused(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes((runs / "tiny" / "pictures" / "red-disc-0.png").read_bytes())
    with pytest.raises(
        MezzotintError, match=r"1 of 1 pictures have no caption, the first is 'a\.png'; give each a \.txt file"
    ):
        carry_out(short("sd-v1-1", runs / "new"), tmp_path, runs / "new")


def test_a_published_model_is_a_start_like_any_run(tmp_path: Path) -> None:
    """Autoencoder, text tower, tokenizer and U-Net of a diffusers folder."""
    model = tiny_checkpoint()
    save_folder(model, tmp_path / "model")
    assert model.unet is not None
    assert model.vae is not None
    unet = read_start(tmp_path / "model", PRESETS["tiny"].unet, "tiny", torch.Generator())
    assert equal(dict(unet.state_dict()), model.unet.state)
    assert equal(dict(read_autoencoder(tmp_path / "model").state_dict()), model.vae.state)
    reader = read_reader(tmp_path / "model", "clip")
    assert equal(dict(reader.tower.state_dict()), model.text[0].state)
    assert reader.tokenizer.encode("a fox") == [320, 3240]
    with pytest.raises(ConfigError, match="this model has no text_encoder_2; it has unet, vae, text_encoder"):
        read_reader(tmp_path / "model", "clip_2")


def test_a_vector_that_is_new_changes_nothing_at_first(runs: Path, generator: torch.Generator) -> None:
    """unCLIP begins as the model that it starts from, whatever picture it is told."""
    old = read_start(runs / "sd-v2-768-v" / "export", part_of("sd-v2-base", runs).settings.unet, "", generator)
    config = replace(old.config, vector=32)
    new = read_start(runs / "sd-v2-768-v" / "export", config, "", generator)
    x, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3.0, 700.0])
    context, vector = torch.randn(2, 77, 16, generator=generator), torch.randn(2, 32, generator=generator)

    def said(network: UNet, conditioning: Conditioning) -> Tensor:
        return network(x, t, network.prepare(conditioning))

    assert torch.equal(said(new, Conditioning(context, vector)), said(old, Conditioning(context)))
    write_network(runs / "vector", "unet", new, config)
    with pytest.raises(ConfigError, match="vector 32 → 0"):
        read_start(runs / "vector", old.config, "sd2", generator)


def test_pictures_are_dropped_at_the_asked_rate_and_noised(generator: torch.Generator) -> None:
    embedding = torch.randn(400, 8, generator=generator)
    embedded = Embedded(embedding, embedding, Statistics(torch.zeros(1, 8), torch.ones(1, 8)))
    vectors = embedded.vectors(embedding, Batch(0, range(400), list(range(400)), 400), seed=1, drop=0.25)
    is_zero = (vectors == 0).all(1)
    assert float(is_zero.float().mean()) == pytest.approx(0.25, abs=0.07)
    kept = (vectors[~is_zero, :8] - embedding[~is_zero]).square().mean(1)
    assert (kept > 0).all()
    assert vectors.shape == (400, 16)


def test_towers_lose_their_text_together_or_each_by_itself() -> None:
    batch, together = Batch(0, range(1000), list(range(1000)), 1000), torch.arange(1000) % 10 == 0
    both = drops(batch, 0, 0.1, 2, together, is_each=False)
    assert both[0] == both[1] == [bool(lost) for lost in together]
    first, second = drops(batch, 0, 0.1, 2, together, is_each=True)
    assert first == both[0]
    assert sum(second) == pytest.approx(100, abs=35)
    assert sum(a and b for a, b in zip(first, second, strict=True)) < 30


def test_xl_is_told_sizes_and_zeros_in_batches_of_one_bucket(runs: Path, tmp_path: Path) -> None:
    """The last stage of the base: aspect buckets, six numbers, a null of zeros; the refiner's end with the score."""
    part = part_of("sdxl-base", runs, index=2)
    order = Run(part, short("sdxl-base", runs / "sdxl-base")[2]).order
    assert part.buckets is not None
    assert len(set(part.buckets)) > 2
    size = BATCH // MICRO
    for start in range(0, 6 * size, size):
        assert len({part.buckets[sample] for sample in order.samples(start, size)}) == 1
    assert part.size_count == 6
    sizes = part._sizes(part.train, [0], [0])  # pyright: ignore[reportPrivateUsage]

    assert sizes is not None
    assert part.train.views is not None
    place = part.train.views[0][0]
    told = [*place.original[::-1], place.top, place.left, *place.target[::-1]]
    assert torch.equal(sizes[0], torch.tensor(told, dtype=torch.float32))
    text = part.texts.told([[part.null]] * 2, torch.float32)
    assert text.pooled is not None
    assert not text.context.any()
    assert not text.pooled.any()
    refiner = part_of("sdxl-refiner", runs)
    sizes = refiner._sizes(refiner.train, [0], [0])  # pyright: ignore[reportPrivateUsage]
    assert sizes is not None
    picture: Picture = refiner.train.pictures.pictures[0]
    assert float(sizes[0, 4]) == pytest.approx(picture.numbers["aesthetic"])
    loss = refiner.loss("unet", refiner.players, Batch(0, range(2), [0, 0], 2))
    assert loss is not None
    assert float(loss.total.detach()) == pytest.approx(1, abs=0.2)  # a network that says 0 of unit noise


RECIPES = {  # starts_from of the first stage; (pixels, steps) of each; objective and text drop of the last
    "sd-v1-1": ("", [(256, 237_000), (512, 194_000)], "epsilon", 0.0),
    "sd-v1-2": ("sd-v1-1", [(512, 515_000)], "epsilon", 0.0),
    "sd-v1-3": ("sd-v1-2", [(512, 195_000)], "epsilon", 0.1),
    "sd-v1-4": ("sd-v1-2", [(512, 225_000)], "epsilon", 0.1),
    "sd-v1-5": ("sd-v1-2", [(512, 595_000)], "epsilon", 0.1),
    "sd-v2-base": ("", [(256, 550_000), (512, 850_000)], "epsilon", 0.1),
    "sd-v2-768-v": ("sd-v2-base", [(512, 150_000), (768, 140_000)], "v_prediction", 0.1),
    "sd-v2-1": ("sd-v2-base", [(512, 220_000), (768, 55_000), (768, 155_000)], "v_prediction", 0.1),
    "sd-v2-1-unclip": ("sd-v2-1", [(768, 200_000)], "v_prediction", 0.1),
    "sdxl-base": ("", [(256, 600_000), (512, 200_000), (1024, 200_000)], "epsilon", 0.1),
    "sdxl-refiner": ("", [(1024, 200_000)], "epsilon", 0.1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_is_published(name: str) -> None:
    start, expected, objective, drop = RECIPES[name]
    found = stages(name)
    assert found[0].starts_from == start
    assert [(config.data.resolution, config.max_train_steps) for config in found] == expected
    diffusion = found[-1].settings["diffusion"]
    assert (diffusion["prediction_type"], diffusion["proportion_empty_prompts"]) == (objective, drop)
    assert {config.batch for config in found} == {2048}
    assert {config.learning_rate for config in found} == {1e-4}
    assert found[0].sources


def test_settings_added_since_do_not_refuse_runs_that_began_before() -> None:
    """Hashes of runs that are in progress somewhere: a new setting at its default must not change them."""
    known = {"autoencoder": "2cf68617e881", "clip": "c1099270bc17", "evaluator": "c7aa0f601ca2", "unet": "7fd917c29fd6"}
    assert {part: stages(f"icons-{part}")[-1].trajectory()[:12] for part in known} == known


def test_a_new_objective_and_a_new_part_are_short() -> None:
    assert len(inspect.getsource(test_step.test_a_new_objective_is_one_entry).splitlines()) <= 15
    assert len(inspect.getsource(ToyPart).splitlines()) <= 60


def test_only_the_family_can_be_shrunk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only recipes that train a preset of the family"):
        tiny(stages("icons-unet"), tmp_path / "run")
    with pytest.raises(ConfigError, match="2 stages where one was expected"):
        recipe("sd-v1-1")
    assert folder_of(tmp_path, 0, 2) == tmp_path / "stage-1"
