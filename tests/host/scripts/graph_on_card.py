"""Runs in ComfyUI's interpreter on the pretended GPU: trains as the node does on the graph's MODEL,
in one of ComfyUI's memory modes and in every state that sampling leaves it in. Prints JSON.

Arguments: the pack's folder, an embedded base checkpoint, a LoRA file for it, a folder for files,
the mode.
"""

import gc
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

pack, checkpoint, lora_file, folder = map(Path, sys.argv[1:5])
mode = sys.argv[5]

from comfy.cli_args import args

args.disable_dynamic_vram = mode != "dynamic"
args.highvram, args.lowvram = mode == "highvram", mode == "lowvram"

if mode == "dynamic":  # as main.py does where comfy-aimdo finds a driver
    import comfy_aimdo.control

    assert comfy_aimdo.control.init("cuda")  # before anything else imports its library

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher

if mode == "dynamic":
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths

folder_paths.models_dir = str(folder / "models")
folder_paths.set_output_directory(str(folder / "output"))


from pack_loader import load_pack

load_pack(pack / "nodes" / "embedded_base_pack", "embedded_base_pack")
load_pack(pack, "lora_trainer")

from lora_trainer.nodes.apply_lora import ApplyLoRA
from lora_trainer.nodes.host.graph_training import TrainingRequest
from lora_trainer.nodes.host.lora import apply_lora
from lora_trainer.nodes.host.sdxl_training import train_sdxl
from lora_trainer.nodes.host.weights import GraphModel
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.training import loop
from pretend_gpu import card
from pretend_gpu.counts import counting

SETTINGS = {
    "resolution": 64,
    "bucket_reso_steps": 32,
    "rank": 2,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 3,
    "learning_rate": 1e-3,
    "optimizer": "AdamW",
    "save_dtype": "fp32",
    "validate_every_n_steps": -1,
}
SAMPLES = mode != "dynamic"  # dynamic loading takes its memory from NVIDIA's driver
last_step = {}


class WatchedLoop(loop.TrainingLoop):
    """Looks at what each step costs, and at where everything is after it."""

    def _run_step(self, step, clock):
        before = counts.copies, counts.syncs
        super()._run_step(step, clock)
        states = [value for state in self._optimizer_step._optimizer.state.values() for value in state.values()]
        tensors = [value for value in states if isinstance(value, torch.Tensor) and value.dim()]
        tensors += [*self._model.adapted.flat_weights, *self._model.model.unet.parameters()]
        model = self._model.model
        last_step.update(
            copies=counts.copies - before[0],
            syncs=counts.syncs - before[1],
            devices=sorted({str(tensor.device) for tensor in tensors}),
            encoders_are_gone=(model.vae, model.text_encoder, model.text_encoder_2) == (None, None, None),
        )


loop.TrainingLoop = WatchedLoop


def draw_images():
    images, rng = folder / "images", np.random.default_rng(0)
    images.mkdir()
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"thing {number}")
    return scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))


def sample(model, clip):
    """Two steps of a sampler, as KSampler calls it."""
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("zwx thing", ""))
    latent = torch.zeros(1, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 1)
    found = comfy.sample.sample(model, noise, 2, 4.0, "euler", "normal", positive, negative, latent, disable_pbar=True)
    return hashlib.sha256(found.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def unload():
    comfy.model_management.unload_all_models()
    gc.collect()
    return card.live_bytes()


def digest(*models):
    """Where nothing is loaded, a weight has its own value."""
    comfy.model_management.unload_all_models()
    state = hashlib.sha256()
    for model in models:
        for name, weight in sorted(model.named_parameters()):
            state.update(
                name.encode() + weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return state.hexdigest()


def train(model, name, **settings):
    base = GraphModel(model, clip, vae)
    given = {**SETTINGS, **settings}
    request = TrainingRequest(base, dataset, "object", "8 GB", name, given, resume="new", is_polite=False)
    last_step.clear()
    found = train_sdxl(request)
    return found, {**last_step, "losses": found.result.losses, "summary": found.summary}


with torch.inference_mode(), counting() as counts:
    dataset, results = draw_images(), {}
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
    lora = comfy.utils.load_torch_file(str(lora_file))
    with_lora, _, _ = apply_lora(model, clip, lora, strength_model=0.7, strength_clip=1.0)
    parts = model.model, clip.cond_stage_model, vae.first_stage_model
    weights = digest(*parts)
    results["patcher"] = type(model).__name__
    trained, results["never loaded"] = train(model, "never_loaded")
    bytes_after = unload()
    if SAMPLES:
        picture = sample(model, clip)
        _, results["after sampling"] = train(model, "after_sampling")
        results["same picture"] = sample(model, clip) == picture
        samples = {"sample_every_n_steps": 2, "sample_steps": 2, "sample_prompt": "zwx thing"}
        _, results["with samples"] = train(model, "with_samples", **samples)
        sample(with_lora, clip)
        _, results["after sampling with a LoRA"] = train(model, "after_sampling_with_a_lora")
        bytes_after = max(bytes_after, unload())
        applied = ApplyLoRA.execute(model, trained.lora, clip).result
        pictures = [sample(*each) for each in ((trained.model, trained.clip), applied)]
        results["apply lora"] = pictures[0] == pictures[1] != picture
        results["same picture after apply lora"] = sample(model, clip) == picture
    _, results["with a LoRA"] = train(with_lora, "with_a_lora")
    _, results["streamed"] = train(model, "streamed", blocks_to_swap=1000)
    results["weights are unchanged"] = digest(*parts) == weights
    del trained
    applied = None
    results["bytes left"] = max(bytes_after, unload())
print("RESULT" + json.dumps(results))
