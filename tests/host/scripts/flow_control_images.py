"""Runs in ComfyUI's interpreter: trains edit models at tiny size with control images, and compares
what they are told and what they predict with ComfyUI's own nodes and its own use of the file.
Prints JSON.

Arguments: the pack's folder, a folder for files.
"""

import contextlib
import json
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image

pack, folder = map(Path, sys.argv[1:3])


from pack_loader import load_pack

load_pack(pack, "lora_trainer")

import nodes
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextImageScale
from comfy_extras.nodes_post_processing import ImageScaleToTotalPixels
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from lora_trainer.nodes.host.flow_model import GraphFlowModel
from lora_trainer.nodes.host.lora import load_lora
from lora_trainer.nodes.host.weights import GraphModel, training_mode
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.family import FlowFamily
from lora_trainer.trainers.flow.prompt import list_prompts
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.events import Interrupted, StepDone
from lora_trainer.trainers.training.loop import train_lora
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_folder import RunFolder
from lora_trainer.trainers.training.run_settings import RunSettings
from tiny_models import build_tiny

CAPTION, STEPS = "paint it so", 100
USUAL = {
    "rank": 4,
    "alpha": 4.0,
    "learning_rate": 1e-2,
    "max_train_steps": 6,
    "save_dtype": "fp32",
    "validate_every_n_steps": -1,
    "lr_warmup_steps": 0.0,
    "lr_scheduler": "constant",
    "caption_dropout": 0.0,
}
RED, BLUE, GREY = (250, 10, 10), (10, 10, 250), (120, 120, 120)


class StoppingHost(ConsoleHost):
    def __init__(self, after=None):
        super().__init__(torch.device("cpu"), quiet=True)
        self.after = after

    def report(self, event):
        super().report(event)
        if isinstance(event, StepDone) and event.step == self.after:
            raise Interrupted


def encode_text(tiny, text):
    return tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize(text))


def refer(tiny, conditioning, image):
    (latent,) = nodes.VAEEncode().encode(tiny.vae, image)
    return ReferenceLatent.execute(conditioning, latent)[0]


def edit_with_qwen(tiny, text, images):
    return TextEncodeQwenImageEdit.execute(tiny.clip, prompt=text, vae=tiny.vae, image=images[0])[0]


def edit_with_qwen_plus(tiny, text, images):
    named = {f"image{number}": image for number, image in enumerate(images, start=1)}
    return TextEncodeQwenImageEditPlus.execute(tiny.clip, prompt=text, vae=tiny.vae, **named)[0]


def edit_with_kontext(tiny, text, images):
    conditioning = encode_text(tiny, text)
    for image in images:
        conditioning = refer(tiny, conditioning, FluxKontextImageScale.execute(image)[0])
    return conditioning


def edit_with_flux_2(tiny, text, images):
    conditioning = encode_text(tiny, text)
    for image in images:
        conditioning = refer(tiny, conditioning, ImageScaleToTotalPixels.execute(image, "lanczos", 1.0, 1)[0])
    return conditioning


# the tiny model, the file that it is from, how graphs of it are made, control images per image
CASES = {
    "Qwen-Image-Edit": ("Qwen-Image", "qwen_image_edit", edit_with_qwen, 1),
    "Qwen-Image-Edit-2509": ("Qwen-Image", "qwen_image_edit_2509", edit_with_qwen_plus, 2),
    "Qwen-Image-Edit-2511": ("Qwen-Image-Edit", "qwen_image_edit_2511", edit_with_qwen_plus, 1),
    "FLUX.1 Kontext": ("FLUX.1 Kontext", "flux1-dev-kontext", edit_with_kontext, 1),
    "FLUX.2": ("FLUX.2 klein", "flux-2-klein-base-4b", edit_with_flux_2, 2),
}


