"""Writes a thin SDXL with random weights and a few images, which every contender of the benchmarks
trains on.

Depth, layout and conditioning are SDXL's own (1, 2 and 10 transformer blocks, 2048-wide text
states, 2816-wide vector). Only the channels of UNet and VAE and the inner widths of the text
encoders are smaller. The text widths and the first encoder's 12 layers are kept, because sd-scripts
has them in its code.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

MODEL_CHANNELS = 64  # SDXL: 320
TEXT_WIDTH_1, TEXT_WIDTH_2 = 768, 1280
VOCABULARY_SIZE = 49408
END_TOKEN = "<|endoftext|>"
MERGES_FILE = Path(__file__).parents[1] / "trainers" / "captions" / "clip_vocabulary" / "merges.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write model/, tokenizers/ and pictures/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=256)
    options = parser.parse_args()
    write_model(options.folder / "model", seed=options.seed)
    write_tokenizers(options.folder)
    write_images(options.folder / "pictures" / "1_toy", size_hw=(options.resolution, options.resolution))


def write_model(folder: Path, *, seed: int) -> None:
    """Write the thin model as a diffusers folder, readable by transformers 4.54 and newer."""
    torch.manual_seed(seed)
    save_model(
        folder,
        build_unet(),
        build_vae(),
        CLIPTextModel(build_text_config(TEXT_WIDTH_1, num_layers=12, hidden_act="quick_gelu")),
        CLIPTextModelWithProjection(build_text_config(TEXT_WIDTH_2, num_layers=2, hidden_act="gelu")),
    )


def save_model(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
) -> None:
    """Write the parts of an SDXL as a diffusers folder, without its tokenizers."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    _save_text_encoder(text_encoder, folder / "text_encoder")
    _save_text_encoder(text_encoder_2, folder / "text_encoder_2")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    _write_json(folder / "model_index.json", MODEL_INDEX)


MODEL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.32.1",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def build_unet() -> UNet2DConditionModel:
    settings: dict[str, Any] = dict(  # diffusers annotates its tuples as having one element
        sample_size=128,
        block_out_channels=(MODEL_CHANNELS, 2 * MODEL_CHANNELS, 4 * MODEL_CHANNELS),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=TEXT_WIDTH_1 + TEXT_WIDTH_2,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=TEXT_WIDTH_2 + 6 * 256,
    )
    return UNet2DConditionModel(**settings)


def build_vae() -> AutoencoderKL:
    settings: dict[str, Any] = dict(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=0.13025,
    )
    return AutoencoderKL(**settings)


def build_text_config(width: int, *, num_layers: int, hidden_act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // 64,
        hidden_act=hidden_act,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def _save_text_encoder(text_encoder: CLIPTextModel | CLIPTextModelWithProjection, folder: Path) -> None:
    """Save under the names of transformers 4, which version 5 reads too. Version 4 would not find
    weights under the names of version 5.
    """
    text_encoder.config.architectures = [type(text_encoder).__name__]
    text_encoder.config.save_pretrained(folder)
    save_file(
        {_rename_for_transformers_4(name): tensor.contiguous() for name, tensor in _get_weights(text_encoder).items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _get_weights(text_encoder: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in text_encoder.state_dict().items() if not name.endswith("position_ids")}


def _rename_for_transformers_4(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"


def write_tokenizers(folder: Path) -> None:
    """Write CLIP's tokenizers into the model folder, and again where sd-scripts'
    --tokenizer_cache_dir expects them.
    """
    write_tokenizer(folder / "model" / "tokenizer", pad_token=END_TOKEN)
    write_tokenizer(folder / "model" / "tokenizer_2", pad_token="!")
    write_tokenizer(folder / "tokenizers" / "openai_clip-vit-large-patch14", pad_token=END_TOKEN)
    write_tokenizer(folder / "tokenizers" / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k", pad_token=END_TOKEN)


def write_tokenizer(folder: Path, *, pad_token: str) -> None:
    """Write the four files of a transformers CLIPTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = MERGES_FILE.read_text(encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    _write_json(folder / "vocab.json", _build_vocabulary(merges))
    special_tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": END_TOKEN,
        "unk_token": END_TOKEN,
        "pad_token": pad_token,
    }
    _write_json(folder / "special_tokens_map.json", special_tokens)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special_tokens},
    )


def _build_vocabulary(merges: str) -> dict[str, int]:
    """Number the tokens as CLIP does: 256 byte symbols, the same symbols at the end of a word, one
    token per merge, two special tokens.
    """
    pairs = [line.split() for line in merges.splitlines()[1:] if line]
    symbols = list_byte_symbols()
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(pair) for pair in pairs),
        "<|startoftext|>",
        END_TOKEN,
    ]
    assert len(tokens) == VOCABULARY_SIZE
    return {token: index for index, token in enumerate(tokens)}


def list_byte_symbols() -> list[str]:
    """Return printable characters for the 256 bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]


def write_images(folder: Path, *, size_hw: tuple[int, int], num_images: int = 8) -> None:
    """Write images with captions for all three dataset readers: .txt files and a metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = ("red", "green", "blue", "orange", "purple", "brown", "teal", "black")
    rows = []
    for index in range(num_images):
        colour = colours[index % len(colours)]
        name, caption = f"{index:02}.png", f"a {colour} disc number {index}"
        _draw(colour, index=index, size_hw=size_hw).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
        rows.append(json.dumps({"file_name": name, "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _draw(colour: str, *, index: int, size_hw: tuple[int, int]) -> Image.Image:
    height, width = size_hw
    image = Image.linear_gradient("L").resize((width, height)).rotate(45 * index).convert("RGB")
    left, top = width // 8 + 4 * index, height // 4
    ImageDraw.Draw(image).ellipse((left, top, left + width // 2, top + height // 2), fill=colour)
    return image


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
