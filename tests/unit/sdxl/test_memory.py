"""The memory estimate against the real classes on the meta device, and the proposed settings."""

from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.memory_estimate import SDXL_UNET, cuda_kernels, measure_activations, meta_batch, meta_unet
from trainers.check.memory_estimate import CUDA_CONTEXT_BYTES, FRAGMENTATION, MemoryEstimate
from trainers.check.smaller_settings import smaller_settings
from trainers.embedded_base.sdxl.architecture import UNET
from trainers.sdxl.activations import estimate_forward_peak
from trainers.sdxl.config import SDXLConfig
from trainers.sdxl.memory import estimate_memory
from trainers.sdxl.model.sdxl_model import SDXLModel
from trainers.sdxl.names import kohya_names
from trainers.sdxl.step import Objective, distillation_losses, predict, weighted_losses
from trainers.sdxl.text_encoder_shapes import SDXL_TEXT_ENCODERS, text_encoder_shapes
from trainers.training.adapters import AdaptedComponent, AdaptedModel
from trainers.training.device import COMPUTE_DTYPES
from trainers.training.live_memory import LiveMemory
from trainers.training.optimizers import ParameterGroup
from trainers.wording import GIBIBYTE

SIZE = (512, 384)
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


@pytest.fixture(scope="module")
def sdxl() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL_UNET)


def estimate_total(
    unet: UNet2DConditionModel, *, size_hw: tuple[int, int] = (1024, 1024), precision: str = "bf16", **settings: object
) -> int:
    return estimate_memory(unet, SDXLConfig(**settings), size_hw=size_hw, precision=precision).total_bytes


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("bf16", {}),
        ("no", {}),
        ("bf16", {"gradient_checkpointing": False}),
        ("no", {"gradient_checkpointing": False, "target_modules": "attention"}),
        ("bf16", {"gradient_checkpointing": False, "lora_dropout": 0.1}),
        ("bf16", {"gradient_checkpointing": False, "rank": 64}),
        ("bf16", {"gradient_checkpointing": False, "conv_rank": 8}),
        ("bf16", {"gradient_checkpointing": False, "rank": 4, "network_reg_dims": "attn1=128, ff=64"}),
        ("bf16", {"adapter": "loha"}),
        ("bf16", {"gradient_checkpointing": False, "adapter": "dora"}),
        ("bf16", {"gradient_checkpointing": False, "adapter": "loha"}),
        ("bf16", {"gradient_checkpointing": False, "adapter": "lokr"}),
        ("bf16", {"gradient_checkpointing": False, "adapter": "lokr", "lokr_factor": 4}),
        ("bf16", {"gradient_checkpointing": False, "target_modules": r"up_blocks\.2\..*attn2\.to_(k|v)"}),
    ],
)
def test_the_estimate_is_within_a_tenth_of_what_the_real_unet_holds(precision: str, settings: dict) -> None:
    config = SDXLConfig(train_batch_size=2, **settings)
    unet = meta_unet(UNET, config, precision=precision)
    measured = measure_activations(unet, size_hw=SIZE, batch_size=2, precision=precision)
    assert estimate_memory(unet, config, size_hw=SIZE, precision=precision).activations_bytes == pytest.approx(
        measured, rel=0.1
    )


def test_the_estimate_is_within_a_twentieth_for_full_size_sdxl() -> None:
    unet = meta_unet(SDXL_UNET, SDXLConfig(), precision="bf16")
    measured = measure_activations(unet, size_hw=(1024, 1024), batch_size=1, precision="bf16")
    assert estimate_memory(
        unet, SDXLConfig(), size_hw=(1024, 1024), precision="bf16"
    ).activations_bytes == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
def test_prior_preservation_needs_no_more_memory_because_its_backward_pass_comes_second(
    gradient_checkpointing: bool,
) -> None:
    """This runs the steps of PreparedSDXL.loss_terms on the meta device. 2 % are for the batch, the
    base's prediction and the second embedding.
    """
    unet = meta_unet(UNET, SDXLConfig(gradient_checkpointing=gradient_checkpointing), precision="bf16")
    adapted = AdaptedModel(
        {
            "unet": AdaptedComponent(
                unet, [ParameterGroup("unet", [p for p in unet.parameters() if p.requires_grad], 1e-4)]
            )
        },
        kohya_names([], [], []),
        dtype=torch.bfloat16,
    )
    plain, prior = (_measure_step_peak(unet, adapted, prior=prior) for prior in (False, True))
    assert plain <= prior < 1.02 * plain


