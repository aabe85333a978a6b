"""The programs that benchmarks/cpu_speed.py compares, each at its strongest setting on processors, each as a process.

A process reads one command a line: a part (`unet`, `decode`, `picture STEPS`), `save FILE`, which keeps the part's
output, or, ours only, `rates` and `work`. It answers with the seconds that passed and that processors spent, or JSON;
`begins` goes before, when a picture's first step begins. Nothing but the standard library and NumPy is imported before
a program is chosen: each lives in an environment of its own (benchmarks/peers/).
"""

import argparse
import json
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, SEED, GUIDANCE, TIMESTEP = "a red fox in the snow", 0, 7.5, 500.0
SIZES = {"sd15": 512, "sd2": 512, "sd2-v": 768, "sdxl": 1024}


def begins(*_: object) -> None:
    """Tell that the U-Net is about to be asked."""
    print("begins", flush=True)


class Diffusers:
    """diffusers; in bfloat16 as its own guides set it up for processors: channels last, fused projections."""

    def __init__(self, asked: argparse.Namespace) -> None:
        import torch

        torch.set_num_threads(asked.threads)
        self.torch, self.asked, self.dtype = torch, asked, getattr(torch, asked.dtype)
        self.pipe = self.pipeline()
        self.pipe.set_progress_bar_config(disable=True)

    def pipeline(self) -> Any:
        """All of it, or what the parts need."""
        from diffusers import DiffusionPipeline

        parts = self.asked.parts
        is_whole = "picture" in parts or "cold" in parts
        needs = {"unet": parts != ["decode"], "vae": parts != ["unet"], "text_encoder": is_whole}
        if self.asked.preset == "sdxl":
            needs["text_encoder_2"] = is_whole
        absent = {name: None for name, is_needed in needs.items() if not is_needed}
        pipe = DiffusionPipeline.from_pretrained(str(self.asked.folder), dtype=self.dtype, **absent)
        if self.dtype is self.torch.bfloat16:
            for network in filter(None, (pipe.unet, pipe.vae)):
                network.to(memory_format=self.torch.channels_last)
                network.fuse_qkv_projections()
        return pipe

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What all contenders compute the same function of."""
        return drawn(self.asked)

    def unet(self) -> Any:
        """The U-Net's output for a guided step: all pictures without the prompt, then with it."""
        x, context, pooled, sizes = (self.inputs[key].to(self.dtype) for key in ("x", "context", "pooled", "sizes"))
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}} if self.asked.preset == "sdxl" else {}
        t = self.torch.tensor(TIMESTEP)
        return self.pipe.unet(x, t, encoder_hidden_states=context, return_dict=False, **more)[0].float()

    def decode(self) -> Any:
        """The image of a latent."""
        vae = self.pipe.vae
        latent = self.inputs["latent"].to(self.dtype) / vae.config.scaling_factor
        return vae.decode(latent, return_dict=False)[0].float()

    def picture(self, steps: int) -> Any:
        """From a prompt to the bytes of a PNG; its pixels. Euler at evenly spaced training steps, in every program."""
        from diffusers import EulerDiscreteScheduler

        pipe = self.pipe
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
        generator = self.torch.Generator("cpu").manual_seed(SEED)
        options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "generator": generator}
        scale = pipe.scheduler.scale_model_input
        pipe.scheduler.scale_model_input = lambda *x: (begins(), scale(*x))[1]  # a hook would be compiled
        return written(pipe(PROMPT, height=self.asked.size, width=self.asked.size, **options).images[0])


class Compiled(Diffusers):
    """diffusers in bfloat16 compiled by torch.compile, weights frozen into the program."""

    def pipeline(self) -> Any:
        """As above, to be compiled when first called."""
        import torch._inductor.config

        torch._inductor.config.freezing = True
        pipe = super().pipeline()
        if pipe.unet is not None:
            pipe.unet.compile()
        if pipe.vae is not None:
            pipe.vae.decoder.compile()
        return pipe


