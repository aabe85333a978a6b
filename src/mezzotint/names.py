"""What can be asked for by name: samplers, spacings and presets, with every other program's name for them. No torch.

The functions behind the names are in mezzotint.diffusion.samplers and .spacing, the networks in
mezzotint.models.presets; tests keep the tables and the code equal. Names are matched without regard to case, spaces
and punctuation ("DPM++ 2M", "dpmpp_2m"), and a sampler's may end in a spacing's ("DPM++ 2M Karras", "dpmpp_2m_k").
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeVar, runtime_checkable

from mezzotint.errors import RequestError, unknown

Value = float | int | bool | str | tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a sampler. `low` and `high` bound numbers, None is no bound; `choices` lists the words allowed."""

    default: Value
    low: float | int | None
    high: float | int | None
    doc: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerInfo:
    """What a user needs to know of a sampler before choosing it.

    `order`: by doubling the steps from 64 to 128 the error on Gaussian data falls by 2^order (of the result; of its
    variance where noise is drawn); measured by the tests, 0 for samplers that are no solvers. `evaluations` is (a, b):
    n steps to sigma 0 ask the network a*n + b times, but one step always asks once. `is_stochastic`: draws noise with
    default options; `is_brownian`: means it as increments of one path, not as independent draws. `spacing` is the one
    to use when none is asked for.
    """

    name: str
    title: str
    order: float
    spacing: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    evaluations: tuple[int, int] = (1, 0)
    is_stochastic: bool = False
    is_brownian: bool = False

    def cost(self, steps: int) -> int:
        """Network evaluations of that many steps to sigma 0."""
        return 1 if steps == 1 else self.evaluations[0] * steps + self.evaluations[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpacingInfo:
    """Which noise levels a trajectory visits; the exact rules are in mezzotint.diffusion.spacing."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetInfo:
    """What to ask of a model when the request and its files do not say: size in pixels, steps, guidance, sampler.

    `objective` is what the published weights predict; a file may say otherwise. `note` names what is peculiar.
    """

    name: str
    title: str
    objective: Literal["epsilon", "v_prediction"] = "epsilon"
    width: int = 512
    height: int = 512
    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpmpp_2m"
    spacing: str = "karras"
    note: str = ""


_S_NOISE = Option(1.0, 0.0, 2.0, "factor on all noise that is added")
_ETA = Option(1.0, 0.0, 1.0, "share of the noise that is new at every step; 0 is deterministic")
_CHURN = {
    "s_churn": Option(0.0, 0.0, None, "noise added before steps, spread over all of them; 0 is deterministic"),
    "s_tmin": Option(0.0, 0.0, None, "lowest sigma with churn"),
    "s_tmax": Option(None, 0.0, None, "highest sigma with churn; none is no limit"),
    "s_noise": _S_NOISE,
}
_ANCESTRAL = {"eta": _ETA, "s_noise": _S_NOISE}
_LOWER_ORDER_FINAL = "lower the order over the last steps, if there are fewer than 15"
_DPM_FINAL = {
    "lower_order_final": Option(False, None, None, _LOWER_ORDER_FINAL),
    "euler_at_final": Option(False, None, None, "make the last step first order"),
}
_SOLVER_TYPE = Option(
    "midpoint", None, None, "weight of the slope of x0: at the middle, or exact", ("midpoint", "heun")
)

_Row = TypeVar("_Row", SamplerInfo, SpacingInfo, PresetInfo)


def _table(*rows: _Row) -> dict[str, _Row]:
    return {row.name: row for row in rows}


SAMPLERS: dict[str, SamplerInfo] = _table(
    SamplerInfo(
        name="ddim",
        title="DDIM",
        order=1.0,
        spacing="leading",
        aliases=("DDIMScheduler",),
        options={"eta": Option(0.0, 0.0, 1.0, "share of DDPM's noise; 0 is deterministic")},
    ),
    SamplerInfo(
        name="ddpm",
        title="DDPM",
        order=1.0,
        spacing="leading",
        aliases=("DDPMScheduler",),
        options={
            "variance": Option(
                "fixed_small", None, None, "which bound of the posterior's variance", ("fixed_small", "fixed_large")
            )
        },
        is_stochastic=True,
    ),
    SamplerInfo(
        name="plms",
        title="PLMS",
        order=2.0,
        spacing="leading",
        aliases=("pndm", "PNDMScheduler"),
        options={
            "combines": Option(
                "epsilon", None, None, "what the weights are put on: noise or v", ("epsilon", "v_prediction")
            )
        },
        evaluations=(1, 1),
    ),
    SamplerInfo(
        name="lms",
        title="LMS",
        order=3.6,
        spacing="uniform",
        aliases=("k_lms", "LMSDiscreteScheduler"),
        options={"order": Option(4, 1, 4, "how many past slopes are used")},
    ),
    SamplerInfo(
        name="euler",
        title="Euler",
        order=1.0,
        spacing="uniform",
        aliases=("k_euler", "EulerDiscreteScheduler"),
        options=_CHURN,
    ),
    SamplerInfo(
        name="euler_ancestral",
        title="Euler a",
        order=1.0,
        spacing="uniform",
        aliases=("k_euler_a", "k_euler_ancestral", "EulerAncestralDiscreteScheduler"),
        options=_ANCESTRAL,
        is_stochastic=True,
    ),
    SamplerInfo(
        name="heun",
        title="Heun",
        order=2.0,
        spacing="uniform",
        aliases=("k_heun", "HeunDiscreteScheduler"),
        options=_CHURN,
        evaluations=(2, -1),
    ),
    SamplerInfo(
        name="dpm2",
        title="DPM2",
        order=2.0,
        spacing="karras",
        aliases=("k_dpm_2", "dpm_2", "kdpm_2", "KDPM2DiscreteScheduler"),
        options=_CHURN,
        evaluations=(2, -1),
    ),
    SamplerInfo(
        name="dpm2_ancestral",
        title="DPM2 a",
        order=2.0,
        spacing="karras",
        aliases=("k_dpm_2_a", "dpm_2_ancestral", "k_dpm_2_ancestral", "kdpm_2_a", "KDPM2AncestralDiscreteScheduler"),
        options=_ANCESTRAL,
        evaluations=(2, -1),
        is_stochastic=True,
    ),
    SamplerInfo(
        name="dpmpp_2s_ancestral",
        title="DPM++ 2S a",
        order=2.0,
        spacing="karras",
        aliases=("k_dpmpp_2s_a", "dpmpp_2s_a", "k_dpmpp_2s_ancestral"),
        options=_ANCESTRAL,
        evaluations=(2, -1),
        is_stochastic=True,
    ),
    SamplerInfo(
        name="dpmpp_sde",
        title="DPM++ SDE",
        order=2.1,
        spacing="karras",
        aliases=("k_dpmpp_sde", "dpmpp_sde_gpu", "DPMSolverSDEScheduler"),
        options={**_ANCESTRAL, "r": Option(0.5, 0.05, 1.0, "where in a step the second evaluation is")},
        evaluations=(2, -1),
        is_stochastic=True,
        is_brownian=True,
    ),
    SamplerInfo(
        name="dpmpp_2m",
        title="DPM++ 2M",
        order=2.0,
        spacing="karras",
        aliases=("k_dpmpp_2m", "DPMSolverMultistepScheduler"),
        options={
            "order": Option(2, 1, 3, "how many past x0 are used"),
            "solver_type": _SOLVER_TYPE,
            **_DPM_FINAL,
            "lower_order_final": Option(True, None, None, _LOWER_ORDER_FINAL),
        },
    ),
    SamplerInfo(
        name="dpmpp_2m_sde",
        title="DPM++ 2M SDE",
        order=2.0,
        spacing="exponential",
        aliases=("k_dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
        options={**_ANCESTRAL, "solver_type": _SOLVER_TYPE, **_DPM_FINAL},
        is_stochastic=True,
        is_brownian=True,
    ),
    SamplerInfo(
        name="dpmpp_3m_sde",
        title="DPM++ 3M SDE",
        order=2.0,
        spacing="exponential",
        aliases=("k_dpmpp_3m_sde", "dpmpp_3m_sde_gpu"),
        options=_ANCESTRAL,
        is_stochastic=True,
        is_brownian=True,
    ),
    SamplerInfo(
        name="unipc",
        title="UniPC",
        order=3.3,
        spacing="linspace_dpm",
        aliases=("uni_pc", "uni_pc_bh2", "UniPCMultistepScheduler"),
        options={
            "order": Option(2, 1, 3, "how many past x0 the prediction uses"),
            "solver_type": Option("bh2", None, None, "B(h) of the paper: h, or exp(h) - 1", ("bh1", "bh2")),
            "lower_order_final": Option(True, None, None, "lower the order over the last steps"),
            "disable_corrector": Option((), None, None, "steps whose result stays as predicted"),
        },
    ),
    SamplerInfo(
        name="deis",
        title="DEIS",
        order=2.0,
        spacing="linspace_dpm",
        aliases=("DEISMultistepScheduler",),
        options={
            "order": Option(2, 1, 3, "how many past slopes are used"),
            "lower_order_final": Option(True, None, None, _LOWER_ORDER_FINAL),
        },
    ),
    SamplerInfo(
        name="lcm",
        title="LCM",
        order=0.0,
        spacing="lcm",
        aliases=("LCMScheduler",),
        options={"timestep_scaling": Option(10.0, 1.0, 1000.0, "how fast the jump turns into x0 as t grows")},
        is_stochastic=True,
    ),
    SamplerInfo(
        name="tcd",
        title="TCD",
        order=0.0,
        spacing="lcm",
        aliases=("TCDScheduler",),
        options={"gamma": Option(0.3, 0.0, 1.0, "share of the next t that is jumped over and noised again")},
        is_stochastic=True,
    ),
    SamplerInfo(
        name="restart",
        title="Restart",
        order=2.0,
        spacing="karras",
        options={"s_noise": _S_NOISE},
        evaluations=(2, -1),
        is_stochastic=True,
    ),
)

SPACINGS: dict[str, SpacingInfo] = _table(
    SpacingInfo(name="leading", title="multiples of T // n, from the least noisy"),
    SpacingInfo(name="leading_dpm", title="leading for n + 1 steps, without its last"),
    SpacingInfo(name="linspace", title="even training steps, both ends included"),
    SpacingInfo(name="linspace_dpm", title="linspace for n + 1 steps, without its last"),
    SpacingInfo(name="trailing", title="even training steps from the noisiest", aliases=("turbo",)),
    SpacingInfo(name="ldm", title="the training steps of CompVis' DDIM", aliases=("ddim", "ddim_uniform")),
    SpacingInfo(name="uniform", title="even training steps, not whole: k-diffusion's", aliases=("normal", "discrete")),
    SpacingInfo(name="sgm", title="the training steps of Stability's SGM", aliases=("LegacyDDPM",)),
    SpacingInfo(name="sgm_uniform", title="uniform for n + 1 steps, without its last", aliases=("SGMUniform",)),
    SpacingInfo(name="simple", title="every (T / n)-th training step from the noisiest"),
    SpacingInfo(name="beta", title="quantiles of a beta distribution: dense at both ends"),
    SpacingInfo(name="lcm", title="training steps that consistency models were distilled at"),
    SpacingInfo(
        name="karras", title="even in sigma^(1/7): many steps at low noise", aliases=("k", "use_karras_sigmas")
    ),
    SpacingInfo(
        name="exponential",
        title="even in log sigma",
        aliases=("polyexponential", "use_exponential_sigmas"),
    ),
    SpacingInfo(name="beta_sigmas", title="beta's quantiles of sigma itself", aliases=("use_beta_sigmas",)),
    SpacingInfo(name="ays", title="Align Your Steps, for SD 1", aliases=("align_your_steps", "ays_sd15")),
    SpacingInfo(name="ays_sdxl", title="Align Your Steps, for SDXL", aliases=("align_your_steps_sdxl",)),
)

_V_768 = PresetInfo(name="sd2-v", title="Stable Diffusion 2.x 768", objective="v_prediction", width=768, height=768)
_UNCLIP = replace(_V_768, guidance=10.0, note="a second, cosine schedule adds noise to the image embedding")
_XL = PresetInfo(
    name="sdxl",
    title="Stable Diffusion XL base",
    width=1024,
    height=1024,
    steps=30,
    guidance=5.0,
    sampler="euler",
    spacing="leading",
    note="leading with offset 1",
)

PRESETS: dict[str, PresetInfo] = _table(
    PresetInfo(name="sd15", title="Stable Diffusion 1.x"),
    PresetInfo(name="sd15-inpaint", title="Stable Diffusion 1.5 inpainting"),
    PresetInfo(name="sd15-ip2p", title="InstructPix2Pix", note="a second guidance, of the image: 1.5"),
    PresetInfo(name="sd2", title="Stable Diffusion 2.x base"),
    _V_768,
    PresetInfo(name="sd2-inpaint", title="Stable Diffusion 2 inpainting"),
    PresetInfo(name="sd2-depth", title="Stable Diffusion 2 depth"),
    replace(_UNCLIP, name="sd2-unclip-l", title="Stable Diffusion 2.1 unCLIP, ViT-L"),
    replace(_UNCLIP, name="sd2-unclip-h", title="Stable Diffusion 2.1 unCLIP, ViT-H"),
    _XL,
    replace(_XL, name="sdxl-inpaint", title="Stable Diffusion XL inpainting", guidance=7.5),
    replace(_XL, name="sdxl-ip2p", title="InstructPix2Pix XL", width=768, height=768, guidance=3.0),
    replace(_XL, name="sdxl-refiner", title="Stable Diffusion XL refiner"),
    PresetInfo(
        name="x4-upscaler",
        title="Stable Diffusion x4 upscaler",
        objective="v_prediction",
        steps=50,
        guidance=9.0,
        sampler="ddim",
        spacing="leading",
        note="its schedule ends at beta 0.02; a second one adds noise to the small image",
    ),
    PresetInfo(name="tiny", title="Tiny, for tests and demonstrations", width=64, height=64),
    PresetInfo(name="tiny-xl", title="Tiny in the shape of SDXL, for tests and demonstrations", width=64, height=64),
)

IMPLIED: dict[str, tuple[str, dict[str, Value]]] = {
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "k_dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2m_sde_heun_gpu": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_3m": ("dpmpp_2m", {"order": 3}),
}
"""Names elsewhere that are one of our samplers with other options."""


@runtime_checkable
class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...


def plain(name: str) -> str:
    """A name without what people write differently: "DPM++ 2M", "dpmpp-2m" and "DPMPP_2M" are "dpmpp2m"."""
    return "".join(c for c in name.lower().replace("++", "pp") if c.isalnum())


def _index(rows: Iterable[_Named]) -> dict[str, str]:
    return {plain(word): row.name for row in rows for word in (row.name, *row.aliases)}


_SAMPLER_OF = {
    **_index(SAMPLERS.values()),
    **{plain(row.title): row.name for row in SAMPLERS.values()},
    **{plain(alias): name for alias, (name, _) in IMPLIED.items()},
}
_SPACING_OF = _index(SPACINGS.values())
_OPTIONS_OF = {plain(alias): options for alias, (_, options) in IMPLIED.items()}


def _split(alias: str) -> tuple[str, str | None] | None:
    """The plain name of a sampler and the spacing after it, or None if there is no such sampler."""
    word = plain(alias)
    if word in _SAMPLER_OF:
        return word, None
    for ending in sorted(_SPACING_OF, key=len, reverse=True):
        if word.endswith(ending) and word.removesuffix(ending) in _SAMPLER_OF:
            return word.removesuffix(ending), _SPACING_OF[ending]
    return None


def find_sampler(alias: str) -> tuple[SamplerInfo, str | None]:
    """The sampler that any program calls so, and the spacing that the name ends with, if it does.

    `implied_options` has the options that a name such as "DPM++ 2M SDE Heun" stands for.

    Raises: RequestError for an unknown name, with the nearest known one.
    """
    found = _split(alias)
    if found is None:
        raise RequestError(unknown("sampler", alias, SAMPLERS))
    word, spacing = found
    return SAMPLERS[_SAMPLER_OF[word]], spacing


def implied_options(alias: str) -> dict[str, Value]:
    """Options, other than the defaults, that a sampler's name stands for: mostly none."""
    found = _split(alias)
    return dict(_OPTIONS_OF.get(found[0], {})) if found else {}


def find_spacing(alias: str) -> SpacingInfo:
    """The spacing that any program calls so.

    Raises: RequestError for an unknown name, with the nearest known one.
    """
    if plain(alias) not in _SPACING_OF:
        raise RequestError(unknown("spacing", alias, SPACINGS))
    return SPACINGS[_SPACING_OF[plain(alias)]]