def _measure_step_peak(unet: UNet2DConditionModel, adapted: AdaptedModel, *, prior: bool) -> int:
    batch = meta_batch(unet, size_hw=SIZE, batch_size=2, dtype=torch.bfloat16)
    objective = Objective(torch.ones(1000, device="meta"), "epsilon", 5.0)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    with LiveMemory(leave_out=[*unet.parameters(), *gradients]) as memory, cuda_kernels():
        weighted_losses(unet, batch, objective).sum().backward()
        if prior:
            with adapted.disable_adapters():
                base_pred = predict(unet, batch, objective.alphas_cumprod[batch.timesteps])
            distillation_losses(unet, batch, base_pred, objective).sum().backward()
    return memory.peak_bytes


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_the_estimate_of_drawing_samples_is_within_a_tenth_of_what_the_real_unet_holds(precision: str) -> None:
    dtype = COMPUTE_DTYPES[precision]
    unet = meta_unet(UNET, SDXLConfig(gradient_checkpointing=False), precision=precision).eval()
    batch = meta_batch(unet, size_hw=SIZE, batch_size=4, dtype=dtype)
    conditions = {"text_embeds": batch.pooled_prompt_embeds, "time_ids": batch.add_time_ids}
    with torch.no_grad(), LiveMemory(leave_out=list(unet.parameters())) as memory, cuda_kernels():
        unet(batch.latents.to(dtype), batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions)
    assert 4 * estimate_forward_peak(unet, dtype.itemsize, SIZE) == pytest.approx(memory.peak_bytes, rel=0.1)


def test_samples_count_where_they_need_more_than_a_step(sdxl: UNet2DConditionModel) -> None:
    estimate = partial(estimate_memory, sdxl, size_hw=(1024, 1024), precision="bf16")
    off, on = estimate(SDXLConfig()), estimate(SDXLConfig(sample_every_n_steps=250))
    assert off.samples_bytes == 0 and GIBIBYTE < on.samples_bytes < 1.5 * GIBIBYTE
    assert on.total_bytes > off.total_bytes and "samples 1." in on.text() and "activations" not in on.text()
    assert estimate(SDXLConfig(sample_every_n_steps=250, train_batch_size=4)).text().count("activations") == 1


def test_turning_samples_off_is_the_first_remedy(sdxl: UNet2DConditionModel) -> None:
    steps = smaller_settings(
        SDXLConfig(sample_every_n_steps=250), (1024, 1024), partial(_estimate_in_bf16, sdxl), works=always
    )
    assert steps[0][0] == "sample_every_n_steps 0" and steps[0][1].samples_bytes == 0


def test_the_estimate_is_the_same_with_adapters_attached() -> None:
    config = SDXLConfig(rank=4)
    with torch.device("meta"):
        bare = UNet2DConditionModel(**UNET)
    adapted = meta_unet(UNET, config, precision="no")
    assert estimate_memory(bare, config, size_hw=SIZE, precision="no") == estimate_memory(
        adapted, config, size_hw=SIZE, precision="no"
    )


def test_adapters_hold_weight_gradient_and_states_and_in_half_precision_a_copy_and_its_gradient(
    sdxl: UNet2DConditionModel,
) -> None:
    adapted = meta_unet(UNET, SDXLConfig(), precision="no")
    num_parameters = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert estimate_memory(adapted, SDXLConfig(), size_hw=SIZE, precision="no").adapters_bytes == 16 * num_parameters
    estimate = estimate_memory(sdxl, SDXLConfig(rank=8, optimizer="AdamW8bit"), size_hw=SIZE, precision="bf16")
    assert (estimate.adapters_bytes, estimate.weights_bytes) == (14 * 21_278_720, 2 * 2_567_463_684)


