"""Sliders: prompts, the objective against a hand computation, both directions, files, resuming."""

import json
from pathlib import Path

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from tests.unit.sdxl.test_trainer import RecordingHost, copy_model, weights  # noqa: F401 (a fixture)
from trainers.dataset.bucket_config import BucketConfig
from trainers.files.tensor_cache import TensorCache
from trainers.lora.modules import list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.merge import merged_lora
from trainers.sdxl.model.noise_schedule import alphas_cumprod
from trainers.sdxl.model.sdxl_model import SDXLModel
from trainers.sdxl.model.text import encode_captions
from trainers.sdxl.names import kohya_names
from trainers.sdxl.randomness import draw_item
from trainers.sdxl.slider.config import NOT_FOR_SLIDERS, SliderConfig
from trainers.sdxl.slider.family import SliderFamily
from trainers.sdxl.slider.plan import STRENGTHS, find_drawn_prompt, find_prompts, plan_slider
from trainers.sdxl.slider.prepared_slider import PreparedSlider
from trainers.training.adapter_layers import ADAPTER_NAME
from trainers.training.adapters import find_adapter_layers, list_adapter_parameters
from trainers.training.distributed import World
from trainers.training.events import Interrupted, SamplesDrawn, StageProgress, StepDone
from trainers.training.loop import train_lora
from trainers.training.plan import TrainingPlan
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings

PROMPTS = {"target": "a thing", "positive": "a large thing", "negative": "a small thing"}
FAST = {
    **PROMPTS,
    "rank": 2,
    "alpha": 1.0,
    "max_train_steps": 4,
    "gradient_checkpointing": False,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 0.0,
    "num_drawings": 3,
}


def plan(**settings) -> TrainingPlan[SliderConfig]:
    return plan_slider(RunSettings(SliderConfig(**{**FAST, **settings}), BucketConfig(resolution=64)))


def train(
    base, folder: Path, *, host: RecordingHost | None = None, name: str = "x", resume="new", cache=None, **settings
):
    return train_lora(
        SliderFamily(lambda _: copy_model(base)),
        plan(**settings),
        host or RecordingHost(),
        run_folder=RunFolder(folder, name),
        cache=cache or TensorCache(None),
        resume=resume,
    )


def prepare(base, **settings) -> PreparedSlider:
    family, host, planned = SliderFamily(lambda _: copy_model(base)), RecordingHost(), plan(**settings)
    family.identify(planned, host)
    return family.prepare(planned, host, cache=TensorCache(None), world=World())


@torch.no_grad()
def randomize(prepared: PreparedSlider) -> None:
    """Give the LoRA some weights, as if it had been trained."""
    for flat in prepared.adapted.flat_weights:
        flat.copy_(0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(1)))
    prepared.adapted.publish()


def find_parts(model: SDXLModel) -> dict[str, torch.nn.Module]:
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    return {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}


# ---- prompts and settings ----


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positive": "", "negative": " "}, "positive and negative are empty"),
        ({"positive": "a thing", "negative": " a  thing"}, "both 'a thing'"),
        ({"target": "a {attribute} thing"}, "attributes is empty"),
        ({"attributes": "red|blue|green|pink"}, "num_drawings must be 4 or more"),
        ({"adapter": "dora"}, "has no opposite"),
        ({"prior_loss_weight": 1.0, "class_prompt": " | "}, "needs class_prompt"),
        ({"train_text_encoders": True}, "train_text_encoders is not for sliders"),
        ({"caption_dropout": 0.1}, "caption_dropout is not for sliders"),
        ({"slider_guidance": 0.0}, "slider_guidance must be between"),
    ],
)
def test_bad_settings_are_explained(settings, words):
    with pytest.raises(ValueError, match=words):
        SliderConfig(**{**FAST, **settings})


def test_one_of_positive_and_negative_may_be_empty():
    assert SliderConfig(positive="smiling", negative="").prompts[0].all == ("", "smiling", "")


def test_attributes_go_to_their_place_or_in_front():
    config = SliderConfig(target="person", positive="an old {attribute} person", negative="", attributes="woman| man |")
    assert [prompts.all for prompts in config.prompts] == [
        ("woman person", "an old woman person", "woman"),
        ("man person", "an old man person", "man"),
    ]


@pytest.mark.parametrize("attributes", ["", "red|blue", "red|blue|green"])
def test_each_attribute_has_drawings_of_all_three_prompts(attributes):
    config = SliderConfig(**{**FAST, "attributes": attributes, "num_drawings": 9})
    drawn = {find_drawn_prompt(config, index) for index in range(9)}
    assert drawn == {text for prompts in config.prompts for text in prompts.all}
    for index in range(9):
        assert find_drawn_prompt(config, index) in find_prompts(config, index).all


def test_every_setting_that_is_not_for_sliders_exists():
    assert all(hasattr(SliderConfig(**FAST), name) for name in NOT_FOR_SLIDERS)