def paint(path, size_hw, left, right):
    """An image of two halves, with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size_hw
    pixels = np.random.default_rng(0).integers(-9, 9, (height, width, 3)).astype(np.int16)
    pixels[:, : width // 2] += np.array(left, dtype=np.int16)
    pixels[:, width // 2 :] += np.array(right, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def write_images(name, count):
    """Two images of one caption: only the control images tell them apart."""
    place = folder / name.replace(" ", "_")
    for number, colour in enumerate((RED, BLUE)):
        paint(place / "images" / f"{number}.png", (64, 64), colour, colour)
        (place / "images" / f"{number}.txt").write_text(CAPTION)
        for index in range(count):
            paint(place / "control" / f"{number}_{index}.png", (80 + 32 * index, 112), colour, GREY)
    return place


def make_plan(place, count, *, flip=False, **settings):
    controls = str(place / "control") if count else ""
    dataset = scan_folder(DatasetConfig(images=str(place / "images"), trigger_word="", control_images=controls))
    buckets = BucketConfig(resolution=64, bucket_reso_steps=32, random_flip=flip)
    return plan_training(dataset, RunSettings(FlowConfig(**{**USUAL, **settings}), buckets))


def find_row(tiny, file_name):
    return find_family(type(tiny.patcher.model.model_config).__name__).for_file(file_name)


def train(tiny, row, plan, name, host=None, resume="new"):
    bases = []

    def load(_):
        bases.append(GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row))
        return bases[0]

    with training_mode(), host or StoppingHost() as host:
        result = train_lora(
            FlowFamily(load),
            plan,
            host,
            run_folder=RunFolder(folder / name.replace(" ", "_"), "x"),
            cache=TensorCache(None),
            resume=resume,
        )
    return result, bases[0]


def list_tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [tensor for each in values for tensor in list_tensors(each)]


def is_equal(ours, theirs):
    ours, theirs = list_tensors(ours), list_tensors(theirs)
    return len(ours) == len(theirs) > 1 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def make_in_graph(tiny, edit, controls, *, mirrored=False):
    """The conditioning of a graph that loads these files."""
    folder_paths.set_input_directory(str(Path(controls[0]).parent))
    images = [nodes.LoadImage().load_image(Path(path).name)[0] for path in controls]
    return edit(tiny, CAPTION, [image.flip(2) if mirrored else image for image in images])


def compare_conditions(name):
    """Of each prompt of a run, mirrored ones included."""
    family, file_name, edit, count = CASES[name]
    tiny, place = build_tiny(family), write_images(name, count)
    row = find_row(tiny, file_name)
    plan = make_plan(place, count, flip=True)
    found = {"equal": [], "references": set()}
    with training_mode():
        base = GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row)
        for prompt in list_prompts(plan):
            if prompt.caption:
                pixels = [torch.from_numpy(np.array(each.read()))[None].float() / 255 for each in prompt.controls]
                ours = base.encode_caption(prompt.caption, pixels)
                paths = [each.image.path for each in prompt.controls]
                theirs = make_in_graph(tiny, edit, paths, mirrored=prompt.controls[0].flip)
                found["equal"].append(len(theirs) == 1 and is_equal(ours, theirs[0]))
                found["references"].add(len(ours[1]["reference_latents"]))
    return found | {"references": sorted(found["references"])}


def make_noisy(tiny):
    noisy = torch.randn(tiny.latent_shape(1, 64, 64), generator=torch.Generator().manual_seed(5))
    sigma = tiny.patcher.model.model_sampling.percent_to_sigma(0.4)
    return noisy, torch.tensor([float(sigma)])


@torch.inference_mode()
def predict_in_comfyui(tiny, row, patches, conditioning):
    """With the LoRA as ComfyUI applies it to the graph's MODEL."""
    patcher = tiny.patcher.clone()
    patcher.add_patches(patches, 1.0)
    patcher.patch_model()
    try:
        noisy, sigma = make_noisy(tiny)
        cond, entries = conditioning[0]
        given = {**entries, "cross_attn": cond, "noise": noisy, "device": noisy.device, "width": 64, "height": 64}
        given |= {"latent_image": torch.zeros_like(noisy), "prompt_type": "positive"}
        given |= {} if row.needs_guidance is None else {"guidance": row.needs_guidance}
        conds = {name: value.cond for name, value in patcher.model.extra_conds(**given).items()}
        return patcher.model.apply_model(noisy, sigma, **conds)
    finally:
        patcher.unpatch_model()


def predict_as_trained(tiny, base, conditions):
    noisy, sigma = make_noisy(tiny)
    with training_mode(), torch.no_grad(), base.computing():
        return base.denoised(base.predict(noisy, sigma, [conditions]), noisy, sigma)