def test_more_of_anything_needs_more(sdxl: UNet2DConditionModel) -> None:
    for name, values in {
        "train_batch_size": (1, 2, 3, 8),
        "rank": (4, 8, 64),
        "size_hw": ((512, 512), (768, 576), (768, 768), (832, 1216)),
        "gradient_checkpointing": (True, False),
        "train_text_encoders": (False, True),
        "num_new_tokens": (0, 2),
        "precision": ("bf16", "no"),
        "optimizer": ("AdamW8bit", "Lion", "AdamW", "Prodigy"),
    }.items():
        totals = [estimate_total(sdxl, **{name: value}) for value in values]
        assert totals == sorted(set(totals)), name


def test_caching_counts_if_it_needs_more_than_training() -> None:
    estimate = MemoryEstimate(1 * GIBIBYTE, GIBIBYTE // 2, GIBIBYTE // 4, caching_bytes=3 * GIBIBYTE)
    overhead_bytes = CUDA_CONTEXT_BYTES + round(FRAGMENTATION * 3 * GIBIBYTE)
    assert estimate.total_bytes == 3 * GIBIBYTE + overhead_bytes
    assert estimate.text() == "about 3.7 GB: caching latents and captions 3.0, CUDA 0.7"


def test_the_text_names_the_parts(sdxl: UNet2DConditionModel) -> None:
    text = estimate_memory(sdxl, SDXLConfig(), size_hw=(1024, 1024), precision="bf16").text()
    assert text == "about 7.0 GB: weights 4.8, adapters 0.8, activations 0.6, CUDA 0.9"


def test_smaller_settings_come_in_order_of_harm_and_each_needs_less(sdxl: UNet2DConditionModel) -> None:
    def estimate(config: SDXLConfig, size_hw: tuple[int, int]) -> MemoryEstimate:
        return estimate_memory(
            sdxl, config, size_hw=size_hw, precision="no" if config.mixed_precision == "no" else "bf16"
        )

    config = SDXLConfig(
        mixed_precision="no",
        gradient_checkpointing=False,
        train_batch_size=2,
        gradient_accumulation_steps=2,
        train_text_encoders=True,
        rank=32,
    )
    steps = smaller_settings(config, (832, 1216), estimate, works=always)
    assert [description for description, _ in steps] == [
        "mixed_precision auto",
        "gradient_checkpointing on",
        "train_batch_size 1 with gradient_accumulation_steps 4",
        "optimizer AdamW8bit",
        "train_text_encoders off",
        "resolution 768",
        "resolution 512",
        "rank 8",
    ]
    totals = [estimate(config, (832, 1216)).total_bytes, *(found.total_bytes for _, found in steps)]
    assert totals == sorted(set(totals), reverse=True)


def test_current_settings_are_not_proposed(sdxl: UNet2DConditionModel) -> None:
    estimate = partial(_estimate_in_bf16, sdxl)
    steps = smaller_settings(SDXLConfig(optimizer="Lion"), (768, 768), estimate, works=always)
    assert [description for description, _ in steps] == ["resolution 512", "rank 8"]
    assert smaller_settings(SDXLConfig(optimizer="AdamW8bit", rank=8), (512, 512), estimate, works=always) == []


@pytest.mark.parametrize("optimizer", ["AdamW", "Prodigy"])
def test_an_optimizer_is_proposed_only_where_it_works(sdxl: UNet2DConditionModel, optimizer: str) -> None:
    tried: list[str] = []

    def works(name: str) -> bool:
        tried.append(name)
        return False

    config = SDXLConfig(optimizer=optimizer)
    steps = smaller_settings(config, (1024, 1024), partial(_estimate_in_bf16, sdxl), works=works)
    assert tried == ["AdamW8bit"] and not any("AdamW8bit" in description for description, _ in steps)


def always(_: str) -> bool:
    return True


def _estimate_in_bf16(unet: UNet2DConditionModel, config: SDXLConfig, size_hw: tuple[int, int]) -> MemoryEstimate:
    return estimate_memory(unet, config, size_hw=size_hw, precision="bf16")


def test_the_shapes_of_full_size_text_encoders_match_the_constants() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
        encoders = CLIPTextModel(CLIPTextConfig(**CLIP_L)), CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G))
    model = SDXLModel(unet, *encoders, vae=None, prediction_type="epsilon", zero_terminal_snr=False, name="full size")
    assert text_encoder_shapes(model) == SDXL_TEXT_ENCODERS
