"""Bodies of the AUTOMATIC1111 dialect, and what of them a request can say."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from mezzotint.errors import RequestError
from mezzotint.names import SAMPLERS, find_sampler, find_spacing, implied_options
from mezzotint.pipeline.request import MAX_SEED, MAX_SIDE
from mezzotint.serve.foreign import read_parameters
from mezzotint.serve.wish import MAX_PROMPT

MAX_BASE64 = 1 << 26
LEAST_STRENGTH = 0.001  # of 0 the web UI makes one step
RESIZES = ("stretch", "crop", "pad", "stretch")
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

Prompt = Annotated[str, Field(max_length=MAX_PROMPT)]
Word = Annotated[str, Field(max_length=100)]
Number = Annotated[float, Field(ge=-1e6, le=1e6)]
Base64 = Annotated[str, Field(max_length=MAX_BASE64)]


class Text2Image(BaseModel):
    """txt2img. Defaults are the web UI's."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: Prompt = ""
    negative_prompt: Prompt = ""
    seed: Annotated[int, Field(ge=-1, le=MAX_SEED)] = -1
    sampler_name: Word | None = None
    sampler_index: Word | None = None
    scheduler: Word | None = None
    batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    n_iter: Annotated[int, Field(ge=1, le=64)] = 1
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    cfg_scale: Annotated[float, Field(ge=0, le=100)] = 7.0
    width: Annotated[int, Field(ge=8, le=MAX_SIDE)] = 512
    height: Annotated[int, Field(ge=8, le=MAX_SIDE)] = 512
    eta: Annotated[float | None, Field(ge=0, le=1)] = None
    s_churn: Number | None = None
    s_tmin: Number | None = None
    s_tmax: Number | None = None
    s_noise: Number | None = None
    denoising_strength: Annotated[float | None, Field(ge=0, le=1)] = None
    enable_hr: bool = False
    tiling: bool | None = None
    restore_faces: bool | None = None
    styles: Annotated[list[Word], Field(max_length=100)] | None = None
    subseed_strength: Number = 0
    override_settings: Annotated[dict[str, Any], Field(max_length=200)] = Field(default_factory=dict)  # Any: JSON
    script_name: Word | None = None
    alwayson_scripts: Annotated[dict[str, Any], Field(max_length=100)] = Field(default_factory=dict)  # Any: JSON
    send_images: bool = True
    save_images: bool = False
    infotext: Prompt | None = None

    def fields(self, warnings: list[str]) -> dict[str, Any]:  # Any: each field has its own type
        """The fields of a request. Raises: HTTPException for an unknown sampler."""
        fields: dict[str, Any] = {  # Any: as above
            "prompt": self.prompt,
            "negative": self.negative_prompt,
            "seed": None if self.seed == -1 else self.seed,
            "steps": self.steps,
            "guidance": self.cfg_scale,
            "width": _multiple(self.width, "width", warnings),
            "height": _multiple(self.height, "height", warnings),
            "count": self.batch_size * self.n_iter,
        }
        fields |= self._sampling(warnings)
        skip = self.override_settings.get("CLIP_stop_at_last_layers")
        if isinstance(skip, int) and not isinstance(skip, bool) and 1 < skip <= 64:
            fields["clip_skip"] = skip
        if self.infotext:
            found, _, told = read_parameters(self.infotext)
            warnings += told
            given = self.model_fields_set
            names = {"negative": "negative_prompt", "guidance": "cfg_scale", "sampler": "sampler_name"}
            fields |= {key: value for key, value in found.items() if names.get(key, key) not in given}
        for name, is_wanted in (
            ("enable_hr", self.enable_hr),
            ("tiling", self.tiling),
            ("restore_faces", self.restore_faces),
            ("styles", self.styles),
            ("subseed_strength", self.subseed_strength),
            ("script_name", self.script_name),
            ("alwayson_scripts", self.alwayson_scripts),
        ):
            if is_wanted:
                warnings.append(f"{name}: not done here")
        warnings += [f"{key[:60]}: ignored" for key in sorted(self.model_extra or {})[:20]]
        return {key: value for key, value in fields.items() if value is not None}

    def echo(self) -> dict[str, Any]:  # Any: JSON
        """The request as it is answered: what is known of it, without pictures."""
        hidden = {"init_images", "mask", "override_settings", "alwayson_scripts"}
        return self.model_dump(mode="json", include=set(type(self).model_fields) - hidden)

    def _sampling(self, warnings: list[str]) -> dict[str, Any]:  # Any: each field has its own type
        name = self.sampler_name or self.sampler_index
        fields: dict[str, Any] = {}  # Any: as above
        if self.scheduler and self.scheduler.lower() != "automatic":
            try:
                fields["spacing"] = find_spacing(self.scheduler).name
            except RequestError:
                warnings.append(f"scheduler {self.scheduler!r}: unknown here, the sampler's own is used")
        if name is None:
            return fields
        try:
            info, spacing = find_sampler(name)
        except RequestError:
            raise HTTPException(404, "Sampler not found") from None
        fields["sampler"] = info.name
        if spacing and "spacing" not in fields:
            fields["spacing"] = spacing
        options = dict[str, Any](implied_options(name))  # Any: as above
        known = SAMPLERS[info.name].options
        if self.eta is not None and "eta" in known:
            options["eta"] = self.eta
        for key in CHURN:
            value = getattr(self, key)
            if value is not None and key in known and (value or key == "s_noise") and value != known[key].default:
                options[key] = value
        if options:
            fields["options"] = options
        return fields


