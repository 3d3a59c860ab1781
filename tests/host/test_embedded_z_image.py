"""The embedded Z-Image in ComfyUI: the same text embeddings, velocities and latents as in
diffusers, and images in the colours of their prompts, from core's loaders and sampler.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.comfyui.find import Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.z_image import draw_prompts, fetch_images
from trainers.embedded_base import write_embedded_z_image
from trainers.embedded_base.shared.pretraining import ScaledVAE
from trainers.embedded_base.shared.scoring import SCORE_PROMPTS, score_images
from trainers.embedded_base.z_image import MODEL_NAME, TEXT_ENCODER_NAME, VAE_NAME
from trainers.embedded_base.z_image.architecture import SCALING_FACTOR, SHIFT_FACTOR, build_vae
from trainers.embedded_base.z_image.layout import (
    text_encoder_from_original,
    transformer_from_original,
    vae_from_original,
)
from trainers.embedded_base.z_image.pretrain import TOKENIZER, Captions, TextToLatents

PROMPT = "a small zwx on the left on a beige background"

RUN = f"""
import json
import sys

import comfy.sd
import comfy.utils
from safetensors.torch import load_file, save_file

sys.path.append({str(Path(__file__).parents[2] / "nodes")!r})
import embedded_base_pack

given, output, model, text_encoder, vae = sys.argv[1:]
given = load_file(given)
with torch.inference_mode():
    model = comfy.sd.load_diffusion_model(model)
    clip = comfy.sd.load_clip([text_encoder], clip_type=comfy.sd.CLIPType.LUMINA2)
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae))
    vae.throw_exception_if_invalid()
    ((embeddings, others),) = clip.encode_from_tokens_scheduled(clip.tokenize({PROMPT!r}))
    comfy.model_management.load_models_gpu([model])
    noisy, sigmas = given["noisy"], given["sigmas"]
    conds = model.model.extra_conds(cross_attn=embeddings, noise=noisy, device=noisy.device, **others)
    clean = model.model.apply_model(noisy, sigmas, **{{name: cond.cond for name, cond in conds.items()}})
    raw = vae.encode((given["pixel_values"].movedim(1, -1) + 1) / 2)
    tensors = {{
        "embeddings": embeddings,
        "velocity": (noisy - clean) / sigmas,
        "latents": model.model.process_latent_in(raw),
        "decoded": vae.decode(raw).movedim(-1, 1) * 2 - 1,
    }}
    save_file({{name: tensor.float().clone().contiguous() for name, tensor in tensors.items()}}, output)
print("RESULT" + json.dumps(type(model.model.model_config).__name__))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    return write_embedded_z_image(tmp_path_factory.mktemp("models"))


@torch.no_grad()
def test_comfyui_and_diffusers_compute_the_same(run_in_comfyui, installation: Installation, base, tmp_path):
    """The image is no square, so its 12 tokens are padded to 32."""
    generator = torch.Generator().manual_seed(0)
    given = {
        "noisy": torch.randn(1, 16, 8, 6, generator=generator),
        "sigmas": torch.tensor([0.7]),
        "pixel_values": torch.rand(1, 3, 64, 48, generator=generator) * 2 - 1,
    }
    save_file(given, tmp_path / "given.safetensors")
    printed = run_in_comfyui(
        RUN, tmp_path / "given.safetensors", tmp_path / "output.safetensors", base.model, base.text_encoder, base.vae
    )
    (line,) = [line for line in printed.splitlines() if line.startswith("RESULT")]
    assert json.loads(line.removeprefix("RESULT")) == "ZImage"  # as the trainer's table of families knows it
    theirs = load_file(tmp_path / "output.safetensors")

    model, vae = load_in_diffusers(base)
    (embeddings,) = model.encode_captions([Captions(installation.folder / TOKENIZER)(PROMPT)])
    torch.testing.assert_close(theirs["embeddings"][0], embeddings, rtol=1e-3, atol=1e-3)
    velocity = model.predict(given["noisy"], given["sigmas"], [embeddings])
    torch.testing.assert_close(theirs["velocity"], velocity, rtol=1e-3, atol=1e-3)
    latents = vae.encode(given["pixel_values"])
    torch.testing.assert_close(theirs["latents"], latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(theirs["decoded"], vae.decode(latents).clamp(-1, 1), rtol=1e-3, atol=1e-3)


def load_in_diffusers(base) -> tuple[TextToLatents, ScaledVAE]:
    model, vae = TextToLatents().eval(), build_vae().eval()
    model.transformer.load_state_dict(transformer_from_original(load_file(base.model)))
    model.text_encoder.load_state_dict(text_encoder_from_original(load_file(base.text_encoder)))
    vae.load_state_dict(vae_from_original(load_file(base.vae)))
    return model, ScaledVAE(vae, SCALING_FACTOR, SHIFT_FACTOR)


def test_core_nodes_draw_what_the_prompts_say(comfyui_server: ComfyServer):
    """Two shapes in three are right: the base's README has the scores."""
    loaders = {
        "model": {"class_type": "UNETLoader", "inputs": {"unet_name": MODEL_NAME, "weight_dtype": "default"}},
        "clip": {"class_type": "CLIPLoader", "inputs": {"clip_name": TEXT_ENCODER_NAME, "type": "lumina2"}},
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": VAE_NAME}},
    }
    drawing = draw_prompts(
        "shapes", SCORE_PROMPTS, model=["model", 0], clip=["clip", 0], vae=["vae", 0], batch=1, steps=20
    )
    result = comfyui_server.client.run({**loaders, **drawing})
    images = fetch_images(comfyui_server.client, result, "shapes", len(SCORE_PROMPTS))
    assert images.shape == (len(SCORE_PROMPTS), 128, 128, 3) and images.dtype == np.uint8
    shares = score_images(images)
    assert shares["colour"] >= 0.8 and shares["background"] >= 0.8 and shares["shape"] >= 0.4, shares
