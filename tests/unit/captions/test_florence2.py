"""Florence-2 from native and legacy folders: the tiny trained model says what it was trained on,
and every usual mistake would change its text.
"""

import dataclasses
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.data.make_tiny_florence2 import COLOURS, FOLDER, plain_image
from trainers.captions.florence2 import captioner as captioner_module
from trainers.captions.florence2 import model as model_module
from trainers.captions.florence2.captioner import Florence2Captioner
from trainers.captions.florence2.cleaning import clean_caption
from trainers.captions.florence2.folder import ModelFolder, find_models
from trainers.captions.florence2.images import ImagePreparation
from trainers.captions.florence2.model import load_model
from trainers.captions.florence2.tasks import TASKS, expand_prompt
from trainers.captions.florence2.text import PromptTokenizer
from trainers.training.events import Interrupted

ANSWERS = {
    "<CAPTION>": "a photo of a {} square",
    "<DETAILED_CAPTION>": "The image shows a {} square.",
    "<MORE_DETAILED_CAPTION>": "The square is {}. The background is simple.",
    "<GENERATE_TAGS>": "{}, square, simple background",
}
IMAGES = [plain_image(colour, seed=10_000 + number) for number, colour in enumerate(COLOURS)]


def open_captioner(folder: Path = FOLDER) -> Florence2Captioner:
    return Florence2Captioner(folder, dtype=torch.float32, place=lambda _: None)


def describe(
    captioner: Florence2Captioner,
    images: list[Image.Image],
    prompt: str = "<CAPTION>",
    *,
    num_beams: int = 3,
    max_new_tokens: int = 50,
) -> list[str]:
    return captioner.describe(images, prompt=prompt, num_beams=num_beams, max_new_tokens=max_new_tokens)


def list_answers(prompt: str) -> list[str]:
    return [ANSWERS[prompt].format(colour) for colour in COLOURS]


@pytest.fixture(scope="module")
def captioner() -> Florence2Captioner:
    return open_captioner()


# ---- what it says ----


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("prompt", ANSWERS)
def test_a_trained_model_says_what_it_was_trained_on(captioner, prompt, num_beams):
    assert describe(captioner, IMAGES, prompt, num_beams=num_beams) == list_answers(prompt)


@pytest.mark.parametrize("prompt", ANSWERS)
def test_a_batch_gives_the_same_texts_as_single_images(captioner, prompt):
    sizes_hw = [(64, 64), (30, 90), (200, 50), (64, 128)]
    images = [plain_image(colour, seed=7, size_hw=size_hw) for colour, size_hw in zip(COLOURS, sizes_hw, strict=True)]
    assert describe(captioner, images, prompt) == [describe(captioner, [image], prompt)[0] for image in images]


def test_generation_is_the_same_every_time(captioner):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert describe(captioner, [noise]) == describe(captioner, [noise])


def test_swapped_colour_channels_would_change_the_text(captioner):
    swapped = [Image.merge("RGB", image.split()[::-1]) for image in IMAGES]
    assert describe(captioner, swapped) == [
        ANSWERS["<CAPTION>"].format(colour) for colour in ("blue", "green", "red", "white")
    ]


@pytest.mark.parametrize(
    "mistake",
    [
        {
            "mean": tuple(value / 255 for value in (0.485, 0.456, 0.406)),
            "std": tuple(value / 255 for value in (0.229, 0.224, 0.225)),
        },  # no rescaling
        {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},  # no normalising
    ],
    ids=["no rescaling", "no normalising"],
)
def test_missing_rescaling_or_normalising_would_change_the_text(mistake, monkeypatch):
    wrong = open_captioner()
    monkeypatch.setattr(wrong, "_preparation", dataclasses.replace(wrong._preparation, **mistake))
    assert describe(wrong, IMAGES) != list_answers("<CAPTION>")


def test_sending_the_bare_task_token_would_change_the_text(captioner, monkeypatch):
    monkeypatch.setattr(captioner_module, "expand_prompt", lambda prompt: prompt)
    assert describe(captioner, IMAGES, "<DETAILED_CAPTION>") != list_answers("<DETAILED_CAPTION>")


def test_a_wrong_number_of_image_positions_is_refused(captioner, monkeypatch):
    monkeypatch.setattr(captioner_module, "_count_positions", lambda *_: 6)
    with pytest.raises(ValueError, match="features and image tokens do not match"):
        describe(captioner, IMAGES)