def compare_predictions(name):
    """After a training on both images: the same control image, the other one, and none."""
    family, file_name, edit, count = CASES[name]
    tiny, place = build_tiny(family), folder / name.replace(" ", "_")
    row = find_row(tiny, file_name)
    result, base = train(tiny, row, make_plan(place, count), f"{name} run")
    loaded = load_lora(result.state_dict, tiny.patcher, None)
    predictions = []
    for number in (0, 1):
        paths = sorted((place / "control").glob(f"{number}_*.png"))
        conditioning = make_in_graph(tiny, edit, paths)
        with training_mode():
            pixels = [torch.from_numpy(np.array(Image.open(path)))[None].float() / 255 for path in paths]
            conditions = base.encode_caption(CAPTION, pixels)
        predictions.append(
            (predict_as_trained(tiny, base, conditions), predict_in_comfyui(tiny, row, loaded.patches, conditioning))
        )
    return {
        "differences": [((a - b).abs().max() / b.abs().max()).item() for a, b in predictions],
        "of_control": (predictions[0][0] - predictions[1][0]).abs().max().item(),
        "load": loaded.num_modules,
        "in_file": len(result.state_dict) // 3,
    }


def shrink(scale):
    """ComfyUI's nodes scale control images to a megapixel: much for a CPU."""
    whole = comfy.utils.common_upscale

    def upscale(samples, width, height, method, crop):
        return whole(samples, width // scale // 16 * 16, height // scale // 16 * 16, method, crop)

    return patch.object(comfy.utils, "common_upscale", upscale)


def answer(function, *arguments):
    try:
        return function(*arguments)
    except Exception:  # one case's error is its own result
        return {"error": traceback.format_exc(limit=-5)}


def learn_from_control(name):
    """The same caption for both, and almost nothing but noise. Return the loss of each image before
    and after the training, and with the control image of the other one.
    """
    family, file_name, _, count = CASES[name]
    tiny, place = build_tiny(family), folder / name.replace(" ", "_")
    row = find_row(tiny, file_name)
    settings = {"max_train_steps": STEPS, "train_batch_size": 2, "rank": 16, "discrete_flow_shift": 50.0}
    plan = make_plan(place, count, **settings)
    before = measure(GraphFlowModel(GraphModel(tiny.patcher, tiny.clip, tiny.vae), row), plan)
    after = measure(train(tiny, row, plan, f"{name} learned")[1], plan)
    return {"before": before["own"], "after": after["own"], "with_other": after["other"]}


def measure(base, plan, draws=8):
    """With the same noise for all."""
    found = {"own": [], "other": []}
    with training_mode(), torch.no_grad(), base.computing():
        shown = [
            torch.from_numpy(np.array(image.control_images[0].read()))[None].float() / 255
            for image in plan.dataset.images
        ]
        for number, item in enumerate(plan.crops.items):
            pixels = torch.from_numpy(np.array(item.image.read()))[None].float() / 255
            latents = base.encode_image(pixels, seed=0)[None]
            for kind, control in (("own", shown[number]), ("other", shown[1 - number])):
                conditions, losses = base.encode_caption(CAPTION, [control]), []
                for draw in range(draws):
                    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(draw))
                    sigmas = torch.tensor([0.98])
                    predicted = base.predict(base.add_noise(latents, noise, sigmas), sigmas, [conditions])
                    losses.append((predicted - base.target(latents, noise, sigmas)).square().mean().item())
                found[kind].append(float(np.mean(losses)))
    return found


def stop_and_go_on(name):
    family, file_name, _, count = CASES[name]
    tiny, place = build_tiny(family), folder / name.replace(" ", "_")
    row = find_row(tiny, file_name)
    settings = {"flip": True, "caption_dropout": 0.3, "lora_dropout": 0.1}
    whole = train(tiny, row, make_plan(place, count, **settings), "whole")[0]
    with contextlib.suppress(Interrupted):
        train(tiny, row, make_plan(place, count, **settings), "parts", StoppingHost(after=3), resume="auto")
    parts = train(tiny, row, make_plan(place, count, **settings), "parts", resume="auto")[0]
    return {
        "losses": parts.losses == whole.losses,
        "lora": all(torch.equal(weight, whole.state_dict[key]) for key, weight in parts.state_dict.items()),
    }


results = {"conditions": {name: answer(compare_conditions, name) for name in CASES}}
with shrink(16):
    results["predictions"] = {name: answer(compare_predictions, name) for name in CASES}
    results["stopped"] = answer(stop_and_go_on, "FLUX.1 Kontext")
    results["learned"] = answer(learn_from_control, "Qwen-Image-Edit")
print("RESULT" + json.dumps(results))
