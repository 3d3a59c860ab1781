"""SDXL as a model family of the training loop."""

from collections.abc import Callable

from ..dataset.control_images import refuse_control_images
from ..files.tensor_cache import TensorCache
from ..training.compiled_blocks import require_compiler
from ..training.distributed import World
from ..training.host import Host
from ..training.plan import TrainingPlan
from ..training.resume.weight_samples import hash_samples
from .config import SDXLConfig
from .model.sdxl_model import SDXLModel
from .prepare import prepare_sdxl
from .prepared_model import PreparedSDXL
from .samples import SampleDrawer
from .start import check_settings


class SDXLFamily:
    """The family to give to train_lora. It calls `load_model` once, after the dataset is planned;
    this reads a file, or borrows the model that the host has loaded. With `base_dtype`, one of
    quantized_linear.KINDS, the frozen weights of the transformers get fewer bits. `drawer` draws
    the sample images; None: the trainer's own.
    """

    def __init__(
        self, load_model: Callable[[Host], SDXLModel], *, base_dtype: str = "", drawer: SampleDrawer | None = None
    ) -> None:
        self._load_model = load_model
        self.base_dtype = base_dtype
        self.drawer = drawer
        self._model: SDXLModel | None = None

    def identify(self, plan: TrainingPlan[SDXLConfig], host: Host) -> dict[str, str]:
        check_settings(plan.settings.training)
        if plan.settings.training.torch_compile:
            require_compiler(host.device)
        refuse_control_images([item.image for item in plan.all_items], "SDXL")
        self._model = model = self._load_model(host)
        parts = {"UNet": model.unet, "CLIP-L": model.text_encoder, "CLIP-G": model.text_encoder_2, "VAE": model.vae}
        hashes = {name: hash_samples(module) for name, module in parts.items() if module is not None}
        if self.base_dtype:
            hashes["base dtype"] = self.base_dtype
        return {**hashes, "prediction": f"{model.prediction_type}, zero terminal SNR {model.zero_terminal_snr}"}

    def prepare(self, plan: TrainingPlan[SDXLConfig], host: Host, *, cache: TensorCache, world: World) -> PreparedSDXL:
        return prepare_sdxl(
            plan, self.take_model(), host, cache=cache, world=world, base_dtype=self.base_dtype, drawer=self.drawer
        )

    def take_model(self) -> SDXLModel:
        """Return the model that identify has loaded, and let go of it."""
        model, self._model = self._model, None
        assert model is not None, "identify was not called"
        return model
