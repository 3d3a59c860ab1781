"""Writes random weights of a tiny Z-Image in ComfyUI's layout, its VAE, text encoder and tokenizer.
Runs in Musubi Tuner's Python, with tests/musubi/shim on PYTHONPATH.

python make_weights.py FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from musubi_tuner.zimage import zimage_autoencoder, zimage_config, zimage_model, zimage_utils  # pyright: ignore[reportMissingImports]
from safetensors.torch import save_file
from transformers import Qwen3ForCausalLM

TOKENIZER = "Tongyi-MAI/Z-Image"
RENAMED = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_transformer():
    model = zimage_model.create_model("torch", False, torch.bfloat16)
    is_norm = ("norm.weight", "norm1.weight", "norm2.weight", "norm_q.weight", "norm_k.weight", "cap_embedder.0.weight")
    weights = {
        name: (torch.ones(tensor.shape) if name.endswith(is_norm) else torch.randn(tensor.shape) * 0.05).to(
            torch.bfloat16
        )
        for name, tensor in model.state_dict().items()
    }
    return convert_to_comfyui_layout(weights)


def convert_to_comfyui_layout(weights):
    """Convert to the layout of Comfy-Org's Z-Image files: one matrix for q, k and v."""
    layout = {}
    for name, tensor in weights.items():
        if ".attention.to_q.weight" in name:
            layout[name.replace("to_q", "qkv")] = torch.cat(
                [weights[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            )
        elif ".attention.to_k." not in name and ".attention.to_v." not in name:
            for old, new in RENAMED.items():
                name = name.replace(old, new)
            layout[name] = tensor
    return layout


def make_vae():
    model = zimage_autoencoder.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=zimage_config.ZIMAGE_VAE_LATENT_CHANNELS,
        norm_num_groups=zimage_config.DEFAULT_VAE_NORM_NUM_GROUPS,
        scaling_factor=zimage_config.ZIMAGE_VAE_SCALING_FACTOR,
        shift_factor=zimage_config.ZIMAGE_VAE_SHIFT_FACTOR,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    )
    return model.state_dict()


def make_text_encoder():
    config = zimage_utils.Qwen3Config(
        tie_word_embeddings=True, hidden_act="silu", rms_norm_eps=1e-6, rope_theta=1000000
    )
    weights = Qwen3ForCausalLM(config).to(torch.bfloat16).state_dict()
    return {name: tensor.clone() for name, tensor in weights.items() if name != "lm_head.weight"}


def write_tokenizer(hub: Path) -> None:
    """Write a tokenizer with one token per byte, in the layout of Hugging Face's cache."""
    repository, revision = hub / f"models--{TOKENIZER.replace('/', '--')}", "0" * 40
    folder = repository / "snapshots" / revision / "tokenizer"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    (folder / "vocab.json").write_text(
        json.dumps({character: token for token, character in enumerate(list_byte_characters())}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(make_tokenizer_config()))


def list_byte_characters() -> list[str]:
    """Return GPT-2's characters: printable bytes are themselves, the others start at 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]


def make_tokenizer_config() -> dict:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        **{
            "tokenizer_class": "Qwen2Tokenizer",
            "model_max_length": 1024,
            "unk_token": None,
            "bos_token": None,
            "errors": "replace",
        },
        **{
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_prefix_space": False,
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
        },
        "added_tokens_decoder": {
            str(token): {"content": content, **plain}
            for token, content in ((256, "<|endoftext|>"), (257, "<|im_start|>"), (258, "<|im_end|>"))
        },
        "chat_template": TEMPLATE,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    target = Path(sys.argv[1])
    save_file(make_transformer(), target / "z_image_tiny_bf16.safetensors")
    save_file(make_vae(), target / "ae.safetensors")
    save_file(make_text_encoder(), target / "qwen_3_4b.safetensors")
    write_tokenizer(target / "hf" / "hub")
