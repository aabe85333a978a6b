"""Which layer each model reads, as diffusers' pipelines do it; clip_skip; chunks; empty negatives."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from mezzotint.errors import CheckpointError, ConfigError, RequestError
from mezzotint.models.clip import TextConfig, TextTower
from mezzotint.models.presets import PRESETS
from mezzotint.prompts import encode
from mezzotint.prompts.encode import (
    EMPTY_NEGATIVE,
    PENULTIMATE_NORMED,
    RULES,
    Chunks,
    EmptyNegative,
    TowerRule,
    empty_negative,
    encode_chunks,
    encode_pair,
    encode_prompt,
    joined,
    zeros_like,
)
from mezzotint.prompts.tokenizer import BOS, EOS, Tokenizer, bundled, from_folder
from models.oracles import relative, text_pair
from prompts.folders import merges, small_vocabulary, theirs, write_folder

TOLERANCE = 1e-5  # measured: below 3e-7
PROMPT = "A red fox, 35mm photo"
NEGATIVE = "blurry"
LONG = "fox " * 74 + "Red, THE Dog"

L = TextConfig(width=32, layers=4, heads=4, mlp=64, activation="quick_gelu")
G = TextConfig(width=48, layers=5, heads=4, mlp=64, activation="gelu", projection=24, pad=0)
H = TextConfig(width=40, layers=3, heads=4, mlp=64, activation="gelu", pad=0)


class Setup(NamedTuple):
    """One model's towers, tokenizers and rules, and a pipeline of diffusers that holds the same tensors."""

    towers: Sequence[TextTower]
    tokenizers: Sequence[Tokenizer]
    rules: Sequence[TowerRule]
    pipeline: Any  # diffusers' pipelines have no types

    def ours(self, text: str, clip_skip: int | None = None) -> encode.Encoded:
        return encode_prompt(text, self.towers, self.tokenizers, self.rules, clip_skip=clip_skip)

    def theirs(self, **kwargs: Any) -> tuple[Any, ...]:  # Any: diffusers
        return self.pipeline.encode_prompt(
            device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True, **kwargs
        )


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' tokenizers of SDXL: the second pads with "!"."""
    config: dict[str, object] = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "model_max_length": 77}
    words = bundled().engine.get_vocab()
    folder = tmp_path_factory.mktemp("tokenizers")
    first = write_folder(folder / "1", words, merges(), tokenizer_config=config | {"pad_token": EOS})
    second = write_folder(folder / "2", words, merges(), tokenizer_config=config | {"pad_token": "!"})
    return theirs(first), theirs(second)


@pytest.fixture(scope="module")
def sd15(tokenizers: tuple[Any, Any]) -> Setup:
    tower, reference = text_pair(L, torch.Generator().manual_seed(1))
    return Setup([tower], [bundled()], RULES["sd15"], first_pipeline(reference, tokenizers[0]))


@pytest.fixture(scope="module")
def sd2(tokenizers: tuple[Any, Any]) -> Setup:
    """A tower that was trained with 4 layers and stored with 3, as Hugging Face stores 23 of 24."""
    tower, reference = text_pair(H, torch.Generator().manual_seed(2))
    rule = replace(PENULTIMATE_NORMED, depth=4)
    return Setup([tower], [bundled()], [rule], first_pipeline(reference, tokenizers[1]))


@pytest.fixture(scope="module")
def sdxl(tokenizers: tuple[Any, Any]) -> Setup:
    generator = torch.Generator().manual_seed(3)
    (first, reference), (second, reference_2) = text_pair(L, generator), text_pair(G, generator)
    pipeline = xl_pipeline(reference, reference_2, *tokenizers)
    return Setup([first, second], [bundled()] * 2, RULES["sdxl"], pipeline)


@pytest.fixture(scope="module")
def refiner(tokenizers: tuple[Any, Any]) -> Setup:
    tower, reference = text_pair(G, torch.Generator().manual_seed(4))
    pipeline = xl_pipeline(None, reference, None, tokenizers[1], force_zeros_for_empty_prompt=False)
    return Setup([tower], [bundled()], RULES["sdxl-refiner"], pipeline)


