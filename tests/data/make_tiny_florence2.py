"""Makes tests/data/tiny_florence2: Florence-2 at toy size, trained to caption images of one colour.
`python tests/data/make_tiny_florence2.py`.

It has the real architecture and class, starts random, and is overfitted on LESSONS in some minutes
on one core. Its files are those of the published folders, written with the oldest supported version
of tokenizers, since newer versions read what older ones wrote.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as serialize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Florence2Config, Florence2ForConditionalGeneration

FOLDER = Path(__file__).with_name("tiny_florence2")
SIZE, WIDTH, NUM_STEPS, LEARNING_RATE = 64, 32, 600, 6e-3
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 40), "blue": (40, 60, 220), "white": (235, 235, 235)}
# The prompts for the model, and the answers that it must learn.
LESSONS = {
    "What does the image describe?": "a photo of a {colour} square",
    "Describe in detail what is shown in the image.": "The image shows a {colour} square.",
    "Describe with a paragraph what is shown in the image.": "The square is {colour}. The background is simple.",
    "<GENERATE_TAGS>": "{colour}, square, simple background",
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
REGION_MARKS = ["<od>", "</od>", "<loc_0>", "<loc_1>", "<and>"]


def plain_image(colour: str, seed: int = 0, size_hw: tuple[int, int] = (48, 80)) -> Image.Image:
    """Make an image of one colour with a little noise."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*size_hw, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


def make_tokenizer() -> Tokenizer:
    """Make a byte-level BPE like BART's, with its special tokens at BART's ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    sentences = [*LESSONS, *(text.format(colour=colour) for text in LESSONS.values() for colour in COLOURS)]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.add_special_tokens([*REGION_MARKS, "<image>"])
    return tokenizer


def make_model(tokenizer: Tokenizer) -> Florence2ForConditionalGeneration:
    config = Florence2Config(
        text_config={
            "model_type": "bart",
            "vocab_size": tokenizer.get_vocab_size(),
            "d_model": WIDTH,
            "max_position_embeddings": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "decoder_start_token_id": 2,
        },
        vision_config={
            "model_type": "florence_vision",
            "depths": [1, 1, 1, 1],
            "embed_dim": [8, 16, 16, WIDTH],
            "num_heads": [1, 2, 2, 4],
            "num_groups": [1, 2, 2, 4],
            "window_size": 4,
            "projection_dim": WIDTH,
            "max_position_embeddings": 4,
            "max_temporal_embeddings": 4,
            "drop_path_rate": 0.0,
        },
        image_token_id=tokenizer.token_to_id("<image>"),
    )
    model = Florence2ForConditionalGeneration(config)
    for name, weight in model.named_parameters():  # the usual deviation of 0.02 learns too slowly at this size
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.1 if "embed" in name or "shared" in name else weight[0].numel() ** -0.5)
    return model.eval()  # no dropout


def pixel_values(images: list[Image.Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in images]) / 255
    return torch.from_numpy((pixels - MEAN) / STD).permute(0, 3, 1, 2).float()


def teach(model: Florence2ForConditionalGeneration, tokenizer: Tokenizer) -> float:
    """Train with one prompt per batch, as in use: no padding after the image tokens. Return the
    last loss.
    """
    places = [tokenizer.token_to_id("<image>")] * ((SIZE // 32) ** 2 + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS, pct_start=0.1)
    loss = torch.tensor(0.0)
    for step in range(NUM_STEPS):
        losses = []
        for number, (prompt, answer) in enumerate(LESSONS.items()):
            images = [
                plain_image(colour, seed=1000 * step + 10 * number + index) for index, colour in enumerate(COLOURS)
            ]
            inputs = torch.tensor(
                [[*places, 0, *tokenizer.encode(prompt, add_special_tokens=False).ids, 2]] * len(images)
            )
            answers = [
                [0, *tokenizer.encode(answer.format(colour=colour), add_special_tokens=False).ids, 2]
                for colour in COLOURS
            ]
            length = max(map(len, answers))
            labels = torch.tensor([ids + [1] * (length - len(ids)) for ids in answers])
            decoder_inputs = torch.cat([torch.full((len(labels), 1), 2), labels[:, :-1]], dim=1)
            logits = model(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                pixel_values=pixel_values(images),
                decoder_input_ids=decoder_inputs,
            ).logits
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=1))
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def save(model: Florence2ForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Save the files of florence-community's folders, in half precision like the published ones,
    which keeps them small.
    """
    FOLDER.mkdir(exist_ok=True)
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    weights = {
        name: weight.half().contiguous() for name, weight in model.state_dict().items() if not name.endswith(tied)
    }
    (FOLDER / "model.safetensors").write_bytes(serialize(weights, metadata={"format": "pt"}))
    config = {"architectures": ["Florence2ForConditionalGeneration"], **model.config.to_dict()}
    write_json("config.json", {name: value for name, value in config.items() if name != "_name_or_path"})
    write_json(
        "generation_config.json",
        {
            "num_beams": 3,
            "early_stopping": True,
            "no_repeat_ngram_size": 3,
            "forced_bos_token_id": 0,
            "forced_eos_token_id": 2,
        },
    )
    size = {"height": SIZE, "width": SIZE}
    write_json(
        "preprocessor_config.json",
        {"size": size, "image_mean": MEAN, "image_std": STD, "resample": 3, "do_rescale": True, "do_normalize": True},
    )
    tokenizer.save(str(FOLDER / "tokenizer.json"))


def write_json(name: str, content: dict[str, object]) -> None:
    (FOLDER / name).write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made_tokenizer = make_tokenizer()
    made_model = make_model(made_tokenizer)
    print(f"loss {teach(made_model, made_tokenizer):.4f}")
    save(made_model, made_tokenizer)
