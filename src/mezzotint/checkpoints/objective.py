"""What a single file was trained to predict: epsilon or v. Shapes never tell: evidence is tried in order of strength.

Programs disagree here, which is why a wrong guess is common: one assumes v for every SD 2 file, one looks at the step
counter, one at a statistic of the weights, one runs the network. Every answer says which rule gave it.
"""

from collections.abc import Callable

from mezzotint.checkpoints.detection import Objective, Reason, refusal
from mezzotint.checkpoints.files import Header, read_state
from mezzotint.checkpoints.signatures import Rule, UNetKeys, shown

NORM_BIAS_LIMIT = 0.09  # standard deviation of the last attention's norm bias: below for epsilon, above for v

_OTHER: dict[Objective, tuple[str, ...]] = {"epsilon": ("v_prediction",), "v_prediction": ("epsilon",)}
_SPOKEN: dict[str, Objective] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
_ARCHITECTURES: dict[str, Objective] = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
_STEPS: dict[int, Objective] = {875_000: "epsilon", 220_000: "epsilon", 110_000: "v_prediction"}

_Answer = tuple[Objective, Reason] | None


def objective_of(header: Header, rule: Rule, unet: UNetKeys) -> tuple[Objective, Reason]:
    """What the U-Net of a file predicts, by the first rule that has an answer.

    Raises: CheckpointError for the EDM objectives of CosXL and Playground 2.5, which are not supported.
    """
    refuse_edm(header, rule.title)
    for answer in OBJECTIVE_RULES:
        if found := answer(header, rule, unet):
            return found
    evidence = "no metadata, marker, known global_step or trained norm bias in the file"
    default = Reason("SD 2 is taken for v-prediction unless it says otherwise", evidence, "guess", ("epsilon",))
    return "v_prediction", default


def refuse_edm(header: Header, title: str) -> None:
    """Raises: CheckpointError if a marker key announces an EDM objective."""
    if key := next((key for key in ("edm_vpred.sigma_max", "edm_mean", "edm_std") if key in header.tensors), None):
        raise refusal(
            f"not supported: {title} trained for an EDM objective (CosXL, Playground 2.5)",
            f"{header.path}: marker {shown(header.tensors, key)}",
            "use a checkpoint for epsilon or v-prediction",
        )


def from_metadata(header: Header, rule: Rule, unet: UNetKeys) -> _Answer:
    """ModelSpec names the objective, or an architecture that has only one."""
    for field, known in (("modelspec.prediction_type", _SPOKEN), ("modelspec.architecture", _ARCHITECTURES)):
        said = header.metadata.get(field, "").lower()
        if said in known:
            return known[said], Reason("the metadata says so", f"{field} = {said!r}", "certain")
    return None


def from_markers(header: Header, rule: Rule, unet: UNetKeys) -> _Answer:
    """Empty tensors whose names announce the objective. Zero terminal SNR leaves nothing for epsilon to predict."""
    key = next((key for key in ("v_pred", "ztsnr") if key in header.tensors), None)
    if key is None:
        return None
    return "v_prediction", Reason(f"marker {key!r} is there", shown(header.tensors, key), "certain")


def from_preset(header: Header, rule: Rule, unet: UNetKeys) -> _Answer:
    """Shapes that belong to one published model tell what that one was trained for; SD 2 text models are two."""
    if rule.preset == "sd2":
        return None
    evidence = "no metadata and no marker says otherwise"
    return rule.objective, Reason(f"{rule.title} was trained for it", evidence, "likely", _OTHER[rule.objective])


def from_global_step(header: Header, rule: Rule, unet: UNetKeys) -> _Answer:
    """Published SD 2 files stopped at known steps. Source: the numbers that diffusers and InvokeAI test."""
    text = header.metadata.get("global_step", "")
    step = int(text) if text.isdecimal() and len(text) < 12 else None
    info = header.tensors.get("global_step")
    if step is None and info is not None and info.shape in {(), (1,)} and header.path.is_file():
        step = int(read_state(header.path, ["global_step"])["global_step"].item())
    if step not in _STEPS:
        return None
    found = _STEPS[step]
    return found, Reason(
        "training stopped where a published file did", f"global_step = {step}", "likely", _OTHER[found]
    )


def from_norm_bias(header: Header, rule: Rule, unet: UNetKeys) -> _Answer:
    """Biases of the last attention's norm spread wider in v models. Source: the statistic that ComfyUI uses."""
    block = "output_blocks.11.1" if unet.layout == "ldm" else "up_blocks.3.attentions.2"
    key = f"{unet.prefix}{block}.transformer_blocks.0.norm1.bias"
    if key not in header.tensors or not header.path.is_file():  # a component in shards has no single file
        return None
    spread = float(read_state(header.path, [key])[key].double().std(correction=0))
    if not spread > 0:  # zeros or NaN: not trained
        return None
    found: Objective = "v_prediction" if spread > NORM_BIAS_LIMIT else "epsilon"
    evidence = f"{key}: standard deviation {spread:.4f}, the limit is {NORM_BIAS_LIMIT}"
    return found, Reason("spread of the last attention's norm bias", evidence, "likely", _OTHER[found])


OBJECTIVE_RULES: tuple[Callable[[Header, Rule, UNetKeys], _Answer], ...] = (
    from_metadata,
    from_markers,
    from_preset,
    from_global_step,
    from_norm_bias,
)
