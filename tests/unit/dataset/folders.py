"""Small folders of images to test scans."""

from pathlib import Path

from PIL import Image

from trainers.dataset.config import DatasetConfig
from trainers.dataset.scan import scan_folder


def write_photo(
    path: Path, size_wh=(96, 64), colour=(10, 20, 30), caption: str | None = "a caption", **settings
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size_wh, colour).save(path, **settings)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def scan(folder: Path, **settings):
    return scan_folder(DatasetConfig(images=str(folder), **settings))


def list_reasons(dataset) -> dict[str, str]:
    return {finding.name: finding.reason for finding in dataset.report.left_out}


def scan_with_trigger_word(folder: Path, **settings):
    """Scan with a trigger word, so that images without a caption get one."""
    return scan(folder, trigger_word="zwx", **settings)
