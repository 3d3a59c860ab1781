"""Pivotal tuning: new tokens of both text encoders that are trained together with the LoRA."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.unit.sdxl.test_trainer import (
    RecordingHost,
    copy_model,
    dataset,  # noqa: F401 (fixture)
    train,
    weights,  # noqa: F401 (fixture)
)
from trainers.captions.clip_tokenizer import END_TOKEN, tokenize
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.new_tokens import NewTokens, add_new_tokens
from trainers.training.events import Interrupted, Notice
from trainers.training.run_folder import RunFolder

PIVOTAL = {"num_new_tokens": 3, "token_learning_rate": 1e-2, "save_dtype": "fp32"}


def load_embedding(lora: Path) -> dict[str, torch.Tensor]:
    return load_file(lora.parent / "embeddings" / lora.name)


def make_new_tokens(weights, *, number=3, initializer="") -> tuple[NewTokens, tuple]:  # noqa: F811
    model = copy_model(weights)
    new_tokens = add_new_tokens(model, "zwx", number=number, initializer=initializer)
    return new_tokens, (model.text_encoder, model.text_encoder_2)


def test_captions_have_the_new_tokens_in_place_of_the_word(weights):  # noqa: F811
    new_tokens, _ = make_new_tokens(weights)
    caption = "a zwx dog, Zwx; zwxy"
    (found,) = new_tokens.tokenize([caption], pad_token=0)
    (around,) = tokenize(["a dog, ; zwxy"], pad_token=0)
    new = [-1, -2, -3]
    ids = found[0].tolist()
    assert ids[2:5] == new and ids[7:10] == new and ids.count(-1) == 2
    assert [each for each in ids if each >= 0][:12] == around[0].tolist()[:12] and END_TOKEN in ids
    assert torch.equal(new_tokens.tokenize(["a dog"], pad_token=0)[0], tokenize(["a dog"], pad_token=0)[0])
    (long,) = new_tokens.tokenize(["zwx " * 60], pad_token=0)
    assert long.shape == (3, 77) and int((long < 0).sum()) == 180


def test_new_tokens_start_as_the_initializer_or_the_word_token_by_token(weights):  # noqa: F811
    for initializer, text in (("", "zwx"), ("black cat", "black cat")):
        new_tokens, _ = make_new_tokens(weights, initializer=initializer)
        plain = copy_model(weights)
        (ids,) = tokenize([text], pad_token=0)
        ids = [each for each in ids[0].tolist() if 0 < each < 49406]
        for vectors, encoder in zip(
            new_tokens.parameters().values(), (plain.text_encoder, plain.text_encoder_2), strict=True
        ):
            table = encoder.get_input_embeddings().state_dict()["weight"]
            assert torch.equal(vectors, table[[ids[index % len(ids)] for index in range(3)]])


def test_as_long_as_they_are_the_words_own_tokens_they_change_nothing(weights):  # noqa: F811
    """The pooled embedding too, which is that of the END token."""
    number = int((tokenize(["zwx"], pad_token=0)[0] > 0).sum()) - 2
    new_tokens, encoders = make_new_tokens(weights, number=number)
    plain = copy_model(weights)
    captions = ["a zwx dog", "zwx", "a dog", ""]
    with torch.no_grad():
        ours = encode_captions(*encoders, captions, new_tokens.tokenize)
        expected = encode_captions(plain.text_encoder, plain.text_encoder_2, captions)
    assert torch.equal(ours.prompt_embeds, expected.prompt_embeds)
    assert torch.equal(ours.pooled_prompt_embeds, expected.pooled_prompt_embeds)


def test_gradients_reach_the_vectors_and_nothing_else(weights):  # noqa: F811
    """As finite differences say."""
    new_tokens, encoders = make_new_tokens(weights)
    for encoder in encoders:
        encoder.requires_grad_(False)
    vectors = list(new_tokens.parameters().values())
    for each in vectors:
        each.requires_grad_(True)

    def measure() -> torch.Tensor:
        embeddings = encode_captions(*encoders, ["a zwx dog"], new_tokens.tokenize)
        return embeddings.prompt_embeds.square().mean() + embeddings.pooled_prompt_embeds.square().mean()

    measure().backward()
    for each in vectors:
        assert each.grad is not None and bool((each.grad != 0).any(dim=1).all())
        direction = each.grad / each.grad.norm()
        with torch.no_grad():
            each += 1e-2 * direction
            above = measure()
            each -= 2e-2 * direction
            below = measure()
            each += 1e-2 * direction
        assert ((above - below) / 2e-2).item() == pytest.approx(each.grad.norm().item(), rel=2e-2)


def test_a_run_trains_and_saves_them_with_the_lora(weights, dataset, tmp_path):  # noqa: F811
    host = RecordingHost()
    trained = train(weights, dataset, tmp_path, host=host, save_every_n_steps=2, ema_decay=0.5, **PIVOTAL)
    found = load_embedding(trained.path)
    start, _ = make_new_tokens(weights)
    assert {name: (tuple(each.shape), each.dtype) for name, each in found.items()} == {
        name: (tuple(each.shape), torch.float32) for name, each in start.parameters().items()
    }
    for name, first in start.parameters().items():
        assert bool((found[name] != first).any(dim=1).all())
    assert all("bundle" not in name and "lora_unet" in name for name in load_file(trained.path))
    (checkpoint,) = trained.checkpoints
    for other in (checkpoint, trained.ema_path):
        assert not torch.equal(load_embedding(other)["clip_l"], found["clip_l"])
    with safe_open(trained.path.parent / "embeddings" / trained.path.name, "pt") as file:
        assert file.metadata()["modelspec.trigger_phrase"] == "zwx"
    said = next(event.message for event in host.select(Notice) if "the new tokens" in event.message)
    assert "in prompts write embedding:x (in Forge x) in place of zwx" in said
    assert '"num_new_tokens": 3' in trained.metadata["lora_trainer_config"]


def test_without_them_nothing_is_written_and_they_change_the_losses(weights, dataset, tmp_path):  # noqa: F811
    plain = train(weights, dataset, tmp_path / "plain")
    assert not (tmp_path / "plain" / "embeddings").exists() and plain.embedding_path is None
    pivotal = train(weights, dataset, tmp_path / "pivotal", **PIVOTAL)
    assert pivotal.losses[0] != plain.losses[0]  # three tokens, of which the word has fewer
    rested = train(weights, dataset, tmp_path / "rested", **{**PIVOTAL, "token_learning_rate": 1e-9})
    assert rested.losses[0] == pivotal.losses[0] and rested.losses[1] != pivotal.losses[1]


@pytest.mark.parametrize(
    "given",
    [{}, {"train_text_encoders": True, "text_encoder_learning_rate": 1e-3, "gradient_checkpointing": True}],
    ids=["alone", "with text encoders"],
)
def test_a_stopped_run_goes_on_bit_for_bit(weights, dataset, tmp_path, given):  # noqa: F811
    given = {**PIVOTAL, **given, "max_train_steps": 4, "ema_decay": 0.5, "resume": "auto"}
    whole = train(weights, dataset, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, dataset, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    again = train(weights, dataset, tmp_path / "parts", **given)
    assert again.losses == whole.losses
    for one, other in ((whole.path, again.path), (whole.ema_path, again.ema_path)):
        expected, found = load_embedding(one), load_embedding(other)
        assert all(torch.equal(found[name], each) for name, each in expected.items())
    assert all(torch.equal(again.state_dict[name], each) for name, each in whole.state_dict.items())


def test_a_finished_run_that_is_loaded_brings_its_tokens(weights, dataset, tmp_path):  # noqa: F811
    first = train(weights, dataset, tmp_path, name="first", max_train_steps=1, **PIVOTAL)
    second = train(weights, dataset, tmp_path, name="second", max_train_steps=1, resume="auto", **PIVOTAL)
    assert second.was_loaded and second.path == RunFolder(tmp_path, "second").final_path
    assert second.embedding_path == tmp_path / "embeddings" / "second.safetensors"
    assert torch.equal(load_embedding(second.path)["clip_g"], load_embedding(first.path)["clip_g"])


def test_without_one_word_for_all_images_they_are_refused(weights, dataset, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match=r"stand for the trigger word, and not all images have one\. Set trigger_word"):
        train(weights, replace(dataset, trigger_word=""), tmp_path, **PIVOTAL)
    images = [replace(dataset.images[0], trigger_word="abc"), *dataset.images[1:]]
    with pytest.raises(ValueError, match="the images have several: abc, zwx"):
        train(weights, replace(dataset, images=images), tmp_path, **PIVOTAL)
    with pytest.raises(ValueError, match="num_new_tokens is 2, but token_learning_rate is 0"):
        SDXLConfig(num_new_tokens=2, token_learning_rate=0.0)
