"""Any flow model as a model family of the training loop."""

from collections.abc import Callable

from ..files.tensor_cache import TensorCache
from ..training.distributed import World
from ..training.events import Notice
from ..training.host import Host
from ..training.plan import TrainingPlan
from .base_model import Conditions, FlowBaseModel
from .checks import check_control_images, check_settings, check_sizes, list_long_captions
from .config import FlowConfig
from .prepare import prepare_flow
from .prepared_model import PreparedFlow


class FlowFamily:
    """The family to give to train_lora. It calls `load_model` once, after the dataset is planned.

    `plan_memory` gets what the prompt that takes most memory is encoded to. It returns how many
    blocks keep their weights in main memory, where blocks_to_swap is open.
    """

    def __init__(
        self,
        load_model: Callable[[Host], FlowBaseModel],
        plan_memory: Callable[[Conditions, Host], int] = lambda *_: 0,
    ) -> None:
        self._load_model = load_model
        self._plan_memory = plan_memory
        self._base: FlowBaseModel | None = None
        self._hashes: dict[str, str] = {}

    def identify(self, plan: TrainingPlan[FlowConfig], host: Host) -> dict[str, str]:
        check_settings(plan.settings.training)
        self._base = base = self._load_model(host)
        check_sizes(plan.crops.bucket_counts, base.family)
        check_control_images([item.image for item in plan.all_items], base.family)
        for notice in list_long_captions(plan.texts.list_all(), base):
            host.report(Notice(notice))
        base.encode_caption("")  # tells whether the text encoder is this model's, before images are encoded
        self._hashes = base.identify()
        return self._hashes

    def prepare(self, plan: TrainingPlan[FlowConfig], host: Host, *, cache: TensorCache, world: World) -> PreparedFlow:
        base, self._base = self._base, None
        assert base is not None, "identify was not called"
        return prepare_flow(
            plan,
            base,
            host,
            hashes=self._hashes,
            cache=cache,
            world=world,
            plan_memory=self._plan_memory,
        )
