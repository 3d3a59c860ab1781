"""Runs in ComfyUI's interpreter: counts the memory of real training steps on the meta device, where
models of full size take none, and compares it with the estimate. Prints JSON, a line for each
configuration.

Arguments: the pack's folder, a folder for files, the configurations as JSON: name, size, batch,
tokens, streamed, and settings of FlowConfig.
"""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from comfy.cli_args import args

args.use_pytorch_cross_attention = True  # as on a GPU

import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

pack, folder, configurations = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])


from pack_loader import load_pack

load_pack(pack, "lora_trainer")

from full_models import FULL_SPECS, HALF, build_hollow, make_clip
from lora_trainer.nodes.host.hollow_model import HollowFlowModel
from lora_trainer.trainers.check.memory_estimate import FLOAT32, bytes_per_parameter
from lora_trainer.trainers.dataset.bucket_config import BucketConfig
from lora_trainer.trainers.dataset.config import DatasetConfig
from lora_trainer.trainers.dataset.scan import scan_folder
from lora_trainer.trainers.files.tensor_cache import TensorCache
from lora_trainer.trainers.flow.check.memory import FrozenWeights, count_bytes, estimate_memory
from lora_trainer.trainers.flow.check.without_data import META, running_without_data
from lora_trainer.trainers.flow.checkpointing import checkpoint_blocks
from lora_trainer.trainers.flow.config import FlowConfig
from lora_trainer.trainers.flow.families import find_family
from lora_trainer.trainers.flow.lora_names import NETWORK, name_modules
from lora_trainer.trainers.flow import prepared_model
from lora_trainer.trainers.flow.prepare import _describe_adapters
from lora_trainer.trainers.flow.prepared_model import PreparedFlow
from lora_trainer.trainers.flow.targets import find_targets, is_linear, list_blocks
from lora_trainer.trainers.training.adapter_shapes import AdapterSettings
from lora_trainer.trainers.training.adapters import wrap_linear_layers
from lora_trainer.trainers.training.console_host import ConsoleHost
from lora_trainer.trainers.training.live_memory import LiveMemory
from lora_trainer.trainers.training.masks import MaskStore
from lora_trainer.trainers.training.device import COMPUTE_DTYPES
from lora_trainer.trainers.training.optimizer_step import OptimizerStep
from lora_trainer.trainers.training.plan import plan_training
from lora_trainer.trainers.training.run_settings import RunSettings
from lora_trainer.trainers.training.transfer import move_together
from tiny_models import SPECS, build_patcher


def move_all_but_texts(batch, device):
    """ComfyUI looks at the values of texts."""
    texts = batch["conditions"]
    return {**move_together({**batch, "conditions": None}, device), "conditions": texts}


prepared_model.move_together = move_all_but_texts

DEPTHS = ("n_layers", "num_layers", "num_blocks", "depth", "depth_single_blocks", "layers")


class Latents:
    """A store whose latents have no data."""

    def __init__(self, shape):
        self.shape = shape

    def get(self, item, *, flip):
        return torch.zeros(self.shape, device=META)


class Conditions:
    def __init__(self, conditions):
        self.conditions = conditions

    def get(self, caption):
        return self.conditions


class OnMeta(ConsoleHost):
    """Texts stay where they are: ComfyUI looks at their values."""

    def __init__(self):
        super().__init__(torch.device("cpu"), quiet=True)
        self.device = META


class FiniteNumbers(TorchFunctionMode):
    """A step looks at its loss, which has no data here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is Tensor.tolist and args[0].is_meta:
            return [1.0] * args[0].numel()
        return func(*args, **(kwargs or {}))


def make_plan(config, size, batch):
    images = folder / f"images_{size}_{batch}"
    images.mkdir(exist_ok=True)
    for number in range(2 * batch):
        Image.new("RGB", (size, size), (number, 0, 0)).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text("a")
    dataset = scan_folder(DatasetConfig(images=str(images), trigger_word=""))
    return plan_training(dataset, RunSettings(config, BucketConfig(resolution=size, min_bucket_reso=64)))


def deepen(spec):
    """With five of each block, so that some of them can be left out. SD 3's depth is its width."""
    if spec.config == "SD3":
        return spec
    return replace(spec, unet_config=spec.unet_config | {name: 5 for name in DEPTHS if name in spec.unet_config})