def test_the_plan_has_a_square_for_each_drawing_and_a_sample_for_each_strength():
    planned = plan(sample_every_n_steps=1, sample_prompt="a thing|a house")
    assert planned.crops.bucket_counts == {(64, 64): 3}
    assert planned.schedule.total_steps == 4
    assert [sample.strength for sample in planned.texts.samples] == [*STRENGTHS, *STRENGTHS]
    assert planned.texts.samples[1].label == "a thing (strength -1)"
    assert {"", *PROMPTS.values(), "a house"} == set(planned.texts.list_all())


# ---- the objective ----


def test_losses_are_those_of_a_hand_computation(weights):  # noqa: F811
    """Without our batches and adapters: the LoRA is merged at strengths 1 and -1."""
    prepared = prepare(weights, slider_guidance=1.5, train_batch_size=2, min_snr_gamma=5.0)
    randomize(prepared)
    items = prepared.plan.crops.items[:2]
    terms = [term.detach() for term in prepared.loss_terms(items, 3)]

    model = copy_model(weights)
    draws = [
        draw_item(prepared.config, prepared.latents.get(item, flip=False), step=3, item=item.index) for item in items
    ]
    timesteps = torch.tensor([draw.timestep for draw in draws])
    alphas = alphas_cumprod(zero_terminal_snr=False)[timesteps]
    noise = torch.stack([draw.noise.noise for draw in draws])
    signal, spread = alphas.sqrt().view(2, 1, 1, 1), (1 - alphas).sqrt().view(2, 1, 1, 1)
    noisy = signal * torch.stack([draw.latents for draw in draws]) + spread * noise

    def predict(prompt: str) -> torch.Tensor:
        texts = encode_captions(model.text_encoder, model.text_encoder_2, [prompt] * 2)
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        conditions = {"text_embeds": texts.pooled_prompt_embeds, "time_ids": ids}
        return model.unet(noisy, timesteps, texts.prompt_embeds, added_cond_kwargs=conditions).sample

    lora = prepared.adapted.read()
    with torch.no_grad():
        base, positive, negative = (predict(text) for text in PROMPTS.values())
        snr = alphas / (1 - alphas)
        for sign, term in zip((1, -1), terms, strict=True):
            target = base + sign * 1.5 * (positive - negative)
            with merged_lora(lora, find_parts(model), strength=sign):
                errors = (predict("a thing") - target).square().mean((1, 2, 3))
            torch.testing.assert_close(term, errors * (5 / snr).clamp(max=1) / 2, rtol=1e-4, atol=1e-7)


def test_both_directions_pull_an_empty_lora_the_same_way(weights):  # noqa: F811
    """Moving by +x at strength 1 is moving by -x at -1."""
    prepared = prepare(weights)
    parameters = list_adapter_parameters(prepared.model.unet)
    sums = []
    for term in prepared.loss_terms(prepared.plan.crops.items[:1], 1):
        term.sum().backward()
        sums.append(torch.cat([parameter.grad.flatten().clone() for parameter in parameters]))
    assert sums[0].abs().max() > 0
    torch.testing.assert_close(sums[1], 2 * sums[0], rtol=1e-4, atol=1e-9)


def test_strength_1_moves_towards_positive_and_minus_1_towards_negative(weights, plain):  # noqa: F811
    """Share of the direction in what the trained LoRA changes, on noise that no drawing has."""
    model = copy_model(weights)
    names = kohya_names(*(list_weighted_modules(part) for part in find_parts(model).values()))
    lora = read_lora(plain.path, names)
    noisy = torch.randn((8, 4, 8, 8), generator=torch.Generator().manual_seed(5))

    def predict(prompt: str) -> torch.Tensor:
        texts = encode_captions(model.text_encoder, model.text_encoder_2, [prompt] * 8)
        conditions = {
            "text_embeds": texts.pooled_prompt_embeds,
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 8),
        }
        return model.unet(noisy, 900, texts.prompt_embeds, added_cond_kwargs=conditions).sample

    with torch.no_grad():
        base, positive, negative = (predict(text) for text in PROMPTS.values())
        direction = positive - negative
        shares = []
        for strength in STRENGTHS:
            with merged_lora(lora, find_parts(model), strength=strength):
                shares.append(float(((predict("a thing") - base) * direction).sum() / direction.square().sum()))
    assert shares == sorted(shares) and shares[1] < -0.1 and shares[3] > 0.1, shares


def test_prior_preservation_keeps_both_directions_close_to_the_base(weights):  # noqa: F811
    """Every second term: nothing is moved yet at the start, and both directions are later."""
    prepared = prepare(weights, prior_loss_weight=2.0, class_prompt="a house", train_batch_size=2)
    items = prepared.plan.crops.items[:2]
    _, first, _, second = (float(term.detach().sum()) for term in prepared.loss_terms(items, 1))
    assert first == second == 0
    randomize(prepared)
    _, first, _, second = (float(term.detach().sum()) for term in prepared.loss_terms(items, 1))
    assert first > 0 and second > 0