class OpenVino(Diffusers):
    """diffusers' pipeline with networks that OpenVINO has converted: fixed shapes, bfloat16, compiled programs kept."""

    def pipeline(self) -> Any:
        """Modules that own no memory, and call OpenVINO's programs."""
        from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

        self.dtype = self.torch.float32  # outside of its programs
        kept = self.asked.folder / "openvino" / f"{self.asked.size}-{self.asked.batch}"
        if not (kept / "text.xml").exists():
            self.convert(kept)
        with self.torch.device("meta"):
            unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(self.asked.folder / "unet"))
            vae = AutoencoderKL.from_config(AutoencoderKL.load_config(self.asked.folder / "vae"))
            text = CLIPTextModel(CLIPTextConfig.from_pretrained(self.asked.folder / "text_encoder"))
        modules = {name: part.to_empty(device="cpu") for name, part in zip(NETWORKS, (unet, vae, text), strict=True)}
        run = {name: self.compiled(kept / f"{name}.xml") for name in NETWORKS}
        unet.forward = lambda x, t, encoder_hidden_states, **_: (run["unet"](x, t.float(), encoder_hidden_states),)
        vae.decode = lambda z, **_: (run["vae"](z),)
        text.forward = lambda ids, **_: (run["text"](ids),)
        return DiffusionPipeline.from_pretrained(
            str(self.asked.folder), unet=modules["unet"], vae=modules["vae"], text_encoder=modules["text"]
        )

    def compiled(self, file: Path) -> Any:
        """A function of tensors."""
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "CACHE_DIR": str(file.parent)}
        settings["INFERENCE_NUM_THREADS"] = str(self.asked.threads)
        program = openvino.Core().compile_model(file, "CPU", settings)
        request = program.create_infer_request()

        def run(*inputs: Any) -> Any:
            outputs = request.infer([part.contiguous().numpy() for part in inputs], share_inputs=True)
            return self.torch.from_numpy(outputs[0].copy())

        return run

    def convert(self, kept: Path) -> None:
        """Write the three networks as OpenVINO reads them, weights in 16 bits."""
        import openvino
        from torch import nn

        torch = self.torch
        self.asked.parts = ["picture"]
        pipe = Diffusers.pipeline(self)

        class Called(nn.Module):
            """A module that is a method of another."""

            def __init__(self, owner: nn.Module, call: Any) -> None:
                super().__init__()
                self.owner, self.call = owner, call

            def forward(self, *inputs: Any) -> Any:
                return self.call(*inputs)[0]

        pipe.text_encoder.set_attn_implementation("eager")
        x, context, latent = (self.inputs[name] for name in ("x", "context", "latent"))
        calls = {
            "unet": (pipe.unet, lambda *a: pipe.unet(*a, return_dict=False), (x, torch.tensor(TIMESTEP), context)),
            "vae": (pipe.vae, lambda z: pipe.vae.decode(z, return_dict=False), (latent,)),
            "text": (pipe.text_encoder, lambda ids: pipe.text_encoder(ids), (torch.zeros(1, 77, dtype=torch.int64),)),
        }
        kept.mkdir(parents=True, exist_ok=True)
        for name, (owner, call, inputs) in calls.items():
            shapes = [list(part.shape) for part in inputs]
            model = openvino.convert_model(Called(owner, call).eval(), example_input=inputs, input=shapes)
            openvino.save_model(model, kept / f"{name}.xml", compress_to_fp16=True)


NETWORKS = ("unet", "vae", "text")


