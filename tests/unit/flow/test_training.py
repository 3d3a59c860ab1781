"""A flow training on the toy model: what is trained, and that only the settings decide it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.flow.toy_base import Block, ToyBase
from trainers.dataset.bucket_config import BucketConfig
from trainers.dataset.caption_variants import CaptionConfig
from trainers.dataset.config import DatasetConfig
from trainers.dataset.dataset import Dataset
from trainers.dataset.scan import scan_folder
from trainers.files.tensor_cache import TensorCache
from trainers.flow.base_model import Conditions
from trainers.flow.checkpointing import checkpoint_blocks
from trainers.flow.config import FlowConfig
from trainers.flow.families import FlowFamilyRow
from trainers.flow.family import FlowFamily
from trainers.flow.objective import find_shift_by_size
from trainers.training.console_host import ConsoleHost
from trainers.training.events import Event, Interrupted, Notice, StageProgress, StepDone
from trainers.training.host import Host
from trainers.training.loop import train_lora
from trainers.training.plan import plan_training
from trainers.training.run_folder import RunFolder
from trainers.training.run_settings import RunSettings
from trainers.training.trained_lora import TrainedLora

USUAL = {
    "rank": 2,
    "alpha": 2.0,
    "max_train_steps": 6,
    "learning_rate": 1e-2,
    "save_dtype": "fp32",
    "lr_warmup_steps": 0.0,
    "lr_scheduler": "constant",
    "validate_every_n_steps": -1,
    "caption_dropout": 0.0,
}


class ListeningHost(ConsoleHost):
    def __init__(self, cancel_after: int = 0) -> None:
        super().__init__(torch.device("cpu"), quiet=True)
        self.events: list[Event] = []
        self.cancel_after = cancel_after

    def report(self, event: Event) -> None:
        super().report(event)
        self.events.append(event)
        if isinstance(event, StepDone) and event.step == self.cancel_after:
            raise Interrupted

    @property
    def notices(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number, (size, caption) in enumerate([((64, 64), "zwx one"), ((64, 64), "zwx two of them"), ((64, 96), "zwx")]):
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def dataset(images: Path) -> Dataset:
    return scan_folder(DatasetConfig(images=str(images), trigger_word="zwx"))


def train(
    dataset: Dataset,
    folder: Path,
    host: ListeningHost | None = None,
    *,
    base: ToyBase | None = None,
    plan_memory: Callable[[Conditions, Host], int] = lambda *_: 0,
    resume: str = "new",
    flip: bool = False,
    step: int = 32,
    **settings: Any,
) -> TrainedLora:
    config = FlowConfig(**{**USUAL, **settings})
    buckets = BucketConfig(resolution=64, bucket_reso_steps=step, random_flip=flip)
    plan = plan_training(dataset, RunSettings(config, buckets, CaptionConfig()))
    family = FlowFamily(lambda _: base or ToyBase(), plan_memory)
    with host or ListeningHost() as listening:
        return train_lora(
            family, plan, listening, run_folder=RunFolder(folder, "toy"), cache=TensorCache(None), resume=resume
        )


def assert_equal(one: TrainedLora, other: TrainedLora) -> None:
    assert one.losses == other.losses and one.state_dict.keys() == other.state_dict.keys()
    assert all(torch.equal(weight, other.state_dict[name]) for name, weight in one.state_dict.items())


def assert_close(one: TrainedLora, other: TrainedLora) -> None:
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=1e-5, atol=1e-6)


def test_layers_of_blocks_get_a_lora_but_modulation_and_idle_ones(dataset, tmp_path):
    """The last block's text stream reaches nothing."""
    host = ListeningHost()
    result = train(dataset, tmp_path, host)
    modules = {re.sub(r"\.(lora_down|lora_up|alpha).*", "", name) for name in result.state_dict}
    expected = ("layers.0.attn", "layers.0.mlp", "layers.0.text_mlp", "layers.1.attn", "layers.1.mlp")
    assert modules == {f"lora_unet_{name.replace('.', '_')}" for name in expected}
    assert any("1 layer without effect on the output get no LoRA" in notice for notice in host.notices)


