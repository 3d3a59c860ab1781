"""The embedded base model and a LoRA for it in ComfyUI's own code: the same embeddings, every
module patched, the same change of the weights.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.file import save_lora, to_kohya
from trainers.lora.modules import LoraModule, list_weighted_modules
from trainers.sdxl.merge import merge_lora
from trainers.sdxl.model.sdxl_model import load_model
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.names import kohya_names
from trainers.sdxl.targets import find_unet_targets

PROMPT = "a small red circle on the left on a white background"

RUN = f"""
import json
import sys

import comfy.sd
from safetensors.torch import save_file

sys.path.append({str(Path(__file__).parents[2] / "nodes")!r})
import embedded_base_pack

base, lora, output = sys.argv[1:]
with torch.inference_mode():
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(base)[:3]
    embeddings, pooled = clip.encode_from_tokens(clip.tokenize({PROMPT!r}), return_pooled=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(lora), 1.0, 0.0)
    key = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    weight = patched.patch_weight_to_device(key, return_weight=True)
    image = vae.decode(torch.zeros(1, 4, 16, 16))
    tensors = {{"embeddings": embeddings, "pooled": pooled, "weight": weight, "image": image}}
    save_file({{name: tensor.clone().contiguous() for name, tensor in tensors.items()}}, output)
print("RESULT" + json.dumps({{"patches": len(patched.patches)}}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Write the checkpoint, and a LoRA of random weights on all default targets, with alpha at half
    the rank.
    """
    folder = tmp_path_factory.mktemp("host")
    write_embedded_checkpoint(folder / "base.safetensors")
    model = load_model(folder / "base.safetensors")
    generator = torch.Generator().manual_seed(0)
    modules = {}
    for path in find_unet_targets(model.unet, "attention_mlp"):
        layer = model.unet.get_submodule(path)
        assert isinstance(layer, torch.nn.Linear)
        down, up = (
            torch.randn(shape, generator=generator) * 0.05
            for shape in ((4, layer.in_features), (layer.out_features, 4))
        )
        modules["unet", path] = LoraModule(down, up, alpha=2.0)
    names = kohya_names(list_weighted_modules(model.unet), [], [])
    save_lora(folder / "lora.safetensors", to_kohya(modules, names, dtype=torch.float32), {})
    merge_lora(modules, {"unet": torch.nn.Module.float(model.unet)})
    torch.save(
        model.unet.state_dict()["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"],
        folder / "merged.pt",
    )
    return folder / "base.safetensors", folder / "lora.safetensors"


def test_comfyui_runs_the_embedded_base_and_applies_a_lora_as_we_do(run_in_comfyui: Callable[..., str], files):
    base, lora = files
    output = base.parent / "comfyui.safetensors"
    (line,) = [line for line in run_in_comfyui(RUN, base, lora, output).splitlines() if line.startswith("RESULT")]
    assert json.loads(line.removeprefix("RESULT")) == {"patches": 192}
    theirs = load_file(output)

    model = load_model(base)
    encoders = [torch.nn.Module.float(encoder) for encoder in (model.text_encoder, model.text_encoder_2)]
    with torch.no_grad():
        ours = encode_captions(*encoders, [PROMPT])
    torch.testing.assert_close(theirs["embeddings"].float(), ours.prompt_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs["pooled"].float(), ours.pooled_prompt_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        theirs["weight"].float(), torch.load(base.parent / "merged.pt", weights_only=True), rtol=1e-3, atol=1e-4
    )
    assert theirs["image"].shape == (1, 128, 128, 3) and torch.isfinite(theirs["image"]).all()
