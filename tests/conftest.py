"""What every test runs under: one thread, no network for models; and the versions that a report needs."""

import os
from importlib.metadata import version

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)


def pytest_report_header() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