def test_recomputed_activations_change_nothing(dataset, tmp_path):
    """The blocks write into their input, which the recomputation needs."""
    assert_equal(
        train(dataset, tmp_path / "1", gradient_checkpointing=True, lora_dropout=0.2),
        train(dataset, tmp_path / "2", gradient_checkpointing=False, lora_dropout=0.2),
    )


def test_a_block_without_anything_to_train_is_not_recomputed(dataset, tmp_path):
    """The first block has no adapter, and its inputs no gradient."""
    result = train(dataset, tmp_path, target_modules=r"layers\.1\.attn")
    assert len(result.state_dict) == 3


def test_a_batch_equals_its_images_one_by_one(dataset, tmp_path):
    """Texts of different lengths too."""
    same_size = replace(dataset, images=dataset.images[:2])
    assert_close(
        train(same_size, tmp_path / "1", train_batch_size=2, gradient_accumulation_steps=1),
        train(same_size, tmp_path / "2", train_batch_size=1, gradient_accumulation_steps=2),
    )


def test_a_stopped_run_goes_on_bit_for_bit(dataset, tmp_path):
    settings = {"lora_dropout": 0.2, "prior_loss_weight": 0.5, "class_prompt": "a thing", "flip": True}
    whole = train(dataset, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "parts", ListeningHost(cancel_after=3), resume="auto", **settings)
    assert_equal(train(dataset, tmp_path / "parts", resume="auto", **settings), whole)


def test_a_cancel_while_captions_are_encoded_writes_nothing_and_the_rest_is_encoded_later(dataset, tmp_path):
    class CancellingHost(ListeningHost):
        def report(self, event: Event) -> None:
            super().report(event)
            if isinstance(event, StageProgress) and event.detail == "captions" and event.step == 2:
                raise Interrupted

    base, whole = ToyBase(), train(dataset, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "cancelled", CancellingHost(), base=base)
    assert not base.num_computing and list_files(tmp_path / "cancelled") == []
    assert_equal(train(dataset, tmp_path / "cancelled", base=base, resume="auto"), whole)


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_prior_preservation_begins_with_no_loss(dataset, tmp_path):
    """At the first step the LoRA is zero: the predictions with and without it are the same."""
    plain = train(dataset, tmp_path / "1", max_train_steps=2)
    prior = train(dataset, tmp_path / "2", max_train_steps=2, prior_loss_weight=1.0, class_prompt="a thing")
    assert prior.losses[0] == plain.losses[0]
    assert prior.losses[1] > plain.losses[1]


