"""Sliders for SDXL as a model family of the training loop."""

import torch

from ...files.tensor_cache import TensorCache
from ...training.device import move_module, resolve_precision
from ...training.distributed import World
from ...training.host import Host
from ...training.latent_store import LatentStore
from ...training.masks import MaskStore
from ...training.plan import TrainingPlan
from ...training.resume.weight_samples import hash_samples
from ..config import SDXLConfig
from ..family import SDXLFamily
from ..model.sdxl_model import SDXLModel
from ..prepare import prepare_sdxl
from .prepared_slider import PreparedSlider


class SliderFamily(SDXLFamily):
    """The family to give to train_lora, with a plan of plan_slider."""

    def prepare(
        self, plan: TrainingPlan[SDXLConfig], host: Host, *, cache: TensorCache, world: World
    ) -> PreparedSlider:
        prepared = prepare_sdxl(
            plan,
            self.take_model(),
            host,
            cache=cache,
            world=world,
            base_dtype=self.base_dtype,
            drawer=self.drawer,
            make_latents=self._make_store,
            prepared_class=PreparedSlider,
        )
        prepared.draw_missing(world)
        return prepared

    def _make_store(
        self,
        plan: TrainingPlan[SDXLConfig],
        masks: MaskStore,
        model: SDXLModel,
        host: Host,
        cache: TensorCache,
        world: World,
        *,
        keep_vae: bool,
    ) -> LatentStore:
        """Return the store of the drawings, which are made when the model is ready."""
        config = plan.settings.training
        facts = [
            hash_samples(model.unet),
            *(model.part_hash(part) for part in ("text_encoder", "text_encoder_2")),
            self.base_dtype,
            resolve_precision(config.mixed_precision, host.device),
            config.prediction_type,
            config.zero_terminal_snr,
            f"{model.prediction_type} {model.zero_terminal_snr}",
        ]
        assert model.vae is not None
        model.vae = move_module(model.vae, torch.device("cpu"), torch.float32) if keep_vae else None
        remedy = "The base model may be damaged, or mixed_precision fp16 too narrow for it: try bf16"
        return LatentStore(cache, kind="sdxl drawings", model_hash="/".join(facts), remedy=remedy)
