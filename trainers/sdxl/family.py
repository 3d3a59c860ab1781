"""SDXL as a model family of the training loop."""

from collections.abc import Callable

from ..files.tensor_cache import TensorCache
from ..training.distributed import World
from ..training.host import Host
from ..training.plan import TrainingPlan
from .config import SDXLConfig
from .model.sdxl_model import SDXLModel
from .prepare import prepare_sdxl
from .prepared_model import PreparedSDXL


class SDXLFamily:
    """The family to give to train_lora. It calls `load_model` once, after the dataset is planned;
    this reads a file, or borrows the model that the host has loaded.
    """

    def __init__(self, load_model: Callable[[], SDXLModel]) -> None:
        self._load_model = load_model

    def prepare(self, plan: TrainingPlan[SDXLConfig], host: Host, *, cache: TensorCache, world: World) -> PreparedSDXL:
        return prepare_sdxl(plan, self._load_model(), host, cache=cache, world=world)