def test_a_black_mask_leaves_an_image_out(images, tmp_path):
    folder = tmp_path / "masked"
    folder.mkdir()
    for path in images.glob("0.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    Image.new("L", (64, 64), 128).save(folder / "0-masklabel.png")
    masked = scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx"))
    plain = replace(masked, images=[replace(masked.images[0], mask_path=None, mask_sha256="")])
    half = train(masked, tmp_path / "1", max_train_steps=1, unmasked_weight=0.0).losses[0]
    whole = train(plain, tmp_path / "2", max_train_steps=1).losses[0]
    assert half == pytest.approx(whole * 128 / 255, rel=1e-5)


@pytest.mark.parametrize("sampling", ["uniform", "sigmoid", "logit_normal"])
def test_each_sampling_of_noise_levels_is_used(dataset, tmp_path, sampling):
    one = train(dataset, tmp_path / "1", timestep_sampling=sampling, logit_mean=0.5)
    family = FlowFamilyRow("Toy", timestep_sampling=sampling)
    assert_equal(one, train(dataset, tmp_path / "2", base=ToyBase(family=family), logit_mean=0.5))
    others = {"uniform", "sigmoid", "logit_normal"} - {sampling}
    for other in others:
        settings = {"timestep_sampling": other, "logit_mean": 0.5}
        assert train(dataset, tmp_path / other, **settings).losses != one.losses


@pytest.mark.parametrize(
    "settings",
    [
        {"discrete_flow_shift": 3.0},
        {"loss_weighting": "min_snr"},
        {"loss_weighting": "bell"},
        {"seed": 1},
        {"loss_type": "huber"},
        {"multires_noise_iterations": 3},
        {"ip_noise_gamma": 0.1},
        {"immiscible_noise": 4},
    ],
)
def test_settings_of_the_objective_change_the_losses(dataset, tmp_path, settings):
    plain = train(dataset, tmp_path / "1", max_train_steps=2)
    assert train(dataset, tmp_path / "2", max_train_steps=2, **settings).losses != plain.losses


def test_samples_are_drawn_and_change_nothing(dataset, tmp_path):
    settings = {"sample_every_n_steps": 3, "sample_prompt": "zwx --w 96 --h 64 | other", "sample_steps": 2}
    with_samples = train(dataset, tmp_path / "1", **settings)
    assert_equal(with_samples, train(dataset, tmp_path / "2"))
    (sheet,) = (tmp_path / "1").rglob("samples")
    assert any(sheet.iterdir())


def test_validation_is_measured_and_changes_nothing(dataset, tmp_path):
    settings = {"max_train_steps": 200, "train_batch_size": 2}
    measured = train(dataset, tmp_path / "1", **{**settings, "validate_every_n_steps": 0})
    assert_equal(measured, train(dataset, tmp_path / "2", **settings))
    assert list((tmp_path / "1").rglob("validation.csv"))


def test_a_run_starts_from_its_own_file(dataset, tmp_path):
    first = train(dataset, tmp_path / "1")
    second = train(dataset, tmp_path / "2", network_weights=str(first.path), max_train_steps=1, learning_rate=1e-9)
    for name, weight in first.state_dict.items():
        torch.testing.assert_close(second.state_dict[name], weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapter", ["lora", "lokr"])
def test_layers_that_are_left_out_of_a_step_keep_their_adapter(dataset, tmp_path, adapter):
    """Which layers are idle is asked without dropout."""
    plain = train(dataset, tmp_path / "1", adapter=adapter, max_train_steps=1)
    dropped = train(dataset, tmp_path / "2", adapter=adapter, module_dropout=0.5)
    assert dropped.state_dict.keys() == plain.state_dict.keys() and len(set(dropped.losses)) > 1


@pytest.mark.parametrize("adapter", ["dora", "loha", "lokr"])
def test_every_kind_of_adapter_trains_resumes_and_starts_from_its_file(dataset, tmp_path, adapter):
    """Layers without effect on the output get none, as with a LoRA."""
    settings = {"adapter": adapter, "lora_dropout": 0.2, "prior_loss_weight": 0.5, "class_prompt": "a thing"}
    whole = train(dataset, tmp_path / "whole", blocks_to_swap=1, **settings)
    assert {name.partition(".")[0] for name in whole.state_dict} == {
        f"lora_unet_layers_{name}" for name in ("0_attn", "0_mlp", "0_text_mlp", "1_attn", "1_mlp")
    }
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "parts", ListeningHost(cancel_after=3), resume="auto", **settings)
    assert_equal(train(dataset, tmp_path / "parts", resume="auto", **settings), whole)
    more = train(dataset, tmp_path / "2", adapter=adapter, network_weights=str(whole.path), learning_rate=1e-9)
    for name, weight in whole.state_dict.items():
        torch.testing.assert_close(more.state_dict[name], weight, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="and this run trains a LoRA"):
        train(dataset, tmp_path / "3", network_weights=str(whole.path))


def test_layers_have_ranks_and_learning_rates_of_their_own(dataset, tmp_path):
    settings = {"rank": 2, "network_reg_dims": r"layers\.0=5", "network_reg_lrs": r"layers\.1\.mlp=1e-9"}
    whole = train(dataset, tmp_path / "whole", **settings)
    ranks = {name: len(tensor) for name, tensor in whole.state_dict.items() if "lora_down" in name}
    assert ranks == {name: 5 if "_layers_0_" in name else 2 for name in ranks} and set(ranks.values()) == {2, 5}
    ups = {name: tensor.abs().max() for name, tensor in whole.state_dict.items() if "lora_up" in name}
    assert all((size < 1e-6) == ("layers_1_mlp" in name) for name, size in ups.items())
    with pytest.raises(Interrupted):
        train(dataset, tmp_path / "parts", ListeningHost(cancel_after=3), resume="auto", **settings)
    assert_equal(train(dataset, tmp_path / "parts", resume="auto", **settings), whole)
    train(dataset, tmp_path / "2", network_weights=str(whole.path), **settings)
    with pytest.raises(
        ValueError, match=r"network_reg_lrs: 'nothing' matches no layer that is trained\. Trained are 6,"
    ):
        train(dataset, tmp_path / "3", network_reg_lrs="nothing=1")


def test_a_t_lora_trains_only_the_ranks_of_its_noise(dataset, tmp_path):
    """From timestep 900 on, 2 + floor(6 * 100 / 1000) = 2 of 8 ranks; without noise, all."""
    given = {"rank": 8, "tlora_min_rank": 2, "prior_loss_weight": 0.5, "class_prompt": "a thing"}
    noisy = train(dataset, tmp_path / "noisy", min_timestep=900, **given)
    clean = train(dataset, tmp_path / "clean", max_timestep=100, **given)
    for result, kept in ((noisy, 2), (clean, 7)):
        ups = [tensor for name, tensor in result.state_dict.items() if "lora_up" in name]
        assert ups and all(up[:, :kept].any(0).all() and not up[:, kept + (kept > 2) :].any() for up in ups)
    assert json.loads(noisy.metadata["ss_network_args"])["tlora_min_rank"] == "2"


def test_a_t_lora_of_a_batch_equals_its_images_one_by_one_and_resumes(dataset, tmp_path):
    """Recomputed activations too; each image has its own ranks."""
    same_size = replace(dataset, images=dataset.images[:2])
    given = {"rank": 8, "tlora_min_rank": 2, "resume": "auto"}
    whole = train(same_size, tmp_path / "1", train_batch_size=2, gradient_checkpointing=True, **given)
    assert_close(whole, train(same_size, tmp_path / "2", gradient_accumulation_steps=2, **given))
    assert_close(whole, train(same_size, tmp_path / "3", train_batch_size=2, gradient_checkpointing=False, **given))
    assert train(same_size, tmp_path / "4", train_batch_size=2, **{**given, "tlora_min_rank": 0}).losses != whole.losses
    with pytest.raises(Interrupted):
        host = ListeningHost(cancel_after=3)
        train(same_size, tmp_path / "5", host, train_batch_size=2, gradient_checkpointing=True, **given)
    again = train(same_size, tmp_path / "5", train_batch_size=2, gradient_checkpointing=True, **given)
    assert_equal(again, whole)


def test_sizes_that_the_model_would_pad_are_refused(dataset, tmp_path):
    base = ToyBase(family=FlowFamilyRow("Toy", resolution_step=128))
    message = "Toy takes images whose sides are multiples of 128 pixels, not .*64 x 64.*. Set bucket_reso_steps"
    with pytest.raises(ValueError, match=message):
        train(dataset, tmp_path, base=base)


def test_captions_beyond_the_limit_are_counted_and_named(images, tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    (folder / "0.png").write_bytes((images / "0.png").read_bytes())
    (folder / "0.txt").write_text("zwx a b c d e f g")
    host = ListeningHost()
    train(scan_folder(DatasetConfig(images=str(folder), trigger_word="zwx")), tmp_path, host, max_train_steps=1)
    assert any(
        "1 caption longer than the 4 tokens that Toy was trained with; the longest has 9" in notice
        for notice in host.notices
    )


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [(r"layers\.(", "is neither auto nor a regular expression"), ("nothing", "matches no linear layer of Network")],
)
def test_wrong_targets_are_refused(dataset, tmp_path, target_modules, message):
    with pytest.raises(ValueError, match=message):
        train(dataset, tmp_path, target_modules=target_modules)


def test_an_expression_chooses_layers(dataset, tmp_path):
    result = train(dataset, tmp_path, target_modules=r"layers\.\d+\.attn")
    assert len(result.state_dict) == 3 * 2


def test_nothing_to_train_is_refused(dataset, tmp_path):
    with pytest.raises(ValueError, match="learning_rate is 0"):
        train(dataset, tmp_path, learning_rate=0.0)


@pytest.mark.parametrize("number", [1, 3, 100])
def test_blocks_in_main_memory_give_the_same_lora_bit_for_bit(dataset, tmp_path, number):
    """With texts of different lengths, prior preservation, samples and dropout."""
    settings = {
        "prior_loss_weight": 1.0,
        "lora_dropout": 0.1,
        "sample_every_n_steps": 2,
        "sample_steps": 2,
        "train_batch_size": 2,
        "gradient_checkpointing": True,
        "save_dtype": "fp32",
    }
    results = []
    for blocks_to_swap in (0, number):
        base = ToyBase()
        base.network.layers.extend(Block() for _ in range(3))
        with torch.no_grad():
            for index, weight in enumerate(base.network.parameters()):
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)) * 0.2)
        before = {name: weight.clone() for name, weight in base.network.state_dict().items()}
        folder = tmp_path / str(blocks_to_swap)
        folder.mkdir()
        results.append(train(dataset, folder, base=base, blocks_to_swap=blocks_to_swap, **settings))
        own = {name.replace(".base_layer", ""): weight for name, weight in base.network.state_dict().items()}
        assert all(torch.equal(own[name], weight) for name, weight in before.items())
    assert_equal(*results)


