"""Downloading a Florence-2 model: only safetensors and plain files, into OWNER/NAME, with progress.
Every failure is explained. Uses no network.
"""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from tests.data.make_tiny_florence2 import FOLDER
from tests.limits import TIME_LIMIT
from trainers.captions.florence2 import download as download_module
from trainers.captions.florence2.download import check_model_id, download_model, find_downloaded_model
from trainers.training.events import Interrupted

MODEL_ID = "owner/Florence-2-tiny"


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub with one that has the tiny model; tests can change `files` and `fetch`."""
    fake = SimpleNamespace(
        files={file.name: file.stat().st_size for file in FOLDER.iterdir()}, fetched=[], fetch=lambda folder: None
    )

    def model_info(self, repo_id, *, files_metadata):
        assert repo_id == MODEL_ID and files_metadata
        return SimpleNamespace(
            siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in fake.files.items()]
        )

    def snapshot_download(repo_id, *, local_dir, allow_patterns):
        fake.fetched.append((repo_id, tuple(allow_patterns)))
        fake.fetch(Path(local_dir))
        shutil.copytree(FOLDER, local_dir, dirs_exist_ok=True)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(download_module, "SECONDS_BETWEEN_LOOKS", 0.01)
    return fake


def test_a_model_is_downloaded_into_owner_and_name_and_found_again(hub, tmp_path):
    assert find_downloaded_model(MODEL_ID, tmp_path) is None
    assert (
        download_model(MODEL_ID, tmp_path)
        == tmp_path / "owner" / "Florence-2-tiny"
        == find_downloaded_model(MODEL_ID, tmp_path)
    )
    ((_, patterns),) = hub.fetched
    assert (
        not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns) and "*.safetensors" in patterns
    )


def test_progress_reports_the_bytes_so_far(hub, tmp_path):
    is_seen = threading.Event()

    def fetch(folder: Path) -> None:
        (folder / "part").write_bytes(bytes(1000))
        assert is_seen.wait(TIME_LIMIT)
        (folder / "part").unlink()

    def look(done: int, total: int) -> None:
        if (done, total) == (1000, sum(hub.files.values())):
            is_seen.set()

    hub.fetch = fetch
    download_model(MODEL_ID, tmp_path, on_progress=look)
    assert is_seen.is_set()


def test_an_interrupt_takes_effect_before_the_download_ends(hub, tmp_path):
    may_end, has_ended = threading.Event(), threading.Event()

    def fetch(folder: Path) -> None:
        may_end.wait(TIME_LIMIT)
        has_ended.set()

    def check_interrupted() -> None:
        raise Interrupted("cancelled")

    hub.fetch = fetch
    with pytest.raises(Interrupted):
        download_model(MODEL_ID, tmp_path, check_interrupted=check_interrupted)
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(TIME_LIMIT)


def test_a_model_without_safetensors_is_refused_before_any_download(hub, tmp_path):
    hub.files = {"config.json": 10, "pytorch_model.bin": 10}
    with pytest.raises(ValueError, match=r"has no \.safetensors file"):
        download_model(MODEL_ID, tmp_path)
    assert hub.fetched == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (
            LocalEntryNotFoundError("no connection"),
            r"cannot be reached or gave an error \(.*no connection.*Run it again",
        ),
        (HfHubHTTPError.__bases__[0]("no route to host"), "no route to host"),
        (ConnectionError("Name or service not known"), "Name or service not known"),
    ],
)
def test_failures_are_explained(hub, tmp_path, error, message):
    def fail(folder: Path) -> None:
        raise error

    hub.fetch = fail
    with pytest.raises(RuntimeError, match=message):
        download_model(MODEL_ID, tmp_path)


def test_offline_mode_is_explained_without_a_request(tmp_path):
    """The real library: HF_HUB_OFFLINE is set for all tests."""
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        download_model(MODEL_ID, tmp_path)


@pytest.mark.parametrize(
    "model_id", ["", "Florence-2-base", "../../etc", "a/../b", "https://huggingface.co/a/b", "a/b/c", "-a/b"]
)
def test_an_invalid_model_id_is_refused(model_id):
    with pytest.raises(ValueError, match="model_id must be OWNER/NAME"):
        check_model_id(model_id)