def test_padding_and_marks_are_not_in_the_text():
    tokenizer = PromptTokenizer(FOLDER)
    words = tokenizer.encode("a photo of a red square")
    region = tokenizer.encode("<od><loc_1><and>")
    assert len(region) == 3
    assert tokenizer.decode([2, 0, *words, *region, 2, 1, 1]) == "a photo of a red square"


def test_pixel_values_equal_those_of_transformers_image_processor():
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    settings = json.loads((FOLDER / "preprocessor_config.json").read_text())
    theirs = kind(**settings, do_center_crop=False, do_resize=True)(IMAGES, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ImagePreparation.read(FOLDER).pixel_values(IMAGES), theirs, rtol=0, atol=1e-5)


def test_the_prompt_is_the_image_positions_and_the_sentence_between_its_marks(captioner):
    config = captioner._load_once().config
    (ids,) = captioner._build_input_ids("<GENERATE_TAGS>", 1, captioner._load_once()).tolist()
    assert ids[:5] == [config.image_token_id] * 5 and ids[5] == 0 and ids[-1] == 2
    assert 5 == (64 // 32) ** 2 + 1


def test_a_caption_is_cut_at_the_maximum_length(captioner):
    assert len(describe(captioner, IMAGES[:1], max_new_tokens=4)[0]) < len("a photo of a red square")


def test_no_more_tokens_are_generated_than_the_model_has_positions(captioner):
    assert describe(captioner, IMAGES, max_new_tokens=1023) == list_answers("<CAPTION>")


def test_an_interrupt_takes_effect_in_the_middle_of_a_caption(captioner):
    polls = []

    def check_interrupted() -> None:
        polls.append(1)
        if len(polls) == 3:
            raise Interrupted("cancelled")

    with pytest.raises(Interrupted):
        captioner.describe(
            IMAGES, prompt="<CAPTION>", num_beams=3, max_new_tokens=50, check_interrupted=check_interrupted
        )
    assert len(polls) == 3


def test_captioning_works_in_comfyuis_inference_mode():
    with torch.inference_mode():
        assert describe(open_captioner(), IMAGES) == list_answers("<CAPTION>")


def test_captioning_needs_no_package_of_the_remote_code(captioner):
    describe(captioner, IMAGES[:1])
    assert not {"timm", "einops", "flash_attn", "torchvision"} & set(sys.modules)


# ---- folders ----

_TO_LEGACY = (
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.multi_modal_projector\.image_projection\.weight$", "image_projection"),
    (r"^model\.multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
    (r"^model\.multi_modal_projector\.", ""),
    (r"^model\.(vision_tower\.convs\.\d+\.)conv\.", r"\1proj."),
    (r"^model\.(vision_tower\.convs\.)", r"\1"),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.)(spatial|channel)_block\.conv([12])\.", r"\1\2_block.conv\3.fn.dw."),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.)spatial_block\.norm1\.", r"\1spatial_block.window_attn.norm."),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.)channel_block\.norm1\.", r"\1channel_block.channel_attn.norm."),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.\w+_attn\.)", r"\1fn."),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.)norm2\.", r"\1ffn.norm."),
    (r"^model\.(vision_tower\.blocks\.\d+\.\d+\.\w+_block\.)ffn\.", r"\1ffn.fn.net."),
)


def legacy_name(name: str) -> str:
    for pattern, replacement in _TO_LEGACY:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise AssertionError(name)


