"""Load Images: makes a dataset from images and captions in a folder, a zip or other nodes, and
checks each of them.
"""

import asyncio
from typing import Any

from comfy_api.latest import io

from ..trainers.dataset.config import DatasetConfig
from ..trainers.dataset.scan import scan_folder
from .config_inputs import check_settings_order, make_settings_inputs
from .host import folders
from .host.progress import ComfyHost, cancellable
from .host.prompt_queue import is_output_linked
from .host.sources import (
    find_control_folder,
    find_source,
    fingerprint,
    open_source,
    read_images,
    require_used_masks,
)
from .sockets import CATEGORY, ID_PREFIX, TrainingDataset

_IMAGES_OUTPUT = 1  # its position
_VISIBLE = {"trigger_word", "fallback_caption", "num_repeats"}
SETTINGS_ORDER = check_settings_order(  # append only
    (
        "trigger_word",
        "fallback_caption",
        "num_repeats",
        "recursive",
        "alpha_background",
        "keep_duplicates",
        "strict",
        "mask_source",
        "loss_weight",
        "is_regularization",
        "is_validation",
        "control_images",
    ),
    DatasetConfig,
    elsewhere={"images"},  # folder, path or images
)


class LoadImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=ID_PREFIX + "LoadImages",
            # The editor's search ranks by this name alone: "dataset" must find it first.
            display_name="Dataset: Load Images (LoRA Trainer)",
            category=CATEGORY,
            description="Loads images with their captions from a folder, a zip or other nodes, as a dataset to train "
            "a LoRA on. Every image is checked; the report names those that are left out, and why.",
            search_aliases=[
                "LoadImages",
                "dataset",
                "load dataset",
                "image dataset",
                "load folder",
                "training images",
                "kohya dataset",
                "zip",
            ],
            is_input_list=True,
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=[folders.NONE, *folders.list_input_folders()],
                    default=folders.NONE,
                    optional=True,
                    tooltip="Folder inside ComfyUI's input folder with 10 to 200 images (png, jpg, jpeg, webp, bmp, "
                    "avif), each with its caption in a .txt or .caption file of the same name.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip="Instead of folder: a folder or .zip anywhere on the machine that runs ComfyUI, or the "
                    "http(s) address of a .zip (up to 4 GB).",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Instead of folder or path: images from other nodes, as a batch or a list, of any sizes. "
                    "At least 1, usually 10 to 200.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="With images: one mask per image. White is learned; black counts only as much as "
                    "unmasked_weight in Train LoRA says. Load Image outputs the inverse: put Invert Mask between. "
                    "mask_source must be files.",
                ),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="With images: one caption per image, in the same order, or one for all. From a captioning "
                    "node, for example.",
                ),
                *make_settings_inputs(
                    SETTINGS_ORDER,
                    DatasetConfig,
                    visible=_VISIBLE,
                    notes={
                        "control_images": "A folder in the folder of the images or in ComfyUI's input folder, such as "
                        "control, or a whole path."
                    },
                ),
            ],
            outputs=[
                TrainingDataset.Output(
                    "dataset", tooltip="The images that can be used, with their captions: for Train LoRA."
                ),
                io.Image.Output(
                    "images",
                    is_output_list=True,
                    tooltip="The images as a list, at most 512 pixels wide or high: to look at and to caption. Only "
                    "read if something is connected.",
                ),
                io.String.Output(
                    "report", tooltip="How many images were kept, and which were left out and why, as text."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        folder: list[str] | None = None,
        path: list[str] | None = None,
        recursive: list[bool] | None = None,
        control_images: list[str] | None = None,
        **_: Any,
    ) -> str | float:
        """Return another value if an image, mask, caption file or control image was added, removed
        or edited, or the images are wanted now.
        """
        content = fingerprint(
            _get_first(folder, folders.NONE),
            _get_first(path, ""),
            recursive=_get_first(recursive, False),
            control_images=_get_first(control_images, ""),
        )
        are_wanted = isinstance(content, str) and is_output_linked(_IMAGES_OUTPUT)
        return f"{content}, with images" if are_wanted else content

    @classmethod
    async def validate_inputs(cls, path: list[str] | None = None) -> bool | str:
        """What comes on a link is [None] here, so that only `execute` can check it. In a thread: a
        network drive may take its time, and the server goes on.
        """
        try:
            await asyncio.to_thread(find_source, folders.NONE, _get_first(path, ""))
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        folder: list[str] | None = None,
        path: list[str] | None = None,
        images: list[Any] | None = None,
        masks: list[Any] | None = None,
        captions: list[str] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        host = ComfyHost()
        with cancellable():
            source = find_source(_get_first(folder, folders.NONE), _get_first(path, ""))
            require_used_masks(masks, _get_first(settings.get("mask_source"), "files"))
            source_images = open_source(source, images=images, masks=masks, captions=captions, host=host)
            given = {name: values[0] for name, values in settings.items()}
            controls = find_control_folder(given.pop("control_images", ""), source_images.folder)
            config = DatasetConfig(
                images=str(source_images.folder), control_images=str(controls) if controls else "", **given
            )
            dataset = scan_folder(
                config,
                name=source_images.name,
                check_interrupted=host.check_interrupted,
                on_progress=host.make_counter("checking"),
            )
            previews = read_images(dataset, host) if is_output_linked(_IMAGES_OUTPUT) else []
        report = dataset.report.text()
        host.send_text(report)
        return io.NodeOutput(dataset, previews, report, ui={"text": [report]})


def _get_first(values: list[Any] | None, default: Any) -> Any:
    """Return the value of a widget. Nodes that take lists get it as a list of one, which holds None
    if the input is linked.
    """
    return values[0] if values and values[0] is not None else default
