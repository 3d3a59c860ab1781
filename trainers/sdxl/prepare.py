"""Prepares an SDXL model for training: caches latents and embeddings, attaches adapters."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from ..check.memory_estimate import MemoryEstimate
from ..files.tensor_cache import TensorCache
from ..lora.modules import list_weighted_modules
from ..training.adapter_shapes import AdapterSettings
from ..training.adapters import AdaptedComponent, AdaptedModel, attach_adapters, group_parameters
from ..training.block_streaming import move_resident
from ..training.compiled_blocks import compile_blocks
from ..training.config import AUTO_SCHEDULER, DEFAULT_SAMPLER
from ..training.device import COMPUTE_DTYPES, count_free_bytes, move_module, resolve_precision
from ..training.distributed import World
from ..training.events import Notice, StageStarted
from ..training.host import Host
from ..training.latent_store import LatentStore, cache_latents
from ..training.layer_values import find_layer_values
from ..training.lr_schedule import count_steps
from ..training.masks import MaskStore
from ..training.plan import TrainingPlan
from ..training.quantized_linear import quantize_linear_layers
from ..wording import pluralize
from .checkpointing import enable_gradient_checkpointing
from .config import SDXLConfig
from .encode import EmbeddingStore, encode_image
from .memory import estimate_memory
from .model.float32_compute import float32_compute
from .model.noise_schedule import alphas_cumprod
from .model.sdxl_model import SDXLModel
from .names import TEXT_ENCODER, TEXT_ENCODER_2, UNET, kohya_names, module_key
from .prepared_model import PreparedSDXL
from .samples import SampleDrawer
from .start import get_learning_rates, read_start
from .step import Objective
from .streaming import choose_streamed, list_blocks, resolve_blocks_to_swap
from .targets import find_text_encoder_targets, find_unet_targets

PIXELS_PER_LATENT = 8
PreparedT = TypeVar("PreparedT", bound=PreparedSDXL)


class LatentMaker(Protocol):
    """Makes the store of the latents, and drops the VAE unless it is to be kept in main memory."""

    def __call__(
        self,
        plan: TrainingPlan[SDXLConfig],
        masks: MaskStore,
        model: SDXLModel,
        host: Host,
        cache: TensorCache,
        world: World,
        *,
        keep_vae: bool,
    ) -> LatentStore: ...


def cache_image_latents(
    plan: TrainingPlan[SDXLConfig],
    masks: MaskStore,
    model: SDXLModel,
    host: Host,
    cache: TensorCache,
    world: World,
    *,
    keep_vae: bool,
) -> LatentStore:
    """Encode all images and masks in float32: SDXL's VAE overflows in fp16. Then drop the VAE, or
    keep it in main memory. It stays there if everything is cached.
    """
    assert model.vae is not None
    remedy = "The base model's VAE may be damaged: try another one, such as sdxl_vae.safetensors"
    store = LatentStore(cache, kind="sdxl latents", model_hash=model.part_hash("vae"), remedy=remedy)
    where = host.device if store.lacks(plan) else torch.device("cpu")
    vae = move_module(model.vae, where, torch.float32 if keep_vae else None)
    with float32_compute(vae):
        cache_latents(plan, store, masks, lambda _, crop, flip: encode_image(vae, crop, flip=flip), host, world)
    model.vae = move_module(vae, torch.device("cpu")) if keep_vae else None
    return store


def prepare_sdxl(
    plan: TrainingPlan[SDXLConfig],
    model: SDXLModel,
    host: Host,
    *,
    cache: TensorCache,
    world: World,
    base_dtype: str = "",
    drawer: SampleDrawer | None = None,
    make_latents: LatentMaker = cache_image_latents,
    prepared_class: type[PreparedT] = PreparedSDXL,
) -> PreparedT:
    """Cache latents, masks and embeddings, drop the models that only this needed, and attach
    adapters.
    """
    config = plan.settings.training
    precision = resolve_precision(config.mixed_precision, host.device)
    names = kohya_names(*(list_weighted_modules(part) for part in _get_adaptable_parts(model)))
    targets = _choose_targets(config, model)
    adapters = AdapterSettings.of(config, targets.get(UNET, ()))
    layer_rates = find_layer_values(config.network_reg_lrs, targets.get(UNET, ()), setting="network_reg_lrs")
    start = read_start(config, model, names, targets, adapters, host) if config.network_weights else None
    zero_terminal_snr = _resolve_zero_terminal_snr(config, model)
    objective = _make_objective(config, model, zero_terminal_snr=zero_terminal_snr, device=host.device)
    drawer = _choose_drawer(drawer, config, model, objective, host, zero_terminal_snr=zero_terminal_snr)
    masks = MaskStore(cache, pixels_per_latent=PIXELS_PER_LATENT)
    keep_vae = drawer is None and config.sample_every_n_steps > 0
    latents = make_latents(plan, masks, model, host, cache, world, keep_vae=keep_vae)
    host.release_memory()
    embeddings = None if config.train_text_encoders else _cache_embeddings(plan.texts.list_all(), model, host, cache)
    if base_dtype:
        _quantize(model.unet, base_dtype, host)
    streamed = choose_streamed(model.unet, _choose_number(plan, model, host.device, precision))
    modules = _attach_adapters(config, model, targets, adapters, host.device, COMPUTE_DTYPES[precision], streamed)
    components = _group_adapters(config, modules, layer_rates)
    adapted = AdaptedModel(components, names, module_key, dtype=COMPUTE_DTYPES[precision])
    if start:
        adapted.load(start)
    for group in adapted.groups:
        if group.name != UNET:
            group.weights.last_step = count_steps(config.stop_text_encoder_training, plan.schedule.total_steps)
    prepared = prepared_class(
        plan=plan,
        host=host,
        model=model,
        adapted=adapted,
        latents=latents,
        masks=masks,
        embeddings=embeddings,
        objective=objective,
        zero_terminal_snr=zero_terminal_snr,
        precision=precision,
        drawer=drawer,
    )
    if streamed:
        prepared.stream_weights(streamed)
        host.report(Notice(prepared.streamer.describe(len(list_blocks(model.unet)))))
    if config.torch_compile and streamed:
        host.report(Notice("torch_compile is not used: weights of blocks are in main memory"))
    elif config.torch_compile:
        compile_blocks(model.unet, list_blocks(model.unet))
    return prepared


def _group_adapters(
    config: SDXLConfig, modules: Mapping[str, nn.Module], layer_rates: Mapping[str, float]
) -> dict[str, AdaptedComponent]:
    """Group what is trained of each part by its learning rate."""
    rates, ratio = get_learning_rates(config), config.loraplus_lr_ratio
    return {
        name: AdaptedComponent(
            module, group_parameters(module, name, rates[name], layer_rates, loraplus_lr_ratio=ratio)
        )
        for name, module in modules.items()
    }


def _choose_number(plan: TrainingPlan[SDXLConfig], model: SDXLModel, device: torch.device, precision: str) -> int:
    """Choose how many blocks keep their weights in main memory: as the settings say, or by what is
    free on the device now, when everything is cached.
    """
    config = plan.settings.training

    def estimate(changed: SDXLConfig) -> MemoryEstimate:
        return estimate_memory(model.unet, changed, size_hw=plan.crops.largest_hw, precision=precision)

    return resolve_blocks_to_swap(config, model.unet, estimate, free_bytes=count_free_bytes(device)).blocks_to_swap


def _resolve_zero_terminal_snr(config: SDXLConfig, model: SDXLModel) -> bool:
    return model.zero_terminal_snr if config.zero_terminal_snr == "auto" else config.zero_terminal_snr == "on"


def _make_objective(
    config: SDXLConfig, model: SDXLModel, *, zero_terminal_snr: bool, device: torch.device
) -> Objective:
    prediction_type = model.prediction_type if config.prediction_type == "auto" else config.prediction_type
    if config.snr_weighting == "debiased" and zero_terminal_snr and prediction_type == "epsilon":
        raise ValueError(
            "snr_weighting debiased divides by the SNR, which is 0 at the last timestep of zero_terminal_snr, where a "
            "model with prediction_type epsilon learns nothing. Choose min_snr, or zero_terminal_snr off"
        )
    return Objective(
        alphas_cumprod(zero_terminal_snr=zero_terminal_snr).to(device),
        prediction_type,
        config.min_snr_gamma,
        config.unmasked_weight,
        config.normalize_masked_loss,
        snr_weighting=config.snr_weighting,
        loss_type=config.loss_type,
        huber_c=config.huber_c,
        huber_schedule=config.huber_schedule,
    )


def _choose_drawer(
    drawer: SampleDrawer | None,
    config: SDXLConfig,
    model: SDXLModel,
    objective: Objective,
    host: Host,
    *,
    zero_terminal_snr: bool,
) -> SampleDrawer | None:
    """Return the host's drawer, if it samples as this run trains; None: the trainer's own draws."""
    if not config.sample_every_n_steps:
        return None
    if drawer is None:
        if (config.sample_sampler, config.sample_scheduler) != (DEFAULT_SAMPLER, AUTO_SCHEDULER):
            host.report(Notice("sample_sampler and sample_scheduler are for ComfyUI: samples are drawn by DDIM"))
        return None
    if (objective.prediction_type, zero_terminal_snr) != (model.prediction_type, model.zero_terminal_snr):
        host.report(
            Notice(
                "samples are drawn by DDIM: MODEL samples otherwise than prediction_type and zero_terminal_snr say. "
                "ModelSamplingDiscrete changes MODEL"
            )
        )
        return None
    return drawer


def _get_adaptable_parts(model: SDXLModel) -> tuple[nn.Module, nn.Module, nn.Module]:
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    return model.unet, model.text_encoder, model.text_encoder_2


def _cache_embeddings(captions: list[str], model: SDXLModel, host: Host, cache: TensorCache) -> EmbeddingStore:
    """Encode all captions, then drop the text encoders. They stay in main memory if everything is
    cached.
    """
    store = EmbeddingStore(cache, text_hashes=(model.part_hash("text_encoder"), model.part_hash("text_encoder_2")))
    host.report(StageStarted("caching", len(captions)))
    _, encoder, encoder_2 = _get_adaptable_parts(model)
    where = host.device if store.lacks(captions) else torch.device("cpu")
    with float32_compute(move_module(encoder, where)), float32_compute(move_module(encoder_2, where)):
        store.encode(captions, model, host)
    model.text_encoder = model.text_encoder_2 = None
    del encoder, encoder_2
    host.release_memory()
    return store


def _choose_targets(config: SDXLConfig, model: SDXLModel) -> dict[str, list[str]]:
    """The layers that are trained, by component."""
    unet, encoder, encoder_2 = _get_adaptable_parts(model)
    targets = {UNET: find_unet_targets(unet, config.target_modules, with_convolutions=config.conv_rank > 0)}
    if config.train_text_encoders:
        targets[TEXT_ENCODER] = find_text_encoder_targets(encoder, uses_last_layer=False)
        targets[TEXT_ENCODER_2] = find_text_encoder_targets(encoder_2, uses_last_layer=True)
    rates = get_learning_rates(config)
    chosen = {name: layers for name, layers in targets.items() if rates[name]}
    assert chosen, "check_settings was not called"
    return chosen


def _quantize(unet: nn.Module, base_dtype: str, host: Host) -> None:
    """In main memory: the device never has the whole UNet."""
    transformers = [module for module in unet.modules() if isinstance(module, Transformer2DModel)]
    number = sum(quantize_linear_layers(transformer, base_dtype) for transformer in transformers)
    host.report(Notice(f"base_dtype {base_dtype}: {pluralize(number, 'layer')} of the UNet are kept in fewer bits"))


def _attach_adapters(
    config: SDXLConfig,
    model: SDXLModel,
    targets: dict[str, list[str]],
    settings: AdapterSettings,
    device: torch.device,
    dtype: torch.dtype,
    streamed: Sequence[nn.Module],
) -> dict[str, nn.Module]:
    """Move the parts that every step uses to the device, without the streamed ones, freeze them,
    attach adapters to those that are trained, and return these.
    """
    parts: dict[str, nn.Module] = {UNET: model.unet}
    if config.train_text_encoders:
        _, parts[TEXT_ENCODER], parts[TEXT_ENCODER_2] = _get_adaptable_parts(model)
        for name in (TEXT_ENCODER, TEXT_ENCODER_2):
            move_module(parts[name], device, dtype).requires_grad_(False)
    move_resident(model.unet, device, dtype, without=streamed)
    for name, module in parts.items():
        if name in targets:
            parameters = attach_adapters(module, targets[name], settings, component=name, device=device)
            for parameter in parameters:  # those of streamed blocks lie in main memory
                parameter.data = parameter.data.to(device)
        # gradients pass through the UNet even if only text encoders are trained
        if config.gradient_checkpointing and (name in targets or name == UNET):
            enable_gradient_checkpointing(module)
    return {name: module for name, module in parts.items() if name in targets}