def write_legacy_folder(folder: Path, *, pickled: bool = False) -> Path:
    """Write the tiny model like microsoft's folders: with the names and config of remote code, the
    projection transposed, no <image> token, and the weights that the native class drops.
    """
    folder.mkdir()
    weights = {legacy_name(name): weight for name, weight in load_file(FOLDER / "model.safetensors").items()}
    weights["image_projection"] = weights["image_projection"].T.contiguous()
    weights["language_model.model.shared.weight"] = weights["language_model.model.shared.weight"][:-1].contiguous()
    weights["language_model.lm_head.weight"] = weights["language_model.model.shared.weight"].clone()
    num_tokens, width = weights["language_model.model.shared.weight"].shape
    weights |= {
        "language_model.final_logits_bias": torch.zeros(1, num_tokens),
        "vision_tower.norms.weight": torch.ones(width),
    }
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    native = json.loads((FOLDER / "config.json").read_text())
    vision = native["vision_config"]
    vision |= {
        "model_type": "davit",
        "dim_embed": vision.pop("embed_dim"),
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": vision.pop("max_position_embeddings")},
        "visual_temporal_embedding": {
            "type": "COSINE",
            "max_temporal_embeddings": vision.pop("max_temporal_embeddings"),
        },
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    text = {
        **native["text_config"],
        "model_type": "florence2_language",
        "vocab_size": num_tokens,
        "early_stopping": True,
    }
    auto_map = {"AutoModelForCausalLM": "modeling_florence2.Florence2ForConditionalGeneration"}
    config = {
        "model_type": "florence2",
        "auto_map": auto_map,
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 32,
        "vocab_size": num_tokens,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_florence2.py").write_text("raise AssertionError('remote code was run')")
    shutil.copy(FOLDER / "preprocessor_config.json", folder)
    tokenizer = json.loads((FOLDER / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] < 5]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_a_legacy_folder_gives_the_same_texts_as_the_native_one(tmp_path, pickled):
    captioner = open_captioner(write_legacy_folder(tmp_path / "legacy", pickled=pickled))
    for prompt in ANSWERS:
        assert describe(captioner, IMAGES, prompt) == list_answers(prompt)


def test_legacy_weights_equal_the_native_ones(tmp_path):
    native = load_model(ModelFolder.open(FOLDER), dtype=torch.float32).state_dict()
    legacy = load_model(ModelFolder.open(write_legacy_folder(tmp_path / "legacy")), dtype=torch.float32).state_dict()
    assert native.keys() == legacy.keys()
    for name, weight in legacy.items():
        assert torch.equal(weight, native[name][: len(weight)]), name


def test_the_tokenizer_is_also_read_from_vocabulary_and_merges(tmp_path):
    folder = write_legacy_folder(tmp_path / "legacy")
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(bpe["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    assert describe(open_captioner(folder), IMAGES, "<GENERATE_TAGS>") == list_answers("<GENERATE_TAGS>")


def test_embeddings_share_one_parameter_and_an_untied_head_stays_separate(tmp_path):
    model = load_model(ModelFolder.open(FOLDER), dtype=torch.float32)
    assert (
        model.lm_head.weight
        is model.model.language_model.shared.weight
        is model.model.language_model.decoder.embed_tokens.weight
    )
    folder = shutil.copytree(FOLDER, tmp_path / "untied")
    weights = load_file(FOLDER / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": weights["model.language_model.shared.weight"] * 2}, folder / "model.safetensors"
    )
    untied = load_model(ModelFolder.open(folder), dtype=torch.float32)
    torch.testing.assert_close(untied.lm_head.weight, untied.model.language_model.shared.weight * 2)


def test_weights_in_the_files_own_precision_are_not_copied(monkeypatch):
    loaded = {}

    def remember(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        loaded.update(load_file(path))
        return dict(loaded), {}

    monkeypatch.setattr(model_module, "read_weights", remember)
    model = load_model(ModelFolder.open(FOLDER), dtype=torch.float16)
    assert {weight.data_ptr() for weight in model.state_dict().values()} == {
        weight.data_ptr() for weight in loaded.values()
    }


def test_sharded_weights_are_read(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "sharded")
    weights = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    shards = {
        "model-00001-of-00002.safetensors": dict(weights[::2]),
        "model-00002-of-00002.safetensors": dict(weights[1::2]),
    }
    for name, shard in shards.items():
        save_file(shard, folder / name)
    index = {"weight_map": {weight: name for name, shard in shards.items() for weight in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert describe(open_captioner(folder), IMAGES) == list_answers("<CAPTION>")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002\.safetensors"):
        ModelFolder.open(folder)


class _Harmful:
    def __reduce__(self):
        return (print, ("code of the file was run",))


def test_pickled_weights_are_refused_where_torch_is_too_old_for_them(tmp_path, monkeypatch):
    folder = write_legacy_folder(tmp_path / "legacy", pickled=True)
    captioner = open_captioner(folder)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cu121"))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    message = r"pytorch_model\.bin is a pickle, .* torch 2\.5\.1\+cu121 opens it .*with safetensors, .*or torch 2\.6"
    with pytest.raises(ValueError, match=message):
        describe(captioner, IMAGES[:1])


def test_a_loaded_model_outlives_its_file_being_cut(tmp_path):
    """Weights that are mapped would end the process with SIGBUS."""
    folder = tmp_path / "model"
    shutil.copytree(FOLDER, folder)
    captioner = open_captioner(folder)
    expected = describe(captioner, IMAGES[:1])
    os.truncate(folder / "model.safetensors", 0)
    assert describe(captioner, IMAGES[:1]) == expected


def test_pickled_weights_cannot_run_code(tmp_path, capsys):
    folder = write_legacy_folder(tmp_path / "legacy", pickled=True)
    torch.save({"image_projection": _Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read"):
        describe(open_captioner(folder), IMAGES)
    assert "code of the file was run" not in capsys.readouterr().out


def test_the_identity_depends_on_the_content_not_the_path(tmp_path):
    copy = shutil.copytree(FOLDER, tmp_path / "copy")
    assert open_captioner(copy).identity == open_captioner(FOLDER).identity
    (copy / "generation_config.json").write_text("{}")
    assert open_captioner(copy).identity != open_captioner(FOLDER).identity


def test_models_are_found_one_and_two_levels_down(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "Florence-2-tiny")
    shutil.copytree(FOLDER, tmp_path / "owner" / "Florence-2-tiny")
    (tmp_path / "Qwen").mkdir()
    (tmp_path / "Qwen" / "config.json").write_text('{"model_type": "qwen2"}')
    half = shutil.copytree(FOLDER, tmp_path / "half")
    (half / "model.safetensors").unlink()
    assert find_models(tmp_path) == ["Florence-2-tiny", "owner/Florence-2-tiny"]
    assert find_models(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no such folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2"}'),
            "not a Florence-2 model but qwen2",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"neither tokenizer\.json nor"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(40)), "weights cannot be read"),
        (
            lambda folder: save_file({"lm_head.weight": torch.zeros(3, 2)}, folder / "model.safetensors"),
            "missing .* more, unknown nothing",
        ),
        (
            lambda folder: save_file({"other": torch.zeros(3, 2)}, folder / "model.safetensors"),
            "no word embeddings",
        ),
    ],
)
def test_an_unusable_folder_is_explained(tmp_path, break_it, message):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    break_it(folder)
    with pytest.raises((ValueError, OSError), match=message):
        describe(open_captioner(folder), IMAGES)


def test_weights_of_the_wrong_size_are_explained(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = "model.multi_modal_projector.image_projection.weight"
    save_file({**weights, name: torch.zeros(7, 7)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"{name} is [7, 7]; config.json says [32, 32]")):
        describe(open_captioner(folder), IMAGES)


# ---- prompts and cleaning ----


def test_every_task_has_a_prompt():
    assert expand_prompt("<CAPTION>") == "What does the image describe?"
    assert expand_prompt(" <MIX_CAPTION> ") == "<MIX_CAPTION>"
    assert all(expand_prompt(token) for token in TASKS.values())


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (" ", "the prompt is empty"),
        ("<OD>", "gives regions of the image"),
        ("<CAPTION> in French", "must be used alone"),
    ],
)
def test_a_prompt_that_cannot_give_a_caption_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        expand_prompt(prompt)


def test_a_prompt_with_the_image_token_or_too_long_is_refused(captioner):
    with pytest.raises(ValueError, match="token that represents the image"):
        describe(captioner, IMAGES, "what is <image>")
    with pytest.raises(ValueError, match="too many for this model"):
        describe(captioner, IMAGES, "square " * 100)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("The image shows a red square.", "A red square."),
        (
            "The image is a close-up portrait of a cat. The cat is grey.",
            "A close-up portrait of a cat. The cat is grey.",
        ),
        ("In this image we can see a dog.", "A dog."),
        ("in the image there is a red square, with a simple background", "a red square, with a simple background"),
        ("In the image, a woman is smiling.", "A woman is smiling."),
        ("The image depicts two men.  They\ntalk.", "Two men. They talk."),
        ("This is an image of a cat", "A cat"),
        ("An image of a cat", "A cat"),
        ("A picture of a cat", "A cat"),
        ("The picture shows a cat", "A cat"),
        ("a photo of a cat", "a photo of a cat"),
        ("The image quality is poor.", "The image quality is poor."),
        ("The image is blurry.", "The image is blurry."),
        ("1girl, solo, the image shows", "1girl, solo, the image shows"),
        ("The image shows ", "The image shows"),
    ],
)
def test_only_openings_are_removed(said, kept):
    assert clean_caption(said) == kept
