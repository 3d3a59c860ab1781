"""Florence-2 Caption and Set Captions: give a dataset captions from a Florence-2 model, or from any
other node.
"""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trainers.captions.captioning import CaptionerConfig, set_captions
from ..trainers.dataset.dataset import Dataset
from .config_inputs import check_settings_order, make_settings_inputs
from .host import folders
from .host.captioner import caption_in_graph, find_model_folder, is_in_cache, list_models
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

_VISIBLE = {"task", "prompt", "existing_captions", "write_files"}
SETTINGS_ORDER = check_settings_order(  # append only
    (
        "task",
        "prompt",
        "existing_captions",
        "trigger_template",
        "clean_captions",
        "write_files",
        "num_beams",
        "max_new_tokens",
        "batch_size",
    ),
    CaptionerConfig,
)


def _make_outputs() -> list[io.Output]:
    return [
        TrainingDataset.Output("dataset", tooltip="The same images with the new captions, for Train LoRA."),
        io.String.Output(
            "captions", is_output_list=True, tooltip="One caption per image, in the order of the dataset, as a list."
        ),
        io.String.Output("report", tooltip="Every image with its caption, as text."),
    ]


class Florence2Caption(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        models = list_models()
        return io.Schema(
            node_id=ID_PREFIX + "Florence2Caption",
            display_name="Florence-2 Caption (LoRA Trainer)",
            category=CATEGORY,
            description="Writes a caption for every image of a dataset with a Florence-2 model. A caption that was "
            "written before is reused, and the model leaves the GPU before training.",
            search_aliases=["Florence2Caption", "caption", "auto caption", "florence", "tagger", "PromptGen"],
            inputs=[
                TrainingDataset.Input("dataset", tooltip="From Load Images or Join Datasets."),
                io.Combo.Input(
                    "model",
                    options=[folders.NONE, *models],
                    default=models[0] if models else folders.NONE,
                    optional=True,
                    tooltip="A Florence-2 model in models/LLM or models/florence2: microsoft's, florence-community's, "
                    "PromptGen, CogFlorence and others. Only its weights are used; none of its code runs.",
                ),
                io.String.Input(
                    "model_id",
                    default="",
                    optional=True,
                    tooltip="Instead of model: a model on huggingface.co, such as florence-community/Florence-2-base "
                    "(0.5 GB), florence-community/Florence-2-large (1.6 GB) or "
                    "MiaoshouAI/Florence-2-base-PromptGen-v2.0 (0.5 to 1 GB). Set model to [None].",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    optional=True,
                    tooltip="Download model_id from huggingface.co into models/florence2 if it is not there yet. Only "
                    "safetensors; an interrupted download continues.",
                ),
                *make_settings_inputs(SETTINGS_ORDER, CaptionerConfig, visible=_VISIBLE),
            ],
            outputs=_make_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        model: str | None = None,
        model_id: str | None = None,
        download: bool | None = None,
        prompt: str | None = None,
        trigger_template: str | None = None,
    ) -> bool | str:
        """Values are None if they come from a link, or are not given."""
        try:
            CaptionerConfig(
                prompt=prompt or "", trigger_template="{caption}" if trigger_template is None else trigger_template
            )
            if model is not None or model_id is not None:
                is_there = find_model_folder(model or folders.NONE, model_id or "") is not None
                if not is_there and download is False:
                    return (
                        f"{model_id} is not downloaded yet. Turn on download to fetch it from huggingface.co, or "
                        "choose a model from the list"
                    )
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls, dataset: Dataset, model: str = folders.NONE, model_id: str = "", download: bool = False, **settings: Any
    ) -> io.NodeOutput:
        config = CaptionerConfig(**settings)
        note = ""
        if config.write_files and is_in_cache(dataset):
            note = (
                "No caption files were written, because the images come from a zip, an address or other nodes. The "
                "captions are in the dataset.\n"
            )
            config = replace(config, write_files=False)
        return _make_output(caption_in_graph(dataset, config, model=model, model_id=model_id, download=download), note)


class SetCaptions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "SetCaptions",
            display_name="Set Captions (LoRA Trainer)",
            category=CATEGORY,
            description="Gives a dataset the captions of another node (WD14 Tagger, JoyCaption, QwenVL and others): "
            "one per image, in the same order.",
            search_aliases=["SetCaptions", "captions from list", "tags to dataset", "WD14", "JoyCaption"],
            is_input_list=True,
            inputs=[
                TrainingDataset.Input(
                    "dataset", tooltip="From Load Images, whose output images goes to the other node."
                ),
                io.String.Input(
                    "captions",
                    force_input=True,
                    tooltip="A list of texts, one per image, in the order of Load Images. The dataset's trigger word "
                    "is put in front of those that lack it.",
                ),
            ],
            outputs=_make_outputs(),
        )

    @classmethod
    def execute(cls, dataset: list[Dataset], captions: list[str]) -> io.NodeOutput:
        return _make_output(set_captions(dataset[0], captions))


def _make_output(dataset: Dataset, note: str = "") -> io.NodeOutput:
    captions = [image.caption for image in dataset.images]
    report = note + "".join(f"{image.name}: {image.caption}\n" for image in dataset.images)
    return io.NodeOutput(dataset, captions, report, ui={"text": [report]})
