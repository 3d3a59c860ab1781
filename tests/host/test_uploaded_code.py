"""What clients of a real server upload is never run, whatever ComfyUI's settings say: the attack by
its own routes, with the settings that once decided where Musubi Tuner is.
"""

import json
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers.comfyui.client import ComfyClient, PromptFailed
from trainers.comfyui.find import PACK, Installation
from trainers.comfyui.server import ComfyServer
from trainers.demo.in_comfyui import prepare_demo_directory

FILES = {"dit": "z_image_bf16.safetensors", "vae": "ae.safetensors", "text_encoder": "qwen_3_4b.safetensors"}
FOLDERS = {"dit": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders"}
# Each is imported, or run, if Musubi's folder is on the search path or the current one.
UPLOADED = ("json.py", "torch.py", "sitecustomize.py", "src/json.py", "src/torch.py", "src/sitecustomize.py")
SCRIPTS = ("zimage_train_network.py", "zimage_cache_latents.py", "json.py")


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    folder = tmp_path_factory.mktemp("attacked")
    prepare_demo_directory(folder)
    for name, file in FILES.items():
        (folder / "models" / FOLDERS[name]).mkdir(exist_ok=True)
        weights = {"x.weight": torch.ones(64, 64, dtype=torch.bfloat16)}
        save_file(weights, folder / "models" / FOLDERS[name] / file)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("HOME", str(folder / "home"))  # no Musubi Tuner there
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        for name in ("MUSUBI_TUNER_DIR", "MUSUBI_PYTHON"):
            monkeypatch.delenv(name, raising=False)
        with ComfyServer(installation, base_directory=folder, log=folder / "server.log", cpu=True) as server:
            yield server


def upload(server: ComfyServer, name: str, content: str, subfolder: str) -> None:
    mark = uuid.uuid4().hex
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n{content}\r\n']
    parts += [f'--{mark}\r\nContent-Disposition: form-data; name="subfolder"\r\n\r\n{subfolder}\r\n--{mark}--\r\n']
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    request = urllib.request.Request(f"{server.url}/upload/image", "".join(parts).encode(), headers)
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def marks(server: ComfyServer) -> Path:
    """Upload a Musubi Tuner; what runs of it leaves a file in this folder."""
    folder = server.base_directory / "marks"
    folder.mkdir()
    for path in (*UPLOADED, *(f"src/musubi_tuner/{name}" for name in SCRIPTS)):
        code = f"import os; open({str(folder)!r} + '/' + {path.replace('/', '-')!r}, 'w').close(); os._exit(0)"
        parent, _, name = f"m/{path}".rpartition("/")
        upload(server, name, code, parent)
    upload(server, "vocab.json", "{}", "m/Tongyi-MAI/Z-Image")  # the tokenizer that is asked for
    assert (server.base_directory / "input/m/src/musubi_tuner/zimage_train_network.py").is_file()
    return folder


def point_at(client: ComfyClient, **settings: str) -> None:
    client.post("/settings", {f"LoRATrainer.Musubi.{name.title()}": value for name, value in settings.items()})


def run_doctor(client: ComfyClient) -> str:
    result = client.run({"doctor": {"class_type": "LoRATrainer_MusubiDoctor", "inputs": {}}})
    return result.outputs["doctor"]["text"][0]


def train(client: ComfyClient, **inputs: object) -> None:
    files = {f"architecture.{name}": file for name, file in FILES.items()}
    dataset = {} if "dataset_toml" in inputs else {"dataset": ["pictures", 0]}
    trainer = {"architecture": "z-image", **dataset, **files, "max_train_steps": 1, **inputs}
    client.run(
        {
            "pictures": {"class_type": "LoRATrainer_LoadImages", "inputs": {"folder": "toadstools"}},
            "trainer": {"class_type": "LoRATrainer_MusubiTrain", "inputs": trainer},
            "sink": {"class_type": "PreviewAny", "inputs": {"source": ["trainer", 3]}},
        }
    )


def test_uploaded_code_is_not_run_by_settings_that_name_it(server: ComfyServer, marks: Path):
    uploaded = str(server.base_directory / "input/m")
    point_at(server.client, folder=uploaded, python=sys.executable)
    report = run_doctor(server.client)
    with pytest.raises(PromptFailed) as failure:
        train(server.client)
    assert list(marks.iterdir()) == []
    assert "Musubi Tuner was not found" in str(failure.value)
    owner_file = str(server.base_directory / "config/lora-trainer/musubi.toml")
    assert owner_file in str(failure.value) and "folder = '" in report and "python = '" in report
    assert report.count(uploaded) == 1 and f"move it into {owner_file}" in report


@pytest.mark.parametrize("content", ["[" * 100_000, "[1]", '{"LoRATrainer.Musubi.Folder": 3}'])
def test_settings_of_any_content_stop_nothing(server: ComfyServer, marks: Path, content: str):
    path = server.base_directory / "user/default/comfy.settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    try:
        assert "Musubi Tuner cannot be used yet." in run_doctor(server.client)
    finally:
        path.unlink()


def test_an_uploaded_folder_is_not_run_even_where_the_owner_names_it(server: ComfyServer, marks: Path, tmp_path: Path):
    """By a link, as an owner may have moved a folder; the file is read with every Run."""
    (tmp_path / "link").symlink_to(server.base_directory / "input")
    owner_file = server.base_directory / "config/lora-trainer/musubi.toml"
    owner_file.parent.mkdir(parents=True)
    owner_file.write_text(f"folder = '{tmp_path / 'link' / 'm'}'\npython = '{sys.executable}'\n")
    try:
        assert "is below ComfyUI's input folder" in run_doctor(server.client)
        with pytest.raises(PromptFailed, match="is below ComfyUI's input folder"):
            train(server.client)
    finally:
        owner_file.unlink()
    assert list(marks.iterdir()) == []


def test_a_workflow_cannot_send_musubis_caches_out_of_the_output_folder(server: ComfyServer, tmp_path: Path):
    table = f"[[datasets]]\nimage_directory = '{server.base_directory / 'input/toadstools'}'\nresolution = 64\n"
    table += f"caption_extension = '.txt'\ncache_directory = '{tmp_path / 'elsewhere'}'\n"
    with pytest.raises(PromptFailed, match=r"cache_directory .*elsewhere is not below ComfyUI's output folder"):
        train(server.client, dataset_toml=table)
    assert not (tmp_path / "elsewhere").exists()


FOLDERS_SCRIPT = """
import asyncio
import importlib
import json
import sys
from pathlib import Path

import folder_paths
import nodes
import server


async def load():
    server.PromptServer(asyncio.get_running_loop())
    assert await nodes.load_custom_node(sys.argv[1], set())


asyncio.run(load())
folder_paths.add_model_folder_path("loras", sys.argv[2])
folders = sys.modules[next(name for name in sys.modules if name.endswith(".nodes.host.folders"))]
print("RESULT" + json.dumps({str(folder.path): folder.name for folder in folders.list_client_folders()}))
"""


def test_every_folder_that_clients_can_write_to_is_known(
    run_in_comfyui: Callable[..., str], installation: Installation, tmp_path: Path
):
    lines = run_in_comfyui(FOLDERS_SCRIPT, PACK, tmp_path).splitlines()
    folders = json.loads(next(line for line in lines if line.startswith("RESULT")).removeprefix("RESULT"))
    for name in ("input", "output", "temp", "user", "models"):
        assert str(installation.folder / name) in folders
    assert folders[str(tmp_path)] == "ComfyUI's models folder loras"
    assert not any(path.endswith("custom_nodes") for path in folders)
