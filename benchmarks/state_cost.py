"""Measures what a saved state of a full-size SDXL training costs: the copy that the training waits
for, the thread's CPU seconds, and bytes.

    python -m benchmarks.state_cost            # rank 16, the 722 modules of the default targets
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from trainers.sdxl.model.standard_unet import standard_unet
from trainers.sdxl.targets import find_unet_targets
from trainers.training.resume.state_file import TrainingState, pack_state, read_state, write_state

INTERVAL = 180.0  # seconds, the default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    rank = parser.parse_args().rank
    state = make_state(rank)
    began = time.perf_counter()
    packed = pack_state(state)
    copied = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        cpu, began = time.thread_time(), time.perf_counter()
        write_state(path, packed)
        cpu, written = time.thread_time() - cpu, time.perf_counter() - began
        num_bytes = path.stat().st_size
        began = time.perf_counter()
        read_state(path)
        read = time.perf_counter() - began
    print(f"rank {rank}: {num_bytes / 2**20:.0f} MiB, {len(state.adapters)} matrices")
    print(f"copy {copied:.3f} s, thread {cpu:.3f} CPU s ({written:.2f} s with the disk), read {read:.2f} s")
    print(f"share of the time at one state in {INTERVAL:.0f} s: {(copied + cpu) / INTERVAL:.2%}")


def make_state(rank: int) -> TrainingState:
    """A training of 2,000 steps with AdamW, all values random."""
    with torch.device("meta"):
        unet = standard_unet()
    layers = dict(unet.named_modules())
    adapters = {}
    for name in find_unet_targets(unet, "attention_mlp"):
        layer = layers[name]
        assert isinstance(layer, nn.Linear)
        adapters[f"{name}.down"] = torch.randn(rank, layer.in_features)
        adapters[f"{name}.up"] = torch.randn(layer.out_features, rank)
    parameters = [nn.Parameter(tensor) for tensor in adapters.values()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    losses = torch.rand(2000, dtype=torch.float64).tolist()
    return TrainingState("", 2000, losses, True, adapters, optimizer.state_dict(), 2000, {}, {}, [], 0.0)


if __name__ == "__main__":
    main()
