"""The tables of names: equal to the code behind them, and every program's spelling finds its row."""

import inspect

import pytest

from mezzotint import names
from mezzotint.diffusion import samplers, spacing
from mezzotint.errors import RequestError
from mezzotint.models import presets
from mezzotint.names import find_sampler, find_spacing, implied_options


def test_every_row_has_its_function_and_every_function_its_row() -> None:
    assert list(names.SAMPLERS) == list(samplers.SAMPLERS)
    assert set(names.SPACINGS) == set(spacing.SPACINGS)
    assert set(names.PRESETS) == set(presets.PRESETS)


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_options_are_the_keywords_of_the_function_with_its_defaults(name: str) -> None:
    parameters = inspect.signature(samplers.SAMPLERS[name]).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert [keywords.pop("noise"), keywords.pop("schedule")] == [inspect.Parameter.empty] * 2
    options = names.SAMPLERS[name].options
    assert {key: option.default for key, option in options.items()} == keywords
    for option in options.values():
        assert option.choices == () or option.default in option.choices
        for bound in (option.low, option.high):
            assert bound is None or isinstance(option.default, int | float | None)
        if isinstance(option.default, int | float):
            assert option.low is None or option.low <= option.default
            assert option.high is None or option.default <= option.high


def test_rows_name_only_what_exists() -> None:
    for row in names.SAMPLERS.values():
        assert row.spacing in names.SPACINGS
    for row in names.PRESETS.values():
        assert row.sampler in names.SAMPLERS
        assert row.spacing in names.SPACINGS
    for name, options in names.IMPLIED.values():
        for key, value in options.items():
            option = names.SAMPLERS[name].options[key]
            assert value != option.default
            assert value in option.choices or option.choices == ()


def test_no_two_rows_share_a_spelling() -> None:
    for table in (names.SAMPLERS, names.SPACINGS):
        spellings = [
            (spelling, row.name)
            for row in table.values()
            for spelling in {names.plain(word) for word in (row.name, row.title, *row.aliases)}
        ]
        assert len({spelling for spelling, _ in spellings}) == len(spellings)


@pytest.mark.parametrize(
    ("alias", "sampler", "spacing"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),  # AUTOMATIC1111
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde", "karras"),
        ("Euler a", "euler_ancestral", None),
        ("DPM2 a Karras", "dpm2_ancestral", "karras"),
        ("LMS Karras", "lms", "karras"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("k_dpm_2_a", "dpm2_ancestral", None),
        ("Restart", "restart", None),
        ("dpmpp_2m", "dpmpp_2m", None),  # ComfyUI
        ("dpmpp_sde_gpu", "dpmpp_sde", None),
        ("uni_pc_bh2", "unipc", None),
        ("dpm_2_ancestral", "dpm2_ancestral", None),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", None),  # diffusers
        ("PNDMScheduler", "plms", None),
        ("dpmpp_2m_k", "dpmpp_2m", "karras"),  # InvokeAI
        ("kdpm_2_a_k", "dpm2_ancestral", "karras"),
        ("euler_a", "euler_ancestral", None),
        ("K_DPMPP_2S_ANCESTRAL", "dpmpp_2s_ancestral", None),  # Stability
        (" dpm++-2m  KARRAS ", "dpmpp_2m", "karras"),
    ],
)
def test_every_programs_name_finds_the_sampler(alias: str, sampler: str, spacing: str | None) -> None:
    info, found = find_sampler(alias)
    assert (info.name, found) == (sampler, spacing)


@pytest.mark.parametrize("name", names.SAMPLERS)
def test_every_spelling_of_a_row_finds_it_also_before_a_spacing(name: str) -> None:
    row = names.SAMPLERS[name]
    for word in (row.name, row.title, *row.aliases):
        assert find_sampler(word) == (row, None)
        for ending in names.SPACINGS.values():
            assert find_sampler(f"{word} {ending.name}") == (row, ending.name)


def test_names_that_stand_for_options() -> None:
    assert implied_options("DPM++ 2M SDE Heun Karras") == {"solver_type": "heun"}
    assert implied_options("dpmpp_3m") == {"order": 3}
    assert implied_options("DPM++ 2M SDE") == {}


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(
        RequestError, match=r"^unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'\? one of: ddim, ddpm,"
    ):
        find_sampler("dpmp_2m")
    with pytest.raises(RequestError, match=r"^unknown spacing 'karas'; did you mean 'karras'\? one of: ays,"):
        find_spacing("karas")


@pytest.mark.parametrize(
    ("alias", "name"),
    [("SGM Uniform", "sgm_uniform"), ("normal", "uniform"), ("Align Your Steps", "ays"), ("ddim_uniform", "ldm")],
)
def test_every_programs_name_finds_the_spacing(alias: str, name: str) -> None:
    assert find_spacing(alias).name == name


def test_cost_is_one_evaluation_for_one_step() -> None:
    assert [names.SAMPLERS[name].cost(1) for name in ("euler", "heun", "plms")] == [1, 1, 1]
    assert [names.SAMPLERS[name].cost(20) for name in ("euler", "heun", "plms")] == [20, 39, 21]