class Image2Image(Text2Image):
    """img2img."""

    init_images: Annotated[list[Base64], Field(max_length=16)] | None = None
    resize_mode: Annotated[int, Field(ge=0, le=3)] = 0
    mask: Base64 | None = None
    mask_blur: Annotated[int | None, Field(ge=0, le=128)] = None
    mask_blur_x: Annotated[int, Field(ge=0, le=128)] = 4
    mask_blur_y: Annotated[int, Field(ge=0, le=128)] = 4
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] = 0
    inpaint_full_res: bool | int = True
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] = 0
    include_init_images: bool = False

    def fields(self, warnings: list[str]) -> dict[str, Any]:  # Any: each field has its own type
        """The fields of a request, without its pictures."""
        strength = 0.75 if self.denoising_strength is None else self.denoising_strength
        fields = super().fields(warnings) | {
            "strength": max(LEAST_STRENGTH, strength),
            "start": "a1111",
            "resize": RESIZES[self.resize_mode],
        }
        if self.mask:
            fields["feather"] = self.mask_blur_x if self.mask_blur is None else self.mask_blur
            if self.inpainting_fill != 1:
                warnings.append("inpainting_fill: the original is under the mask, as with 1")
            if self.inpaint_full_res:
                warnings.append("inpaint_full_res: the whole picture is made at width x height, then pasted")
        return fields


class One(BaseModel):
    """A picture."""

    image: Base64


class Extra(BaseModel):
    """A size to bring a picture to."""

    image: Base64 = ""
    resize_mode: Annotated[int, Field(ge=0, le=1)] = 0
    upscaling_resize: Annotated[float, Field(gt=0, le=8, allow_inf_nan=False)] = 2
    upscaling_resize_w: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 512
    upscaling_resize_h: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 512
    upscaling_crop: bool = True


class BatchImage(BaseModel):
    """A picture with a name, which is not used."""

    data: Base64
    name: Annotated[str, Field(max_length=1000)] = ""


class Batch(Extra):
    """Several pictures."""

    imageList: Annotated[list[BatchImage], Field(max_length=16)]  # the web UI's name


def _multiple(value: int, name: str, warnings: list[str]) -> int:
    """The nearest multiple of 8: the web UI rounds."""
    nearest = max(8, value // 8 * 8)
    if nearest != value:
        warnings.append(f"{name} {value}: rounded to {nearest}")
    return nearest
