"""Caption a folder of images with Florence-2."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captions.captioning import CaptionerConfig
from ..captions.florence2.folder import ModelFolder
from ..config import add_flags, build_config
from ..dataset.config import DatasetConfig
from ..dataset.scan import scan_folder
from ..files.cache_folder import default_cache_folder

if TYPE_CHECKING:
    from ..dataset.dataset import Dataset

SUMMARY = "caption a folder of images with Florence-2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        help="folder of a Florence-2 model: microsoft's, florence-community's, PromptGen or another",
    )
    parser.add_argument("--device", help="torch device, such as cuda:1 or cpu (default: the best there is)")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        help="folder that keeps captions, so that a second run reuses them (default: the user's cache folder)",
    )
    add_flags(parser, DatasetConfig)
    add_flags(parser, CaptionerConfig)


def run(options: argparse.Namespace) -> int:
    """Print the name and caption of every image, separated by a tab. Progress goes to stderr."""
    given = vars(options)
    if "images" not in given:
        raise ValueError("missing --images")
    dataset_config, config = build_config(DatasetConfig, given), build_config(CaptionerConfig, given)
    captioned = caption(dataset_config, config, model=options.model, device=options.device, cache_dir=options.cache_dir)
    for image in captioned.images:
        print(f"{image.name}\t{image.caption}")
    return 0


def caption(
    dataset_config: DatasetConfig,
    config: CaptionerConfig,
    *,
    model: Path,
    device: str | None = None,
    cache_dir: Path | None = None,
) -> "Dataset":
    ModelFolder.open(model)
    dataset = scan_folder(dataset_config)
    # torch and transformers take seconds to import: errors in settings and folders come first
    from ..captions.captioning import CaptionCache, caption_dataset
    from ..captions.florence2.captioner import Florence2Captioner
    from ..training.console_host import ConsoleHost
    from ..training.device import choose_device

    torch_device = choose_device(device)
    captioner = Florence2Captioner(
        model, dtype=_choose_dtype(torch_device), place=lambda module: module.to(torch_device)
    )
    with ConsoleHost(torch_device) as host:
        return caption_dataset(dataset, captioner, config, host, CaptionCache(cache_dir or default_cache_folder()))


def _choose_dtype(device: Any) -> Any:
    """Choose half precision on CUDA only: in fp16 on Apple's devices Florence-2 gives empty
    captions.
    """
    import torch

    from ..training.device import usual_precision

    return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[usual_precision(device)]
