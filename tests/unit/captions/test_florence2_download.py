"""Downloading a Florence-2 model: only safetensors and plain files, into OWNER/NAME, with progress.
Every failure is explained. Uses no network.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.data.make_tiny_florence2 import FOLDER
from tests.limits import wait_until
from trainers.captions.florence2 import download as download_module
from trainers.captions.florence2.download import check_model_id, download_model, find_downloaded_model
from trainers.training.events import Interrupted

ROOT = Path(__file__).parents[3]
MODEL_ID = "owner/Florence-2-tiny"


# The hub of the process that downloads: the real library, with two functions replaced by orders.
PROGRAM = """
import json, runpy, shutil, sys, time
from pathlib import Path
from types import SimpleNamespace

hub, real_program, model = (Path(name) for name in {places!r})
orders = json.loads((hub / "orders.json").read_text())
sys.path[:] = json.loads(sys.argv[1])["path"]
import huggingface_hub
from huggingface_hub.errors import *

def wait_at(place):
    (hub / place).touch()
    while place in orders["waits"] and not (hub / "go").exists():
        time.sleep(0.01)
    if place in orders["errors"]:
        raise eval(orders["errors"][place])

def model_info(self, repo_id, *, files_metadata):
    assert repo_id == "owner/Florence-2-tiny" and files_metadata
    wait_at("asked")
    files = orders["files"].items()
    return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in files])

def snapshot_download(repo_id, *, local_dir, allow_patterns):
    (hub / "patterns.json").write_text(json.dumps(allow_patterns))
    (Path(local_dir) / "part").write_bytes(bytes(1000))
    wait_at("fetched")
    (Path(local_dir) / "part").unlink()
    shutil.copytree(model, local_dir, dirs_exist_ok=True)
    (hub / "ended").touch()

if orders["is_replaced"]:
    huggingface_hub.HfApi.model_info, huggingface_hub.snapshot_download = model_info, snapshot_download
runpy.run_path(str(real_program), run_name="__main__")
"""


class Hub:
    """The orders to the hub's process, and what it has done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}

    def order(self, *, waits: tuple[str, ...] = (), is_replaced: bool = True, **errors: str) -> None:
        """The places "asked" and "fetched" are those of the two functions."""
        orders = {"files": self.files, "waits": waits, "errors": errors, "is_replaced": is_replaced}
        (self.folder / "orders.json").write_text(json.dumps(orders))

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path_factory.mktemp("hub"))
    places = tuple(map(str, (hub.folder, download_module.PROGRAM, FOLDER)))
    (hub.folder / "program.py").write_text(PROGRAM.replace("{places!r}", repr(places)))
    monkeypatch.setattr(download_module, "PROGRAM", hub.folder / "program.py")
    monkeypatch.setattr(download_module, "SECONDS_BETWEEN_LOOKS", 0.01)
    hub.order()
    return hub


def test_a_model_is_downloaded_into_owner_and_name_and_found_again(hub, tmp_path):
    assert find_downloaded_model(MODEL_ID, tmp_path) is None
    assert (
        download_model(MODEL_ID, tmp_path)
        == tmp_path / "owner" / "Florence-2-tiny"
        == find_downloaded_model(MODEL_ID, tmp_path)
    )
    patterns = json.loads((hub.folder / "patterns.json").read_text())
    assert (
        not any(pattern.endswith((".py", ".bin", ".pt", "*")) for pattern in patterns) and "*.safetensors" in patterns
    )


def test_progress_reports_the_bytes_so_far(hub, tmp_path):
    hub.order(waits=("fetched",))

    def look(done: int, total: int) -> None:
        if (done, total) == (1000, sum(hub.files.values())):
            (hub.folder / "go").touch()

    download_model(MODEL_ID, tmp_path, on_progress=look)
    assert hub.has("ended")


@pytest.mark.parametrize("place", ["asked", "fetched"])
def test_an_interrupt_ends_the_download(hub, tmp_path, place, monkeypatch):
    processes = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            processes.append(self)

    def check_interrupted() -> None:
        if hub.has(place):
            raise Interrupted("cancelled")

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    hub.order(waits=(place,))
    with pytest.raises(Interrupted):
        download_model(MODEL_ID, tmp_path, check_interrupted=check_interrupted)
    assert all(process.returncode is not None for process in processes) and not hub.has("ended")
    hub.order()
    assert download_model(MODEL_ID, tmp_path) == find_downloaded_model(MODEL_ID, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_the_download_ends_with_a_killed_caller(hub, tmp_path):
    hub.order(waits=("fetched",))
    code = (
        "from pathlib import Path; from trainers.captions.florence2 import download as module;"
        f"module.PROGRAM = Path({str(hub.folder / 'program.py')!r}); module.download_model({MODEL_ID!r}, Path('.'))"
    )
    output = tmp_path / "errors"
    with open(output, "wb") as stream:
        caller = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=stream,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: hub.has("fetched") or caller.poll() is not None, what="the download")
        caller.kill()
        assert caller.stderr is not None
        caller.stderr.read()  # ends when the process that downloads has ended, too
        caller.wait()
    assert not hub.has("ended")


def test_a_model_without_safetensors_is_refused_before_any_download(hub, tmp_path):
    hub.files = {"config.json": 10, "pytorch_model.bin": 10}
    hub.order()
    with pytest.raises(ValueError, match=r"has no \.safetensors file"):
        download_model(MODEL_ID, tmp_path)
    assert not hub.has("fetched") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("OfflineModeIsEnabled('offline')", "HF_HUB_OFFLINE is set"),
        (
            "LocalEntryNotFoundError('no connection')",
            r"cannot be reached or gave an error \(.*no connection.*Run it again",
        ),
        ("HfHubHTTPError.__bases__[0]('no route to host')", "no route to host"),
        ("ConnectionError('Name or service not known')", "Name or service not known"),
        ("KeyError('a bug')", r"huggingface_hub ended with an error, .* Update huggingface_hub"),
    ],
)
def test_failures_are_explained(hub, tmp_path, error, message):
    hub.order(fetched=error)
    with pytest.raises(RuntimeError, match=message):
        download_model(MODEL_ID, tmp_path)


def test_offline_mode_is_explained_without_a_request(hub, tmp_path):
    """The real library: HF_HUB_OFFLINE is set for all tests."""
    hub.order(is_replaced=False)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"):
        download_model(MODEL_ID, tmp_path)


@pytest.mark.parametrize(
    "model_id", ["", "Florence-2-base", "../../etc", "a/../b", "https://huggingface.co/a/b", "a/b/c", "-a/b"]
)
def test_an_invalid_model_id_is_refused(model_id):
    with pytest.raises(ValueError, match="model_id must be OWNER/NAME"):
        check_model_id(model_id)
