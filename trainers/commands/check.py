"""Check a dataset and its settings before training: what will be used, what it will cost, what to
fix. Loads no model. Exits with 1 if it refuses the training.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ..check.config import FlightCheckConfig
from ..check.cost import Surroundings
from ..check.flight_check import check_flight
from ..check.report import FlightReport
from ..config import build_config
from ..files.atomic_write import atomic_write
from ..sdxl.check.family_check import SDXLCheck
from ..sdxl.config import SDXLConfig
from ..training.run_folder import RunFolder
from ..training.run_settings import RunSettings
from .sdxl import CONFIGS
from .settings import (
    add_setting_flags,
    check_base_dtype,
    check_presets,
    load_packages,
    read_dataset_configs,
    read_settings,
    require_base_model,
    resolve_presets,
    scan_datasets,
)

SUMMARY = "check images, captions and settings before training"
CHECK_CONFIGS = (FlightCheckConfig, *CONFIGS)
REQUIRED = ("images",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--picture", type=Path, help="also draw the report as an image into this new PNG file")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_setting_flags(parser, CHECK_CONFIGS, required=REQUIRED)


def run(options: argparse.Namespace) -> int:
    if options.picture and options.picture.exists():
        raise FileExistsError(f"{options.picture} exists already. Give a new name for the image")
    report = check(read_settings(options, configs=CHECK_CONFIGS, required=REQUIRED))
    print(json.dumps(report.to_dict(), indent=2) + "\n" if options.json else report.text(), end="")
    if options.picture:
        from ..check.drawing.report_image import draw_flight_check

        with atomic_write(options.picture) as temporary:
            draw_flight_check(report).save(temporary, format="PNG")
    return 1 if report.is_refused else 0


def check(settings: dict[str, Any]) -> FlightReport:
    """Check a dataset for an SDXL training.

    Raises:
        ValueError, OSError: as the training, for a wrong setting, a folder without images, or an
            output that exists.
    """
    dataset_settings = read_dataset_configs(settings)
    RunSettings.read(SDXLConfig, settings)
    check_presets(settings)
    check_base_dtype(settings)
    flight_check = build_config(FlightCheckConfig, settings)
    output_folder = Path(settings.get("output_dir", "output"))
    if settings.get("output"):
        RunFolder(output_folder, settings["output"]).require_writable()
    if settings.get("base"):
        require_base_model(settings["base"])
    dataset = scan_datasets(dataset_settings)
    run_settings = resolve_presets(settings, dataset)
    # torch takes a second to import: errors in settings and folders come first
    load_packages()
    from ..sdxl.model.sdxl_model import check_header
    from ..training.console_host import ConsoleHost
    from ..training.device import choose_device, count_memory_bytes, resolve_precision

    if settings.get("base") and Path(settings["base"]).is_file():
        check_header(Path(settings["base"]))
    with ConsoleHost() as host:
        device = choose_device(settings.get("device"))
        device_bytes = count_memory_bytes(device)
        precision = resolve_precision(run_settings.training.mixed_precision, device)
        family = SDXLCheck(precision, device_bytes, settings.get("base_dtype", ""))
        surroundings = Surroundings(device_bytes, output_folder, str(device))
        return check_flight(
            dataset, run_settings, family, flight_check, surroundings, check_interrupted=host.check_interrupted
        )