class StableDiffusionCpp:
    """stable-diffusion.cpp, whole pictures only: it has no call for less."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from stable_diffusion_cpp import StableDiffusion

        self.size = asked.size
        self.model = StableDiffusion(
            model_path=str(asked.folder.with_suffix(".safetensors")),
            n_threads=asked.threads,
            wtype=asked.dtype,
            rng_type="cpu",  # torch's
            sampler_rng_type="cpu",
            vae_decode_only=True,
            verbose=False,
            **dict.fromkeys(filter(None, asked.flags.split(",")), True),
        )

    def picture(self, steps: int) -> Any:
        """From a prompt to the bytes of a PNG; its pixels."""
        options = {"sample_method": "euler", "scheduler": "discrete", "sample_steps": steps, "cfg_scale": GUIDANCE}
        return written(
            self.model.generate_image(prompt=PROMPT, width=self.size, height=self.size, seed=SEED, **options)[0]
        )


class Ours:
    """This package as it is, or with kernels forced by MEZZOTINT_KERNELS."""

    def __init__(self, asked: argparse.Namespace) -> None:
        import torch

        import mezzotint

        torch.set_num_threads(asked.threads)
        self.torch, self.asked, self.mezzotint = torch, asked, mezzotint
        self.system = mezzotint.load(asked.folder, dtype=asked.dtype, weights=asked.flags or "auto")
        self.system.unet.register_forward_pre_hook(begins)

    inputs = Diffusers.inputs

    @cached_property
    def prepared(self) -> Any:
        """What depends on the prompt alone, computed before the steps, as in a picture."""
        from mezzotint.models.unet import Conditioning, sized_vector

        context, pooled, sizes = (self.inputs[key].to(self.system.dtype) for key in ("context", "pooled", "sizes"))
        vector = sized_vector(pooled, sizes.float()) if self.asked.preset == "sdxl" else None
        return self.system.network.run.prepare(Conditioning(context, vector))

    def unet(self) -> Any:
        """The U-Net's output for a guided step: all pictures without the prompt, then with it."""
        x = self.inputs["x"].to(self.system.dtype)
        return self.system.network.run(x, self.torch.full((len(x),), TIMESTEP), self.prepared).float()

    def decode(self) -> Any:
        """The image of a latent."""
        return self.system.decode(self.inputs["latent"])

    def picture(self, steps: int) -> Any:
        """From a prompt to the bytes of a PNG; its pixels."""
        options = {"steps": steps, "guidance": GUIDANCE, "sampler": "euler", "spacing": "linspace", "seed": SEED}
        size = self.asked.size
        result = self.mezzotint.generate(self.system, prompt=PROMPT, width=size, height=size, **options)
        return written(result.images[0])

    def rates(self) -> dict[str, float]:
        """The best rate in T/s that a product or a convolution reaches in this process, by dtype."""
        from cpu_rates import DTYPES, convolution, linear, matrix_product

        from mezzotint.kernels.packed import is_packable

        found: dict[str, float] = {}
        for name, dtype in DTYPES.items():
            if not is_packable(dtype):
                continue
            ways = [linear(2048, 1280, 640, dtype), convolution(2, 320, 320, 64, dtype)]
            found[name] = max(matrix_product(2048, dtype), *(way[how] for way in ways for how in ("eager", "packed")))
        return found

    def work(self) -> dict[str, float]:
        """Operations in T of each part, as the networks are written: what is left out is not subtracted."""
        from torch.utils.flop_counter import FlopCounterMode

        torch, inputs = self.torch, {name: value.to("meta") for name, value in self.inputs.items()}
        from mezzotint.models.unet import Conditioning, UNet, sized_vector
        from mezzotint.models.vae import AutoencoderKL

        with torch.device("meta"):
            unet, vae = UNet(self.system.unet.config), AutoencoderKL(self.system.vae.config)
            vector = sized_vector(inputs["pooled"], inputs["sizes"]) if self.asked.preset == "sdxl" else None
            t = torch.full((len(inputs["x"]),), TIMESTEP)
            with FlopCounterMode(display=False) as step:
                unet(inputs["x"], t, unet.prepare(Conditioning(inputs["context"], vector)))
            with FlopCounterMode(display=False) as decoding:
                vae.decode(inputs["latent"])
        return {"unet": step.get_total_flops() / 1e12, "decode": decoding.get_total_flops() / 1e12}


def drawn(asked: argparse.Namespace) -> dict[str, Any]:
    """Seeded latents and text of one guided step for `batch` pictures, and a latent to decode; float32."""
    import torch

    generator = torch.Generator().manual_seed(1)
    side, rows = asked.size // 8, 2 * asked.batch
    width = json.loads((asked.folder / "unet" / "config.json").read_text())["cross_attention_dim"]
    x = torch.randn(asked.batch, 4, side, side, generator=generator).repeat(2, 1, 1, 1)
    context, pooled = (torch.randn(rows, *shape, generator=generator) for shape in ((77, width), (1280,)))
    sizes = torch.tensor([[asked.size, asked.size, 0, 0, asked.size, asked.size]] * rows)
    latent = torch.randn(1, 4, side, side, generator=generator)
    return {"x": x, "context": context, "pooled": pooled, "sizes": sizes.float(), "latent": latent}


def written(picture: Any) -> Any:
    """Pixels of a picture that has been encoded as a PNG."""
    import io

    picture.save(io.BytesIO(), "PNG")
    return np.asarray(picture.convert("RGB"))


KINDS = {"diffusers": Diffusers, "compiled": Compiled, "openvino": OpenVino, "sdcpp": StableDiffusionCpp, "ours": Ours}


def serve(asked: argparse.Namespace) -> None:
    """Obey the lines of stdin."""
    contender = KINDS[asked.kind](asked)
    print("ready", flush=True)
    output: Any = None
    for line in sys.stdin:
        command, *arguments = line.split()
        begun, spent = time.perf_counter(), time.process_time()
        if command == "save":
            np.save(arguments[0], np.asarray(output, dtype=np.float32))
        else:
            output = getattr(contender, command)(*map(int, arguments))
        times = {"wall": time.perf_counter() - begun, "processor": time.process_time() - spent}
        print(json.dumps(output if isinstance(output, dict) else times), flush=True)


def main() -> None:
    """Be the contender that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("dtype")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="sd15")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--parts", default="unet,decode,picture", type=lambda text: text.split(","))
    parser.add_argument("--flags", default="", help="of stable-diffusion.cpp; our weights")
    asked = parser.parse_args()
    if asked.kind == "sdcpp":
        serve(asked)
        return
    import torch

    with torch.no_grad():
        serve(asked)


if __name__ == "__main__":
    main()