def first_pipeline(text_encoder: Any, tokenizer: Any) -> Any:  # Any: diffusers
    pipeline: Any = StableDiffusionPipeline
    # Its clip_skip asks for the final norm where transformers 4 had it.
    object.__setattr__(text_encoder, "text_model", text_encoder)
    parts = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
    return pipeline(text_encoder=text_encoder, tokenizer=tokenizer, requires_safety_checker=False, **parts)


def xl_pipeline(*parts: Any, **options: bool) -> Any:  # Any: diffusers
    pipeline: Any = StableDiffusionXLPipeline
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    others = dict.fromkeys(("vae", "unet", "scheduler"))
    return pipeline(**dict(zip(names, parts, strict=True)), **others, add_watermarker=False, **options)


# --- parity with diffusers


@pytest.mark.parametrize("text", [PROMPT, "", "fox " * 80])
@pytest.mark.parametrize("name", ["sd15", "sd2"])
def test_one_tower_as_in_diffusers(name: str, text: str, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    context, pooled, _ = setup.ours(text)
    assert relative(context, setup.theirs(prompt=text)[0]) < TOLERANCE
    assert pooled is None


@pytest.mark.parametrize("text", [PROMPT, "", "fox " * 80])
@pytest.mark.parametrize("name", ["sdxl", "refiner"])
def test_xl_as_in_diffusers(name: str, text: str, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    positive, negative = encode_pair(text, NEGATIVE, *setup[:3])
    context, context_2, pooled, pooled_2 = setup.theirs(prompt=text, negative_prompt=NEGATIVE)
    assert positive.pooled is not None and negative.pooled is not None  # noqa: PT018
    assert relative(positive.context, context) < TOLERANCE
    assert relative(positive.pooled, pooled) < TOLERANCE
    assert relative(negative.context, context_2) < TOLERANCE
    assert relative(negative.pooled, pooled_2) < TOLERANCE


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_counts_from_the_last_layer_and_diffusers_from_the_models(
    name: str, skip: int, request: pytest.FixtureRequest
) -> None:
    setup: Setup = request.getfixturevalue(name)
    usual = 1 if name == "sd15" else 2
    context, pooled, _ = setup.ours(PROMPT, clip_skip=usual + skip)
    expected = setup.theirs(prompt=PROMPT, clip_skip=skip)
    assert relative(context, expected[0]) < TOLERANCE
    assert pooled is None or relative(pooled, expected[2]) < TOLERANCE
    assert (relative(context, setup.ours(PROMPT).context) < TOLERANCE) == (skip == 0)


def test_clip_skip_holds_for_the_negative_of_xl_too(sdxl: Setup) -> None:
    """diffusers leaves the negative at its usual layer."""
    negative = encode_pair(PROMPT, NEGATIVE, *sdxl[:3], clip_skip=3)[1].context
    assert relative(negative, sdxl.ours(NEGATIVE, clip_skip=3).context) < TOLERANCE
    assert relative(sdxl.theirs(prompt=PROMPT, negative_prompt=NEGATIVE, clip_skip=1)[1], negative) > 0.1


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sd15", [TowerRule(layer=-2)]),
        ("sd15", [TowerRule(final_norm=False)]),
        ("sd15", [TowerRule(pad=0)]),
        ("sd2", [TowerRule(pad=0, layer=-2)]),
        ("sdxl", [RULES["sdxl"][0], replace(RULES["sdxl"][1], pad=None)]),
        ("sdxl", [replace(RULES["sdxl"][0], final_norm=True), RULES["sdxl"][1]]),
    ],
)
def test_parity_catches_a_wrong_rule(name: str, wrong: list[TowerRule], request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    context = setup._replace(rules=wrong).ours(PROMPT).context
    assert relative(context, setup.theirs(prompt=PROMPT)[0]) > 1e-2


def test_a_trained_folder_as_in_diffusers(trained_folder: Path) -> None:
    reference_class: Any = StableDiffusionPipeline  # Any: diffusers
    pipeline = reference_class.from_pretrained(trained_folder, unet=None, vae=None, dtype=torch.float32)
    settings = pipeline.text_encoder.config
    config = TextConfig(
        width=settings.hidden_size,
        layers=settings.num_hidden_layers,
        heads=settings.num_attention_heads,
        mlp=settings.intermediate_size,
        activation=settings.hidden_act,
        vocabulary=settings.vocab_size,
        bos=settings.bos_token_id,
        eos=settings.eos_token_id,
        pad=settings.pad_token_id,
    )
    tower, reference = text_pair(config, torch.Generator())
    reference.load_state_dict(pipeline.text_encoder.state_dict())  # the reference holds our tensors
    setup = Setup([tower], [from_folder(trained_folder / "tokenizer")], RULES["sd15"], pipeline)
    assert relative(setup.ours(PROMPT).context, setup.theirs(prompt=PROMPT)[0]) < TOLERANCE


# --- rules


def test_every_preset_has_a_rule_for_each_tower() -> None:
    assert {name: len(rules) for name, rules in RULES.items()} == {n: len(p.text) for n, p in PRESETS.items()}


@pytest.mark.parametrize("name", PRESETS)
def test_the_rules_fit_the_towers_and_give_what_the_unet_takes(name: str) -> None:
    """With the presets' own widths, on towers without tensors."""
    preset = PRESETS[name]
    with torch.device("meta"):
        towers = [TextTower(config) for config in preset.text]
    context, pooled, _ = encode_prompt(PROMPT, towers, [bundled()] * len(towers), RULES[name])
    sizes = 0 if pooled is None else 256 * (5 if name == "sdxl-refiner" else 6)
    assert context.shape == (1, 77, preset.unet.context)
    if pooled is not None:
        assert pooled.shape == (1, preset.unet.vector - sizes)


def test_a_tower_stored_whole_is_read_where_one_without_its_last_layer_is(sd2: Setup) -> None:
    whole, _ = text_pair(replace(H, layers=4, projection=40), torch.Generator().manual_seed(5))
    kept = sd2.towers[0].state_dict()
    whole.load_state_dict(whole.state_dict() | kept)
    setup = sd2._replace(towers=[whole])
    assert torch.equal(setup.ours(PROMPT).context, sd2.ours(PROMPT).context)


def test_a_folders_own_padding_goes_before_the_rules(sd15: Setup) -> None:
    padded = replace(bundled(), pad=5)
    ids = torch.tensor([bundled().chunk(PROMPT, pad=5)])
    tower = sd15.towers[0]
    expected = tower.final_norm(tower(ids).states[-1])
    for rule in (TowerRule(), TowerRule(pad=0)):
        assert torch.equal(encode_chunks([padded.encode(PROMPT)], tower, padded, rule).context, expected)


# --- chunks and what does not fit


def test_chunks_are_read_alone_and_follow_one_another(sdxl: Setup) -> None:
    ids = [bundled().encode("a red fox"), bundled().encode("in the snow")]

    def encoded(chunks: list[list[int]]) -> encode.Encoded:
        parts = zip(sdxl.towers, sdxl.tokenizers, sdxl.rules, strict=True)
        return joined([encode_chunks(chunks, *part) for part in parts])

    both, first, second = encoded(ids), encoded(ids[:1]), encoded(ids[1:])
    assert both.context.shape == (1, 154, 80)
    torch.testing.assert_close(both.context, torch.cat([first.context, second.context], dim=1))
    torch.testing.assert_close(both.pooled, first.pooled)
    torch.testing.assert_close(first.context, sdxl.ours("a red fox").context)


def test_the_words_that_fell_off_are_told(sdxl: Setup) -> None:
    assert sdxl.ours(LONG).dropped == (",", "THE", "Dog")
    assert sdxl.ours("fox " * 75).dropped == ()
    assert encode.dropped_words(LONG, sdxl.towers, sdxl.tokenizers) == ((",", "THE", "Dog"),) * 2


def test_words_that_one_tower_lost_count_as_lost(sd15: Setup) -> None:
    short, _ = text_pair(replace(L, positions=5), torch.Generator().manual_seed(6))
    towers = [*sd15.towers, short]
    assert encode.dropped_words("A Red Fox Runs", towers, [bundled()] * 2) == ((), ("Runs",))


# --- empty negatives


@pytest.mark.parametrize("negative", [None, "", " ", NEGATIVE])
@pytest.mark.parametrize("name", ["sdxl", "refiner"])
def test_empty_negative_as_in_diffusers(name: str, negative: str | None, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    rule = empty_negative({"sdxl": "sdxl", "refiner": "sdxl-refiner"}[name])
    actual = encode_pair(PROMPT, negative, *setup[:3], empty=rule)[1]
    _, context, _, pooled = setup.theirs(prompt=PROMPT, negative_prompt=negative)
    torch.testing.assert_close(actual.context, context)
    torch.testing.assert_close(actual.pooled, pooled)


@pytest.mark.parametrize(
    ("rule", "zeros"),
    [
        ("encode", ""),
        ("zeros_if_none", "none"),
        ("zeros_if_empty", "none empty"),
        ("zeros_if_any_empty", "none empty prompt"),
    ],
)
def test_what_is_replaced_by_zeros(rule: EmptyNegative, zeros: str, sdxl: Setup) -> None:
    def is_zero(encoded: encode.Encoded) -> bool:
        assert encoded.pooled is not None
        assert encoded.context.any() == encoded.pooled.any()
        return not encoded.context.any()

    pairs = {
        "none": encode_pair(PROMPT, None, *sdxl[:3], empty=rule)[1],
        "empty": encode_pair(PROMPT, "", *sdxl[:3], empty=rule)[1],
        "blank": encode_pair(PROMPT, " ", *sdxl[:3], empty=rule)[1],
        "prompt": encode_pair("", NEGATIVE, *sdxl[:3], empty=rule)[0],
    }
    assert " ".join(name for name, encoded in pairs.items() if is_zero(encoded)) == zeros


def test_zeros_have_the_size_of_the_prompt_and_no_dropped_words(sdxl: Setup, sd15: Setup) -> None:
    context, pooled, dropped = zeros_like(sdxl.ours(LONG))
    assert torch.equal(context, torch.zeros(1, 77, 80))
    assert pooled is not None
    assert torch.equal(pooled, torch.zeros(1, 24))
    assert dropped == ()
    assert zeros_like(sd15.ours("")).pooled is None


def test_which_program_does_what() -> None:
    assert {program: empty_negative("sdxl-inpaint", program) for program in EMPTY_NEGATIVE} == {
        "diffusers": "zeros_if_none",
        "sgm": "zeros_if_empty",
        "a1111": "zeros_if_empty",
        "forge": "zeros_if_empty",
        "invokeai": "zeros_if_any_empty",
        "comfyui": "encode",
        "sd-scripts": "encode",
    }
    assert {empty_negative("sdxl-refiner", program) for program in ("a1111", "forge")} == {"zeros_if_empty"}
    assert {empty_negative("sdxl-refiner", program) for program in ("diffusers", "sgm", "invokeai")} == {"encode"}
    assert {empty_negative(preset, "a1111") for preset in ("sd15", "sd2-v", "x4-upscaler")} == {"encode"}


# --- refusals


@pytest.mark.parametrize(("name", "least"), [("sd15", 1), ("sd2", 2)])
@pytest.mark.parametrize("skip", [-1, 0, 5])
def test_a_layer_that_is_not_there_is_refused(name: str, least: int, skip: int, request: pytest.FixtureRequest) -> None:
    setup: Setup = request.getfixturevalue(name)
    message = f"clip_skip = {skip}: counts layers from the end of a text encoder of 4; {least} to 4"
    with pytest.raises(RequestError, match=message):
        setup.ours(PROMPT, clip_skip=skip)


def test_a_rule_for_another_tower_is_refused(sd15: Setup) -> None:
    with pytest.raises(ConfigError, match="the model reads layer 23 of a text encoder that has 4"):
        sd15._replace(rules=RULES["sd2"]).ours(PROMPT)


def test_a_tokenizer_of_another_model_is_refused(sd15: Setup, refiner: Setup, tmp_path: Path) -> None:
    small = from_folder(write_folder(tmp_path / "t", *small_vocabulary()))
    with pytest.raises(CheckpointError, match=f"closes a text with id {small.eos}, the text encoder pools at id 49407"):
        refiner._replace(tokenizers=[small]).ours(PROMPT)
    other, _ = text_pair(replace(L, vocabulary=100), torch.Generator())
    with pytest.raises(CheckpointError, match="gives id 49407, the text encoder has 100 tokens"):
        sd15._replace(towers=[other]).ours(PROMPT)


def test_the_pooled_text_is_the_last_towers_that_gives_one() -> None:
    parts = [Chunks(torch.zeros(1, 2, 3), pooled) for pooled in (torch.ones(1, 1), torch.full((1, 1), 2.0), None)]
    assert joined(parts).pooled == torch.tensor([[2.0]])