def open_model(name):
    """Return the MODEL, the text encoder, the family's row, and a function of the size."""
    full = name in FULL_SPECS
    spec = FULL_SPECS[name] if full else SPECS[name]
    patcher = build_hollow(spec) if full else build_patcher(deepen(spec), HALF)
    clip = make_clip(spec)
    time_axis = (1,) if spec.frames_per_latent else ()

    def shape(size):
        return spec.channels, *time_axis, size // spec.downscale, size // spec.downscale

    return patcher, clip, find_family(spec.config), shape


def _give_gradients(parameters):
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def count(base, config, plan, shape, conditions, is_streamed):
    """The peak of the second step's second micro-batch: weights on the device, adapters with
    gradients and optimizer states, activations.
    """
    weights = FrozenWeights.of(base.network)
    frozen = [*base.network.parameters(), *base.network.buffers()]
    host = OnMeta()
    names = name_modules(name for name, module in base.network.named_modules() if is_linear(module))
    with running_without_data(), FiniteNumbers(), LiveMemory(leave_out=frozen) as memory:
        targets = find_targets(base.network, base.family, config.target_modules)
        wrap_linear_layers(
            base.network, targets, AdapterSettings.of(config, targets), component=NETWORK, device=host.device
        )
        adapted = _describe_adapters(config, base, names, COMPUTE_DTYPES[base.precision], {})
        masks = MaskStore(TensorCache(None), pixels_per_latent=8)
        model = PreparedFlow(plan, host, base, adapted, Latents(shape), masks, Conditions(conditions), "sigmoid")
        blocks = list(list_blocks(base.network).values())
        if is_streamed:
            model.stream_weights(blocks)
        elif config.gradient_checkpointing:
            checkpoint_blocks(blocks)
        optimizer = OptimizerStep(adapted.groups, config, total_steps=9, precision="bf16")
        _give_gradients(adapted.flat_weights)
        optimizer.update(1, torch.zeros((), device=META))  # which makes the optimizer's states
        _give_gradients(adapted.flat_weights)  # as the second micro-batch finds them
        memory.take_peak()
        for losses in model.loss_terms(plan.crops.items[: config.train_batch_size], 2):
            optimizer.backward(losses.sum())
            del losses
        peak = memory.take_peak()
    return weights.count_resident(num_streamed=weights.num_blocks * is_streamed) + peak


def count_copied_gradients(adapters_bytes, config, precision):
    """Count the gradients of the layers' copies in half precision, which are not in the bytes."""
    number_bytes = COMPUTE_DTYPES[precision].itemsize
    per_parameter = bytes_per_parameter(config.optimizer, number_bytes=number_bytes) - number_bytes
    return number_bytes * adapters_bytes / per_parameter if number_bytes < FLOAT32 else 0


@torch.inference_mode(False)
def compare(name, size, batch, tokens, is_streamed, **settings):
    patcher, clip, row, shape = open_model(name)
    cond, others = clip.encode_from_tokens_scheduled(clip.tokenize("word " * tokens))[0]
    config = FlowConfig(
        **{"rank": 16, "train_batch_size": batch, "max_train_steps": 9, "validate_every_n_steps": -1, **settings}
    )
    found = HollowFlowModel(patcher, row)
    began = time.process_time()
    num_streamed = FrozenWeights.of(found.network).num_blocks * is_streamed
    estimate = estimate_memory(
        found, config, latent_shape=shape(size), conditions=[cond, others], num_streamed=num_streamed
    )
    seconds = time.process_time() - began
    plan = make_plan(config, size, batch)
    counted = count(HollowFlowModel(patcher, row), config, plan, shape(size), [cond, others], is_streamed)
    return {
        "estimate": {**asdict(estimate), "training_bytes": estimate.training_bytes},
        "counted": counted,
        "copied_gradients": count_copied_gradients(estimate.adapters_bytes, config, found.precision),
        "total_weights": count_bytes(patcher.model.diffusion_model),
        "seconds": seconds,
    }


for configuration in configurations:
    print("RESULT" + json.dumps({"configuration": configuration, **compare(**configuration)}), flush=True)