# ---- runs ----


@pytest.fixture(scope="module")
def plain(weights, tmp_path_factory):  # noqa: F811
    return train(weights, tmp_path_factory.mktemp("plain"), max_train_steps=30, train_batch_size=2)


def test_the_file_says_how_to_use_it_and_has_no_trigger_word(plain):
    with safe_open(plain.path, "pt") as file:
        header = file.metadata()
    assert header["modelspec.usage_hint"] == "Strengths from -2 to 2, without a trigger word"
    assert header["modelspec.description"] == ("A slider: strength 1 leads to 'a large thing', -1 to 'a small thing'")
    assert header["ss_tag_frequency"] == "{}" and "modelspec.trigger_phrase" not in header
    settings = json.loads(header["lora_trainer_config"])
    assert {name: settings[name] for name in PROMPTS} == PROMPTS
    assert (header["ss_steps"], header["ss_network_dim"], header["ss_num_train_images"]) == ("30", "2", "3")


def test_a_stopped_slider_goes_on_bit_for_bit(weights, tmp_path):  # noqa: F811
    given = {"max_train_steps": 5, "prior_loss_weight": 1.0, "class_prompt": "a house", "resume": "auto"}
    whole = train(weights, tmp_path / "whole", **given)
    with pytest.raises(Interrupted):
        train(weights, tmp_path / "parts", host=RecordingHost(cancel_at_step=2), **given)
    host = RecordingHost()
    trained = train(weights, tmp_path / "parts", host=host, **given)
    assert len(host.select(StepDone)) == 3 and trained.losses == whole.losses
    assert all(torch.equal(trained.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"blocks_to_swap": 1000}], ids=str)
def test_recomputation_sees_the_strength_of_its_loss(weights, tmp_path, settings):  # noqa: F811
    plain, other = (
        train(weights, tmp_path, name=name, max_train_steps=2, learning_rate=0.01, **more)
        for name, more in (("plain", {}), ("other", settings))
    )
    torch.testing.assert_close(torch.tensor(other.losses), torch.tensor(plain.losses), rtol=1e-5, atol=0)


def test_other_prompts_are_another_run(weights, tmp_path):  # noqa: F811
    train(weights, tmp_path, max_train_steps=1, resume="auto")
    with pytest.raises(FileExistsError, match="Choose another output name"):
        train(weights, tmp_path, max_train_steps=1, resume="auto", positive="a huge thing")


def test_drawings_come_from_the_cache_and_a_cancelled_drawing_can_go_on(weights, tmp_path):  # noqa: F811
    cache, host = TensorCache(tmp_path / "cache"), RecordingHost()
    first = train(weights, tmp_path, max_train_steps=1, cache=cache)
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    again = train(weights, tmp_path, name="y", max_train_steps=1, cache=TensorCache(tmp_path / "cache"), host=host)
    assert cached and cached == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert [event.detail for event in host.select(StageProgress)][-1] == "drawing 3"
    assert again.losses == first.losses
    with pytest.raises(Interrupted):
        train(weights, tmp_path, name="z", host=RecordingHost(cancel_at_step=0))
    assert not (tmp_path / "z.safetensors").exists()


def test_drawings_are_those_of_the_frozen_base_even_if_the_run_starts_from_a_lora(weights, tmp_path, plain):  # noqa: F811
    fresh, started = prepare(weights), prepare(weights, network_weights=str(plain.path))
    for item in fresh.plan.crops.items:
        assert torch.equal(fresh.latents.get(item, flip=False), started.latents.get(item, flip=False))


def test_samples_show_every_strength(weights, tmp_path):  # noqa: F811
    host = RecordingHost()
    train(
        weights,
        tmp_path,
        host=host,
        max_train_steps=2,
        learning_rate=0.05,
        sample_every_n_steps=2,
        sample_steps=2,
        sample_seeds="3",
    )
    before, after = (event.image for event in host.select(SamplesDrawn))
    assert before.size == after.size == (64, 5 * 64)
    rows = [after.crop((0, 64 * row, 64, 64 * (row + 1))).tobytes() for row in range(5)]
    assert len(set(rows)) == 5
    assert rows[2] == before.crop((0, 128, 64, 192)).tobytes()  # strength 0 is the base model


def test_the_lora_is_at_full_strength_after_a_step_that_fails(weights):  # noqa: F811
    prepared = prepare(weights)
    terms = prepared.loss_terms(prepared.plan.crops.items[:1], 1)
    next(terms)
    next(terms)
    terms.close()
    layers = find_adapter_layers(prepared.model.unet).values()
    assert {layer.scaling[ADAPTER_NAME] for layer in layers if isinstance(layer, LoraLayer)} == {0.5}
