"""CLIP score equals transformers' cosine; its scalings, its cut and its intervals are what they are called."""

from dataclasses import replace
from pathlib import Path
from typing import Any  # Any: transformers' models are not typed

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.towers import LARGE_IMAGE, LARGE_TEXT, TEXT, reference_of, small_clip
from mezzotint.errors import CheckpointError, ConfigError
from mezzotint.evaluation.clip_score import (
    ClipScore,
    Texts,
    clip_score,
    cosines,
    mean_of,
    per_prompt,
    r_precision,
    read_texts,
)
from mezzotint.models.clip import CLIP
from mezzotint.prompts.tokenizer import bundled

PROMPTS = ("a red fox", "a blue bird in a tree", "the word " + "very " * 90 + "long")
ROOM = 75  # tokens of a text between the opening and the closing one


def pictures(clip: CLIP, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    size = clip.image.config.size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def theirs(reference: Any, image: Tensor, prompts: tuple[str, ...]) -> Tensor:
    """transformers' cosine of picture i and prompt i; a long text is cut before its end, as its tokenizer does."""
    tokenizer = bundled()
    ids = torch.tensor([tokenizer.chunk(prompt) for prompt in prompts])
    with torch.no_grad():
        found = reference(input_ids=ids, pixel_values=image)
    return (found.image_embeds * found.text_embeds).sum(-1)


def test_equals_transformers_in_float64(tmp_path: Path) -> None:
    clip = small_clip()
    reference = reference_of(clip, tmp_path, torch.float64)
    clip = clip.double()
    image = pictures(clip, len(PROMPTS))
    found = cosines(clip.image(image).embedding, read_texts(clip, bundled(), PROMPTS), PROMPTS)
    assert float((found - theirs(reference, image, PROMPTS)).abs().max()) < 1e-6
    assert float(found.std()) > 0.01, "all alike: nothing would be tested"


@pytest.mark.slow
def test_equals_transformers_at_full_size_in_float32(tmp_path: Path) -> None:
    """ViT-L/14."""
    clip = small_clip(LARGE_TEXT, LARGE_IMAGE)
    reference = reference_of(clip, tmp_path)
    image = pictures(clip, len(PROMPTS), torch.float32)
    with torch.no_grad():
        found = cosines(clip.image(image).embedding, read_texts(clip, bundled(), PROMPTS), PROMPTS)
    assert float((found - theirs(reference, image, PROMPTS).double()).abs().max()) < 1e-5


def test_a_long_text_keeps_its_end_and_is_listed() -> None:
    clip, tokenizer = small_clip(), bundled()
    whole = tokenizer.encode(PROMPTS[2])
    texts = read_texts(clip, tokenizer, PROMPTS)
    assert [cut.prompt for cut in texts.cut] == [PROMPTS[2]]
    assert texts.cut[0].words[-1] == "long"
    assert len(texts.cut[0].words) == len(whole) - ROOM

    def feature(ids: list[int]) -> Tensor:
        return F.normalize(clip.text(torch.tensor([ids])).pooled, dim=-1)[0]

    right = feature([tokenizer.bos, *whole[:ROOM], tokenizer.eos])
    sliced = feature([tokenizer.bos, *whole, tokenizer.eos][: ROOM + 2])  # what drops the end
    assert torch.allclose(texts.features[2], right, atol=1e-6)
    assert float((sliced - right).square().sum().sqrt()) > 1e-2, "cut behind the end, the text means something else"


def test_a_prefix_stands_before_every_prompt_and_counts() -> None:
    clip, tokenizer = small_clip(), bundled()
    with_prefix = read_texts(clip, tokenizer, ["a red fox"], prefix="A photo depicts ")
    assert torch.allclose(
        with_prefix.features, read_texts(clip, tokenizer, ["A photo depicts a red fox"]).features, atol=1e-6
    )
    long = " ".join(["red"] * ROOM)
    assert not read_texts(clip, tokenizer, [long]).cut
    assert len(read_texts(clip, tokenizer, [long], prefix="A photo depicts ").cut[0].words) == 3


def test_the_text_features_do_not_depend_on_the_other_texts() -> None:
    clip, tokenizer = small_clip().double(), bundled()
    alone = read_texts(clip, tokenizer, PROMPTS[:1]).features
    assert float((read_texts(clip, tokenizer, PROMPTS).features[:1] - alone).abs().max()) < 1e-12


def test_a_tokenizer_of_another_model_is_refused() -> None:
    clip = small_clip(replace(TEXT, vocabulary=600, bos=598, eos=599, pad=0))
    with pytest.raises(CheckpointError, match=r"id 49407, the CLIP has 600 tokens"):
        read_texts(clip, bundled(), ["a fox"])
    with pytest.raises(CheckpointError, match=r"closes a text with id 49407, the CLIP pools at id 5"):
        read_texts(small_clip(replace(TEXT, eos=5)), bundled(), ["a fox"])


def given(values: list[float]) -> tuple[Tensor, Texts, tuple[str, ...]]:
    """Pictures and texts with these cosines, in two dimensions of their own each."""
    n = len(values)
    eye = torch.eye(2 * n, dtype=torch.float64)
    sides = torch.tensor(values, dtype=torch.float64)
    text = eye[:n] * sides[:, None] + eye[n:] * (1 - sides**2).sqrt()[:, None]
    said = tuple(f"prompt {i}" for i in range(n))
    return eye[:n], Texts(said, text, ()), said


def scored(values: list[float], **options: Any) -> ClipScore:  # Any: options of clip_score
    return clip_score(*given(values), **options)


def test_scalings_are_the_three_that_programs_print() -> None:
    values = [0.3, 0.1, -0.2]
    found = scored(values)
    assert found.cosine.value == pytest.approx(0.2 / 3, abs=1e-12)
    assert found.x100.value == pytest.approx(20 / 3, abs=1e-10)  # torchmetrics: max(100 * mean, 0)
    assert found.weighted.value == pytest.approx(2.5 * 0.4 / 3, abs=1e-12)  # Hessel: mean of w * max(cos, 0)
    assert scored(values, weight=1.0).weighted.value == pytest.approx(0.4 / 3, abs=1e-12)
    assert scored([-0.3, 0.1]).x100.value == 0
    clamped_late = 2.5 * max(sum(values) / 3, 0)
    assert abs(found.weighted.value - clamped_late) > 0.1, "clamping the mean is another number"


def test_the_length_of_features_does_not_matter() -> None:
    images, texts, said = given([0.3, 0.1, -0.2])
    assert clip_score(7 * images, texts, said) == clip_score(images, texts, said)


def test_intervals_are_over_prompts_not_over_pictures() -> None:
    """Ten equal pictures of each prompt tell no more than one."""
    values = torch.tensor([0.1, 0.2, 0.4, 0.25])
    said = ["a", "b", "c", "d"]
    once, often = mean_of(values, said), mean_of(values.repeat_interleave(10), [s for s in said for _ in range(10)])
    assert once.low is not None
    assert often.low == pytest.approx(once.low, abs=1e-12)
    error = float(values.double().std()) / 2  # of a mean of four: the jackknife of a mean is the textbook's
    assert once.value - once.low == pytest.approx(3.182446305284263 * error, abs=1e-7)
    one = mean_of(values, ["a"] * 4)
    assert (one.low, one.how) == (None, "one prompt: no interval")


def test_r_precision_counts_pictures_that_find_their_own() -> None:
    images, texts, said = given([0.9, 0.8, 0.7, 0.6])
    assert r_precision(images, texts, said) == (4, 4)
    mixed = images[
        [1, 0, 2, 3]
    ]  # two pictures changed places: each is farther from its own prompt than from the other's
    assert r_precision(mixed, texts, said) == (2, 4)
    assert r_precision(torch.zeros_like(images), texts, said) == (0, 4), "features that say nothing find nothing"


def test_r_precision_draws_as_many_candidates_as_asked_for() -> None:
    generator = torch.Generator().manual_seed(2)
    said = tuple(f"p{i}" for i in range(400))
    texts = Texts(said, torch.randn(400, 8, generator=generator, dtype=torch.float64), ())
    images = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    hits, among = r_precision(images, texts, said, candidates=10)
    assert among == 10
    assert 0.05 < hits / 400 < 0.16, "by chance one in ten"
    assert r_precision(images, texts, said, candidates=10) == (hits, among)


def test_the_table_has_best_prompts_first_and_names_best_and_worst_pictures() -> None:
    found = torch.tensor([0.1, 0.5, 0.3, -0.2], dtype=torch.float64)
    rows = per_prompt(found, ["a", "b", "a", "b"])
    assert [(row.prompt, row.pictures, row.best, row.worst) for row in rows] == [("a", 2, 2, 0), ("b", 2, 1, 3)]
    assert [row.cosine for row in rows] == pytest.approx([0.2, 0.15])
    assert rows[1].weighted == pytest.approx(2.5 * 0.25)


def test_one_prompt_for_each_picture_is_expected() -> None:
    images, texts, said = given([0.3, 0.1, 0.2])
    with pytest.raises(ConfigError, match="3 pictures, 2 prompts: one prompt for each picture"):
        clip_score(images, texts, said[:2])
    with pytest.raises(ConfigError, match="no pictures"):
        clip_score(images[:0], texts, ())