def test_memory_is_planned_by_the_largest_prompt_and_nothing_is_encoded_twice(dataset, tmp_path):
    base, planned, host = ToyBase(), [], ListeningHost()

    def plan_memory(conditions: Conditions, _: Host) -> int:
        planned.append(conditions["text"].shape[1])
        assert [caption for caption, _ in base.encoded] == ["", "zwx two of them"]  # the first: does the CLIP fit?
        return 1

    train(dataset, tmp_path, host, base=base, plan_memory=plan_memory, blocks_to_swap=-1, caption_dropout=0.0)
    assert planned == [5]  # of "zwx two of them"
    assert sorted(caption for caption, _ in base.encoded if caption) == ["zwx", "zwx one", "zwx two of them"]
    assert any("1 of 2 blocks" in notice for notice in host.notices)


def test_recomputed_gradients_are_those_of_a_model_without_inplace_additions():
    """Against plain autograd, with no checkpoint and nothing written in place."""

    class PlainBlock(Block):
        def forward(self, x, text, sigma):
            x = x + self.attn(torch.tanh(x * self.modulation(sigma))) + text.mean(1, keepdim=True)
            x = x + torch.tanh(self.mlp(x))
            return x, text + torch.tanh(self.text_mlp(text))

    gradients = []
    for block_class in (Block, PlainBlock):
        base = ToyBase()
        noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        if block_class is Block:
            checkpoint_blocks(base.network.layers)
        else:
            for block in base.network.layers:
                block.__class__ = PlainBlock
        with base.computing():
            base.predict(noisy, torch.tensor([0.5]), [base.encode_caption("a")]).square().mean().backward()
        gradients.append({name: weight.grad for name, weight in base.network.layers.named_parameters()})
    for name, gradient in gradients[1].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-6, atol=1e-8)


def test_a_family_may_train_with_a_shift_by_size_and_a_chosen_one_wins(dataset, tmp_path):
    row = FlowFamilyRow("Toy", timestep_sampling="uniform", has_shift_by_size=True)
    square = replace(dataset, images=dataset.images[:1])
    by_size = train(square, tmp_path / "1", base=ToyBase(family=row))
    shift = find_shift_by_size((64, 64))
    assert_equal(by_size, train(square, tmp_path / "2", base=ToyBase(family=row), discrete_flow_shift=shift))
    assert train(square, tmp_path / "3", base=ToyBase(family=row.with_models_own_shift())).losses != by_size.losses


def test_only_the_given_timesteps_are_trained_and_measured(dataset, tmp_path):
    """After the shift."""
    seen = []

    class Watched(ToyBase):
        def add_noise(self, latents, noise, sigmas):
            seen.extend(sigmas.tolist())
            return super().add_noise(latents, noise, sigmas)

    settings = {"min_timestep": 800, "max_timestep": 900, "discrete_flow_shift": 3.0, "validate_every_n_steps": 3}
    train(dataset, tmp_path, base=Watched(), **settings)
    assert min(seen) >= 0.8 and max(seen) <= 0.9 and len(set(seen)) > 6
