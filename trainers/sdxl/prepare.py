"""From a base model and a crop plan to everything the loop needs: cached latents and embeddings,
adapters, optimizer, schedule.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import PreTrainedModel

from ..dataset.crop_plan import CropPlan, TrainingItem
from ..dataset.epochs import epoch_batches
from ..files.tensor_cache import TensorCache
from ..lora.file import Component, kohya_names, read_lora, weighted_modules
from ..training.distributed import World
from ..training.events import StageStarted
from ..training.host import Host, usual_precision
from ..training.optimizers import ParameterGroup, make_lr_scheduler, make_optimizer, warmup_steps
from .adapters import AdaptedModel, AdapterSettings, attach_adapters, text_encoder_targets, unet_targets
from .config import SDXLConfig
from .encode import EmbeddingStore, LatentStore, MaskStore
from .model.float32_compute import float32_compute
from .model.sdxl_model import SDXLModel
from .model.text import TextEmbeddings, encode_captions, stack_embeddings
from .objective import alphas_cumprod
from .step import Objective
from .texts import TrainingTexts

COMPUTE_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Run:
    """Everything that a run trains with."""

    plan: CropPlan
    texts: TrainingTexts
    model: SDXLModel
    adapted: AdaptedModel
    latents: LatentStore
    masks: MaskStore
    embeddings: EmbeddingStore | None  # None: the text encoders are trained and run in every step
    objective: Objective
    zero_terminal_snr: bool
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    precision: str
    num_warmup_steps: int
    num_batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int

    @property
    def learning_rate(self) -> float:
        return float(self.lr_scheduler.get_last_lr()[0])

    def embed(self, captions: list[str]) -> TextEmbeddings:
        """From the cache, or with gradients from the text encoders when they are trained."""
        if self.embeddings is not None:
            return stack_embeddings([self.embeddings.get(caption) for caption in captions])
        assert self.model.text_encoder is not None and self.model.text_encoder_2 is not None
        return encode_captions(self.model.text_encoder, self.model.text_encoder_2, captions)


def prepare_run(
    config: SDXLConfig,
    plan: CropPlan,
    texts: TrainingTexts,
    model: SDXLModel,
    host: Host,
    *,
    cache: TensorCache,
    random_flip: bool,
    world: World,
) -> Run:
    """Cache latents, masks and embeddings, give back the models that are not needed any more,
    attach adapters, build the optimizer.
    """
    precision = resolve_precision(config.mixed_precision, host.device)
    names = kohya_names(*(weighted_modules(part) for part in _adaptable_parts(model)))
    masks = MaskStore(cache)
    latents = _cache_latents(
        plan.items,
        masks,
        model,
        host,
        cache,
        random_flip=random_flip,
        world=world,
        keep_vae=bool(config.sample_every_n_steps),
    )
    embeddings = None if config.train_text_encoders else _cache_embeddings(texts.all(), model, host, cache)
    adapted = AdaptedModel(_attach_adapters(config, model, host.device, COMPUTE_DTYPES[precision]), names)
    if config.network_weights:
        adapted.load(read_lora(Path(config.network_weights), names), alpha=config.alpha)
    num_batches = len(
        epoch_batches(plan.items, batch_size=config.train_batch_size * world.size, seed=config.seed, epoch=1)
    )
    steps_per_epoch = math.ceil(num_batches / config.gradient_accumulation_steps)
    total_steps = config.num_train_epochs * steps_per_epoch or config.max_train_steps
    num_warmup_steps = warmup_steps(config.lr_warmup_steps, total_steps)
    optimizer = make_optimizer(
        config.optimizer, adapted.groups, weight_decay=config.weight_decay, extra_args=config.optimizer_args
    )
    zero_terminal_snr = (
        model.zero_terminal_snr if config.zero_terminal_snr == "auto" else config.zero_terminal_snr == "on"
    )
    prediction_type = model.prediction_type if config.prediction_type == "auto" else config.prediction_type
    return Run(
        plan=plan,
        texts=texts,
        model=model,
        adapted=adapted,
        latents=latents,
        masks=masks,
        embeddings=embeddings,
        objective=Objective(
            alphas_cumprod(zero_terminal_snr=zero_terminal_snr).to(host.device),
            prediction_type,
            config.min_snr_gamma,
            config.unmasked_weight,
            config.normalize_masked_loss,
        ),
        zero_terminal_snr=zero_terminal_snr,
        optimizer=optimizer,
        lr_scheduler=make_lr_scheduler(
            config.lr_scheduler,
            optimizer,
            warmup_steps=num_warmup_steps,
            total_steps=total_steps,
            num_cycles=config.lr_num_cycles,
        ),
        scaler=torch.amp.GradScaler(host.device.type, enabled=precision == "fp16"),
        precision=precision,
        num_warmup_steps=num_warmup_steps,
        num_batches_per_epoch=num_batches,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def moved(module: ModuleT, device: torch.device, dtype: torch.dtype | None = None) -> ModuleT:
    """torch's own `to`: diffusers 0.42 wraps it in a warning about modules that must stay float32,
    of which SDXL has none.
    """
    nn.Module.to(module, device, dtype)
    return module


def resolve_precision(setting: str, device: torch.device) -> str:
    return usual_precision(device) if setting == "auto" else setting


def _adaptable_parts(model: SDXLModel) -> tuple[nn.Module, nn.Module, nn.Module]:
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    return model.unet, model.text_encoder, model.text_encoder_2


def _cache_latents(
    items: list[TrainingItem],
    masks: MaskStore,
    model: SDXLModel,
    host: Host,
    cache: TensorCache,
    *,
    random_flip: bool,
    world: World,
    keep_vae: bool,
) -> LatentStore:
    """Encode all pictures with their masks; afterwards the model has no VAE any more, or has it in
    main memory. In float32: SDXL's VAE overflows in fp16.
    """
    assert model.vae is not None
    store = LatentStore(cache, vae_hash=model.part_hash("vae"))
    host.report(StageStarted("caching", len(items)))
    vae = moved(model.vae, host.device, torch.float32 if keep_vae else None)
    with float32_compute(vae):
        for own_items in _own_share_first(items, world):
            store.encode(own_items, vae, host, flips=(False, True) if random_flip else (False,), total=len(own_items))
            masks.encode(own_items, host)
    model.vae = moved(vae, torch.device("cpu")) if keep_vae else None
    del vae
    host.release_memory()
    return store


def _own_share_first(items: list[TrainingItem], world: World) -> Iterator[list[TrainingItem]]:
    """With several processes each encodes its share to the disk cache first, and then reads the
    others'.
    """
    if world.size > 1:
        yield items[world.rank :: world.size]
        world.wait_for_all()
    yield items


def _cache_embeddings(captions: list[str], model: SDXLModel, host: Host, cache: TensorCache) -> EmbeddingStore:
    """Encode all captions; afterwards the model has no text encoders any more."""
    store = EmbeddingStore(cache, text_hashes=(model.part_hash("text_encoder"), model.part_hash("text_encoder_2")))
    host.report(StageStarted("caching", len(captions)))
    _, encoder, encoder_2 = _adaptable_parts(model)
    with float32_compute(moved(encoder, host.device)), float32_compute(moved(encoder_2, host.device)):
        store.encode(captions, model, host)
    model.text_encoder = model.text_encoder_2 = None
    del encoder, encoder_2
    host.release_memory()
    return store


def _attach_adapters(
    config: SDXLConfig, model: SDXLModel, device: torch.device, dtype: torch.dtype
) -> dict[Component, tuple[nn.Module, ParameterGroup]]:
    """Move what is used in every step to the device, freeze it, and attach adapters to what is
    trained.
    """
    settings = AdapterSettings(config.rank, config.alpha, config.lora_dropout, config.seed)
    parts: list[tuple[Component, nn.Module, list[str], float]] = [
        ("unet", model.unet, unet_targets(model.unet, config.target_modules), config.learning_rate)
    ]
    if config.train_text_encoders:
        _, encoder, encoder_2 = _adaptable_parts(model)
        for used in (encoder, encoder_2):
            moved(used, device, dtype).requires_grad_(False)
        targets, targets_2 = (
            text_encoder_targets(encoder, uses_last_layer=False),
            text_encoder_targets(encoder_2, uses_last_layer=True),
        )
        parts.append(("text_encoder", encoder, targets, config.text_encoder_learning_rate))
        parts.append(("text_encoder_2", encoder_2, targets_2, config.text_encoder_2_learning_rate))
    moved(model.unet, device, dtype)
    attached: dict[Component, tuple[nn.Module, ParameterGroup]] = {}
    for name, module, targets, learning_rate in parts:
        if learning_rate:
            parameters = attach_adapters(module, targets, settings, component=name)
            attached[name] = module, ParameterGroup(name, parameters, learning_rate)
        if config.gradient_checkpointing and (
            learning_rate or module is model.unet
        ):  # gradients pass through the UNet in any case
            _enable_gradient_checkpointing(module)
    if not attached:
        raise ValueError("learning_rate is 0 and the text encoders are not trained: there is nothing to train")
    return attached


def _enable_gradient_checkpointing(module: nn.Module) -> None:
    # diffusers and transformers checkpoint only in training mode; none of these models has dropout
    # of its own
    module.train()
    if isinstance(module, UNet2DConditionModel):
        module.enable_gradient_checkpointing()
    else:
        assert isinstance(module, PreTrainedModel)
        module.gradient_checkpointing_enable({"use_reentrant": False})
