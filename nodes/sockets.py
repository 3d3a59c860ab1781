"""The pack's own socket types. Everything else uses ComfyUI's types: MODEL, CLIP, VAE, IMAGE, MASK,
STRING, LORA_MODEL, LOSS_MAP.
"""

from comfy_api.latest import io

CATEGORY = "training/LoRA Trainer"
ID_PREFIX = "LoRATrainer_"

TrainingDataset = io.Custom("LORA_TRAINER_DATASET")  # trainers.dataset.dataset.Dataset
TrainingSettings = io.Custom("LORA_TRAINER_SETTINGS")  # trainers.training.earlier_settings.EarlierSettings
