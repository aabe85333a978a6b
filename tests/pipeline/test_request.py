"""What may be asked for, and the words that refuse the rest."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mezzotint.errors import RequestError
from mezzotint.images import encode
from mezzotint.pipeline.request import ImageRef, Request


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 515}, "width 515: must be a multiple of 8; nearest are 512 and 520"),
        ({"height": 3}, "height 3: must be a multiple of 8; nearest is 8"),
        ({"width": 9000}, "width 9000: must be from 8 to 8192"),
        ({"steps": 0}, "steps 0: at least 1 step is needed"),
        ({"steps": 2000}, "steps 2000: must be less than or equal to 1000"),
        ({"count": 0}, "count 0: must be greater than or equal to 1"),
        ({"seed": -1}, "seed -1: must be greater than or equal to 0"),
        ({"guidance": float("nan")}, "guidance nan: must be less than or equal to 100"),
        ({"sampler": "dpmp_2m"}, "unknown sampler 'dpmp_2m'; did you mean 'dpmpp_2m'? one of: ddim, "),
        ({"spacing": "kerras"}, "unknown spacing 'kerras'; did you mean 'karras'? one of: "),
        ({"promt": "a fox"}, "unknown field 'promt'; did you mean 'prompt'? one of: "),
        ({"mask": b"x"}, "mask: needs the image that it belongs to; give image too"),
        ({"strength": 0.5}, "strength: means something only with an image; give image or leave it out"),
        ({"image": b"x", "strength": 0}, "strength 0: must be greater than 0"),
        ({"guidance_interval": (5, 1)}, "guidance_interval (5.0, 1.0): the lowest sigma comes first"),
        ({"sampler": "ddim", "options": {"eta": 2}}, "options.eta = 2: must be from 0 to 1"),
        ({"sampler": "euler", "options": {"s_churn": -1}}, "options.s_churn = -1: must be at least 0"),
        ({"sampler": "ddim", "options": {"etta": 1}}, "unknown option of ddim 'etta'; did you mean 'eta'?"),
        ({"sampler": "unipc", "options": {"solver_type": "bh3"}}, "unknown solver_type of unipc 'bh3'"),
        ({"image": {"path": "a.png", "upload": "1"}}, "exactly one of path, bytes and upload id"),
        ({"width": 515, "steps": 0}, "nearest are 512 and 520; steps 0: at least 1 step is needed"),
    ],
)
def test_a_wrong_field_is_refused_in_one_line(fields: dict[str, Any], message: str):
    with pytest.raises(RequestError) as caught:
        Request(**fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_other_programs_become_ours():
    request = Request(sampler="DPM++ 2M SDE Heun Karras")
    assert (request.sampler, request.spacing, request.options) == ("dpmpp_2m_sde", "karras", {"solver_type": "heun"})
    assert Request(sampler="DPM++ 2M Karras", spacing="normal").spacing == "uniform"


def test_none_is_not_empty():
    assert Request().negative is None
    assert Request(negative="").negative == ""


def test_a_request_is_a_value():
    request = Request(prompt="a fox", seed=0, image=ImageRef(data=b"picture"))
    assert request == Request(**dict(request))
    with pytest.raises(ValueError, match="frozen"):
        request.prompt = "a cat"


def test_a_picture_is_recorded_by_its_hash(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(Image.new("RGB", (8, 8), (1, 2, 3))))
    ref = ImageRef.model_validate(path).recorded()
    again = Request(image=Request(image=ref).model_dump(mode="json")["image"]).image
    assert again is not None
    assert again.open("image").getpixel((0, 0)) == (1, 2, 3)
    path.write_bytes(encode(Image.new("RGB", (8, 8))))
    with pytest.raises(RequestError, match=r"a.png' has changed \(sha256 \w{10}, recorded \w{10}\)"):
        ImageRef(**ref.model_dump()).open("image")


def test_bytes_are_not_written_into_records():
    ref = ImageRef.model_validate(Image.new("RGB", (8, 8))).recorded()
    written = ref.model_dump(mode="json", exclude_none=True)
    assert written == {"sha256": ref.sha256}
    with pytest.raises(RequestError, match="is not here; give it as a path"):
        ImageRef(**written).open("image")


def test_asking_needs_no_torch():
    code = "import sys, mezzotint; mezzotint.Request(prompt='x', sampler='Euler a'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
