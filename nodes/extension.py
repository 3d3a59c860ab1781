"""Registers the nodes, and their plain ids for API prompts unless another pack has taken them."""

from comfy_api.latest import ComfyExtension, io

from .apply_lora import ApplyLoRA
from .compare_checkpoints import CompareCheckpoints
from .extract_lora import ExtractLoRA
from .flight_check import FlightCheck
from .florence2_caption import Florence2Caption, SetCaptions
from .host.caption_review import serve_caption_review
from .host.plain_ids import serve_plain_ids
from .host.presets import serve_presets
from .host.training_routes import serve_training_runs
from .join_datasets import JoinDatasets
from .load_images import LoadImages
from .lora_info import LoRAInfo
from .merge_loras import MergeLoRAs
from .musubi_doctor import MusubiDoctor
from .musubi_train import MusubiTrain
from .resize_lora import ResizeLoRA
from .review_captions import ReviewCaptions
from .save_lora import SaveLoRA
from .train_lora import TrainLoRA
from .train_sdxl import LoRATrainSDXL
from .train_slider import TrainSlider
from .training_settings import LoRASettings

NODES: list[type[io.ComfyNode]] = [
    *(LoadImages, TrainLoRA, LoRATrainSDXL, ApplyLoRA, SaveLoRA),
    *(ReviewCaptions, FlightCheck, JoinDatasets, Florence2Caption, SetCaptions),
    *(MusubiTrain, MusubiDoctor),
    CompareCheckpoints,
    LoRASettings,
    *(LoRAInfo, MergeLoRAs, ResizeLoRA, ExtractLoRA),
    TrainSlider,
]


class LoRATrainerExtension(ComfyExtension):
    async def on_load(self) -> None:
        serve_caption_review()
        serve_presets()
        serve_training_runs()
        await serve_plain_ids(NODES)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LoRATrainerExtension:
    return LoRATrainerExtension()
