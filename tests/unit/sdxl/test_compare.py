"""`python -m trainers compare` on the embedded base: what it draws, and that it leaves the model
and the disk as they were.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from trainers.__main__ import main
from trainers.compare.checkpoints import read_checkpoint
from trainers.compare.config import CompareConfig
from trainers.compare.grid import lay_out_grid
from trainers.compare.plan import ComparePlan, plan_comparison
from trainers.embedded_base import write_embedded_checkpoint
from trainers.lora.modules import list_weighted_modules
from trainers.lora.read import read_lora
from trainers.sdxl.compare import draw_comparison
from trainers.sdxl.merge import merge_lora, merged_lora
from trainers.sdxl.model.sampling import sample_images
from trainers.sdxl.model.sdxl_model import SDXLModel, load_model
from trainers.sdxl.names import kohya_names
from trainers.training.device import DeviceMemory
from trainers.training.events import Event, Interrupted, StageProgress

CONFIG: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 4.0}


class Host(DeviceMemory):
    """Records progress, and cancels at the step with this number."""

    def __init__(self, cancel_at_step: int = 0) -> None:
        super().__init__(torch.device("cpu"))
        self.progress: list[StageProgress] = []
        self._cancel_at_step = cancel_at_step

    def report(self, event: Event) -> None:
        if isinstance(event, StageProgress):
            self.progress.append(event)

    def check_interrupted(self) -> None:
        if self._cancel_at_step and len(self.progress) + 1 >= self._cancel_at_step:
            raise Interrupted


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    write_embedded_checkpoint(path)
    return path


def get_parts(model: SDXLModel) -> dict[str, nn.Module]:
    assert model.text_encoder is not None and model.text_encoder_2 is not None
    return {"unet": model.unet, "text_encoder": model.text_encoder, "text_encoder_2": model.text_encoder_2}


@pytest.fixture(scope="module")
def loras(base: Path) -> list[Path]:
    """Two LoRAs on every linear layer of UNet and text encoders."""
    model = load_model(base)
    parts = get_parts(model)
    names = kohya_names(*map(list_weighted_modules, parts.values()))
    paths = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for (component, path), name in names.items():
            layer = dict(parts[component].named_modules()).get(path) or dict(parts[component].named_modules()).get(
                f"text_model.{path}"
            )
            if isinstance(layer, nn.Linear):
                tensors[f"{name}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=generator) * 0.05
                tensors[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=generator) * 0.05
                tensors[f"{name}.alpha"] = torch.tensor(2.0)
        path = base.with_name(f"lora-step{seed:08d}.safetensors")
        save_file(tensors, path, {"modelspec.trigger_phrase": "zwx", "ss_steps": str(seed)})
        paths.append(path)
    return paths


def make_plan(loras: list[Path], config: CompareConfig) -> ComparePlan:
    prompts = ["a {trigger} circle", "a blue square"]
    return plan_comparison([read_checkpoint(path) for path in loras], prompts, config)


def cut_out(grid: Image.Image, plan: ComparePlan, x: int, y: int) -> np.ndarray:
    return np.asarray(grid.crop(lay_out_grid(plan).box(x, y)))


def test_an_image_is_that_of_the_merged_model(base: Path, loras: list[Path]):
    config = CompareConfig(**CONFIG, strengths="0.5, 1", seeds="3, 4")
    plan, host = make_plan(loras, config), Host()
    grid = draw_comparison(load_model(base), plan, config, host)
    assert [event.step for event in host.progress] == list(range(1, plan.num_sampler_steps + 1))
    assert host.progress[-1].detail == "image 20/20, 2: lora-step00000002, strength 1"

    model = load_model(base)
    draw = {"size_hw": (64, 64), "num_steps": 2, "guidance_scale": 4.0}
    for x, strength in ((0, 0.0), (3, 0.5)):
        if strength:
            names = kohya_names(*map(list_weighted_modules, get_parts(model).values()))
            merge_lora(read_lora(loras[1], names), get_parts(model), strength=strength)
        expected = sample_images(model, ["a zwx circle", "a blue square"], seeds=[3, 4], **draw)
        for y in range(4):
            found = cut_out(grid, plan, x, y)
            assert np.abs(found.astype(int) - expected[y]).max() <= 1
    assert not np.array_equal(cut_out(grid, plan, 0, 0), cut_out(grid, plan, 1, 0))


def test_a_merged_lora_leaves_the_weights_bit_for_bit(base: Path, loras: list[Path]):
    model = load_model(base)  # float16, which does not give back what was added
    parts = get_parts(model)
    before = {name: part.state_dict()[name].clone() for part in parts.values() for name in part.state_dict()}
    names = kohya_names(*map(list_weighted_modules, parts.values()))
    with pytest.raises(Interrupted), merged_lora(read_lora(loras[0], names), parts, strength=0.7):
        assert any(not torch.equal(before[name], tensor) for name, tensor in model.unet.state_dict().items())
        raise Interrupted
    for part in parts.values():
        for name, tensor in part.state_dict().items():
            assert torch.equal(before[name], tensor), name


def test_a_lora_of_another_model_is_an_error_before_the_first_image(base: Path, loras: list[Path], tmp_path: Path):
    config, host = CompareConfig(**CONFIG), Host()
    name = "lora_unet_input_blocks_4_1_proj_in"
    sizes = {f"{name}.lora_down.weight": torch.ones(2, 640), f"{name}.lora_up.weight": torch.ones(640, 2)}
    save_file(sizes, tmp_path / "large.safetensors", {"modelspec.trigger_phrase": "zwx"})
    save_file({"a.weight": torch.ones(1)}, tmp_path / "none.safetensors", {"modelspec.trigger_phrase": "zwx"})
    for file, message in (
        ("large", r"large\.safetensors: unet .*: the LoRA has 640 inputs and 640 outputs, the model \d+ and \d+"),
        ("none", r"none\.safetensors: 1 of 1 keys do not fit this model"),
    ):
        plan = make_plan([loras[0], tmp_path / f"{file}.safetensors"], config)
        with pytest.raises(ValueError, match=message):
            draw_comparison(load_model(base), plan, config, host)
    assert not host.progress


def test_cancelling_takes_effect_at_the_next_step(base: Path, loras: list[Path]):
    config, host = CompareConfig(**CONFIG), Host(cancel_at_step=3)
    with pytest.raises(Interrupted):
        draw_comparison(load_model(base), make_plan(loras, config), config, host)
    assert len(host.progress) == 2


def test_the_command_writes_the_grid_and_never_over_a_file(
    base: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\n\na green cross\n", encoding="utf-8")
    size = ["--width", "64", "--height", "64", "--steps", "1", "--device", "cpu"]
    command = ["compare", "--base", str(base), "--loras", *map(str, loras), "--prompts", "a {trigger}", *size]
    command += ["--prompt-file", str(prompts), "--output", str(tmp_path / "grid.png"), "--strengths", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'grid.png'}: 9 images",
        f"1: {loras[0]}",
        f"2: {loras[1]}",
    ]
    written = (tmp_path / "grid.png").read_bytes()
    assert main(command) == 1
    assert "grid.png exists already. Give a new name for the grid" in capsys.readouterr().err
    assert (tmp_path / "grid.png").read_bytes() == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.png", "prompts.txt"]


def test_the_command_compares_a_run(base: Path, loras: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    run = tmp_path / "output" / "runs" / "anna-20260901-120000"
    (run / "checkpoints").mkdir(parents=True)
    for path in loras:
        (run / "checkpoints" / path.name).write_bytes(path.read_bytes())
    grid = tmp_path / "grid.png"
    command = ["compare", "--base", str(base), "--run", run.name, "--output-dir", str(tmp_path / "output")]
    command += ["--prompts", "a dog", "--width", "64", "--height", "64", "--steps", "1", "--output", str(grid)]
    assert main([*command, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith(f"{grid}: 3 images\n1: {run / 'checkpoints' / loras[0].name}\n")
