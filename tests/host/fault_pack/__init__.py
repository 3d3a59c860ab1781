"""Test-only ComfyUI pack: while <base directory>/fault.txt exists, optimizer steps fail with the
fault that it names ("oom" or "error"), or the package that it names ("no peft") is not found; with
impatient.txt a polite training gives way at its next step. It also logs the number of torch's
threads.
"""

import importlib
import sys
from pathlib import Path

import folder_paths
import torch

NODE_CLASS_MAPPINGS = {}
FAULTS = {"oom": torch.OutOfMemoryError("CUDA out of memory (injected)"), "error": RuntimeError("injected")}
FAULT_FILE = Path(folder_paths.base_path) / "fault.txt"
print(f"fault_pack: torch computes in {torch.get_num_threads()} thread(s)", flush=True)
IMPATIENT_FILE = Path(folder_paths.base_path) / "impatient.txt"
plain_step = torch.optim.AdamW.step
plain_import = importlib.import_module


def step(self, *arguments, **settings):
    if IMPATIENT_FILE.exists():
        for name, module in list(sys.modules.items()):
            if name.endswith("nodes.host.progress"):
                module.SECONDS_OF_A_TURN = 0.0
    if FAULT_FILE.exists():
        raise FAULTS[FAULT_FILE.read_text().strip()]
    return plain_step(self, *arguments, **settings)


def import_module(name, package=None):
    if FAULT_FILE.exists() and FAULT_FILE.read_text() == f"no {name}":
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain_import(name, package)


torch.optim.AdamW.step = step
importlib.import_module = import_module
