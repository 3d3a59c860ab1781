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
    """Give it to train_lora. `load_model` is called once, when the dataset is known to be good: it
    reads a file, or borrows what the host has loaded.
    """

    def __init__(self, load_model: Callable[[], SDXLModel]) -> None:
        self._load_model = load_model

    def prepare(self, plan: TrainingPlan[SDXLConfig], host: Host, *, cache: TensorCache, world: World) -> PreparedSDXL:
        return prepare_sdxl(plan, self._load_model(), host, cache=cache, world=world)
