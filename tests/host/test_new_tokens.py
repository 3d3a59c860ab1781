"""Trained tokens in ComfyUI: its own tokenizer reads their file, and its text encoders answer as in
the training.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainers.embedded_base import write_embedded_checkpoint
from trainers.sdxl.model.sdxl_model import load_model
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.new_tokens import add_new_tokens
from trainers.training.embedding_file import save_embedding

PACK = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("scripts") / "new_tokens.py"
CAPTIONS = ["a photo of zwx on a table", "zwx", "a dog, zwx", "zwx, and once more zwx, red", "a dog"]


@torch.no_grad()
def test_comfyui_answers_as_the_training_did(run_in_comfyui: Callable[..., str], tmp_path: Path):
    write_embedded_checkpoint(tmp_path / "base.safetensors")
    model = load_model(tmp_path / "base.safetensors")
    encoders = (model.text_encoder.float(), model.text_encoder_2.float())
    new_tokens = add_new_tokens(model, "zwx", number=3, initializer="dog")
    for number, vectors in enumerate(new_tokens.parameters().values()):
        vectors += vectors.std() * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(number))
    save_embedding(tmp_path / "toy.safetensors", new_tokens.parameters(), word="zwx")
    prompts = [caption.replace("zwx", "embedding:toy") for caption in CAPTIONS]
    run_in_comfyui(SCRIPT.read_text(), PACK, tmp_path / "base.safetensors", tmp_path, json.dumps(prompts))
    encoded = load_file(tmp_path / "encoded.safetensors")
    for number, caption in enumerate(CAPTIONS):
        ours, plain = (encode_captions(*encoders, [caption], *tokenize) for tokenize in ((new_tokens.tokenize,), ()))
        effect = (ours.prompt_embeds - plain.prompt_embeds).norm()
        assert (effect > 0.01 * plain.prompt_embeds.norm()) == ("zwx" in caption)
        for mine, theirs in ((ours.prompt_embeds, "states"), (ours.pooled_prompt_embeds, "pooled")):
            error = (encoded[f"{theirs} {number}"].float() - mine).norm()
            assert error < 1e-5 * mine.norm(), (caption, theirs, error / mine.norm())
