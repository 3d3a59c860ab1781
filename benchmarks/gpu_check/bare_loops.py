"""Two training loops with nothing but forward, backward and fused AdamW: one with our LoRA layers,
one with PEFT's own under autocast, as diffusers' example trains. ../bare_loop.py is another one, in
its own process.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.bare_loop import TARGETS
from trainers.sdxl.checkpointing import enable_gradient_checkpointing
from trainers.sdxl.targets import find_unet_targets
from trainers.training.adapter_shapes import AdapterSettings
from trainers.training.adapters import attach_adapters
from trainers.training.device import COMPUTE_DTYPES, move_module
from trainers.training.flat_weights import FlatWeights

from .bench import Bench
from .unet_inputs import ConstantBatch, make_batch

RANK = 16
WARM_UP, MEASURED = 3, 5


@dataclass(frozen=True)
class BareLoop:
    """A UNet with adapters, and one step of its training on a batch."""

    bench: Bench
    unet: UNet2DConditionModel
    step: Callable[[ConstantBatch], None]

    def seconds_per_step(self, *, size: int, batch_size: int) -> float:
        batch = self._make_batch(size, batch_size)
        warm_up, measured = (1, 1) if self.bench.is_tiny else (WARM_UP, MEASURED)
        for _ in range(warm_up):
            self.step(batch)
        self.bench.synchronize()
        began_at = time.perf_counter()
        for _ in range(measured):
            self.step(batch)
        self.bench.synchronize()
        return (time.perf_counter() - began_at) / measured

    def count_flops(self, *, size: int, batch_size: int) -> int:
        """Count the operations of the matrix products, convolutions and attention of one step."""
        batch = self._make_batch(size, batch_size)
        with FlopCounterMode(display=False) as counter:
            self.step(batch)
        return counter.get_total_flops()

    def set_checkpointing(self, is_on: bool) -> None:
        enable_gradient_checkpointing(self.unet) if is_on else self.unet.disable_gradient_checkpointing()

    def _make_batch(self, size: int, batch_size: int) -> ConstantBatch:
        dtype = COMPUTE_DTYPES[self.bench.half]
        return make_batch(self.unet, size_wh=(size, size), batch_size=batch_size, dtype=dtype)


def make_own_loop(bench: Bench) -> BareLoop:
    """Our LoRA layers: adapters in half precision, a copy of one flat float32 weight."""
    unet = _load_unet(bench)
    settings = AdapterSettings(RANK, float(RANK), 0.0, 0)
    parameters = attach_adapters(unet, find_unet_targets(unet, "attention_mlp"), settings, component="unet")
    weights = FlatWeights(parameters, COMPUTE_DTYPES[bench.half])
    optimizer = torch.optim.AdamW([weights.flat], lr=1e-4, fused=True)

    def step(batch: ConstantBatch) -> None:
        batch.compute_loss(unet).backward()
        weights.collect_gradients()
        optimizer.step()
        weights.publish()
        weights.forget_gradients()

    return BareLoop(bench, unet, step)


def make_peft_loop(bench: Bench) -> BareLoop:
    """PEFT's own layers, float32 under autocast."""
    unet = _load_unet(bench)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS["attention_mlp"]))
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step(batch: ConstantBatch) -> None:
        with torch.autocast(bench.device.type, COMPUTE_DTYPES[bench.half]):
            loss = batch.compute_loss(unet)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return BareLoop(bench, unet, step)


def _load_unet(bench: Bench) -> UNet2DConditionModel:
    unet = move_module(bench.load_full().unet, bench.device, COMPUTE_DTYPES[bench.half])
    nn.Module.requires_grad_(unet, False)
    return unet.train()
