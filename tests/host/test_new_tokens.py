"""Trained tokens in ComfyUI: its own tokenizer reads their file, and its text encoders answer as in
the training.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainers.comfyui.server import ComfyServer
from trainers.demo.concept import TRIGGER_WORD
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


def test_the_node_trains_them_and_says_where_they_are(comfyui_server: ComfyServer):
    links = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "dataset": ["pictures", 0]}
    size = {"resolution": 64, "bucket_reso_steps": 32, "rank": 2, "max_train_steps": 2, "train_batch_size": 2}
    tokens = {"num_new_tokens": 2, "token_initializer": "mushroom", "tlora_min_rank": 1, "output_name": "toy"}
    result = comfyui_server.client.run(
        {
            "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "embedded_base.safetensors"}},
            "pictures": {
                "class_type": "LoRATrainer_LoadImages",
                "inputs": {"folder": "toadstools", "trigger_word": TRIGGER_WORD},
            },
            "train": {
                "class_type": "LoRATrainer_LoRATrainSDXL",
                "inputs": {**links, **size, **tokens, "optimizer": "AdamW", "gradient_accumulation_steps": 1},
            },
            "steps": {"class_type": "PreviewAny", "inputs": {"source": ["train", 5]}},
        }
    )
    facts = result.outputs["train"]["lora_trainer"][0]
    path = Path(facts["embedding_path"])
    assert facts["steps"] == 2 and path.name == "toy.safetensors" and path.parent.name == "embeddings"
    assert {name: len(vectors) for name, vectors in load_file(path).items()} == {"clip_l": 2, "clip_g": 2}
