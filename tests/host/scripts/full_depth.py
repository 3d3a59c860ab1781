"""Runs in ComfyUI's interpreter: runs one training step on a model with SDXL's full depth at toy
width, through the node's own function. Prints JSON.

Arguments: the pack's folder, an embedded base checkpoint (for text encoders and VAE), a folder of
images, a folder for files.
"""

import json
import sys
from pathlib import Path

import torch

pack, checkpoint, images, folder = map(Path, sys.argv[1:])


from pack_loader import load_pack

embedded = load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")

import comfy.sd
import comfy.supported_models
import folder_paths
from diffusers import UNet2DConditionModel
from lora_trainer.nodes.host.lora import load_lora
from lora_trainer.nodes.host.graph_training import TrainingRequest
from lora_trainer.nodes.host.sdxl_training import train_sdxl
from lora_trainer.nodes.host.weights import GraphModel
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.sdxl.model.export import write_checkpoint
from lora_trainer.trainers.sdxl.model.sdxl_model import load_model

folder_paths.set_output_directory(str(folder / "output"))
WIDTHS = (32, 64, 128)


class FullDepth(embedded.sdxl.EmbeddedSDXL):
    unet_config = {**embedded.sdxl.UNET, "model_channels": WIDTHS[0], "transformer_depth": [0, 0, 2, 2, 10, 10]}


comfy.supported_models.models.insert(0, FullDepth)
torch.manual_seed(0)
base = load_model(checkpoint)
base.unet = UNet2DConditionModel(
    block_out_channels=WIDTHS,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(1, 1, 2),
    use_linear_projection=True,
    cross_attention_dim=192,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=128 + 6 * 256,
)
write_checkpoint(base, folder / "full_depth.safetensors")
dataset = scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))

with torch.inference_mode():
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(folder / "full_depth.safetensors"))[:3]
    settings = {
        "resolution": 64,
        "max_train_steps": 1,
        "train_batch_size": 1,
        "rank": 2,
        "train_text_encoders": True,
        "optimizer": "AdamW",
    }
    request = TrainingRequest(
        GraphModel(model, clip, vae),
        dataset,
        goal="object",
        memory="8 GB",
        output_name="full",
        settings=settings,
        resume="new",
        is_polite=False,
    )
    trained = train_sdxl(request)
    unet_only = {name: tensor for name, tensor in trained.lora.items() if name.startswith("lora_unet_")}
    results = {
        "summary": trained.summary,
        "unet": load_lora(unet_only, model, None).num_modules,
        "all": trained.lora.num_modules,
        "in_file": len(trained.lora) // 3,
    }
print("RESULT" + json.dumps(results))
