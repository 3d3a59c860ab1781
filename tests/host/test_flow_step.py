"""One training step of a flow model against independent implementations: diffusers' models with the
losses of its training scripts, and Musubi Tuner's own Z-Image training step.

Everything is computed in float32 from the same weights, LoRA matrices, latents, noise, noise levels
and text conditions. Letters: B batch, C channels, H W latent height and width, N tokens, D width.
"""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.limits import TIME_LIMIT
from trainers.flow.lora_names import name_modules
from trainers.musubi.installation import NoMusubi, find_installation

PACK = Path(__file__).parents[2]
SCRIPTS = Path(__file__).with_name("scripts")
SHIM = PACK / "tests" / "musubi" / "shim"
STRENGTH = 2.0 / 4  # alpha / rank
COSINE, RELATIVE_LOSS = 1e-6, 1e-6


@pytest.fixture(scope="module")
def steps(run_in_comfyui: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    output = run_in_comfyui((SCRIPTS / "flow_step.py").read_text(), PACK, folder)
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
    (folder / "checkpointing.json").write_text(line.removeprefix("RESULT"))
    return folder


@dataclass(frozen=True)
class Step:
    """What our trainer computed, in ComfyUI's interpreter on ComfyUI's modules."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): tensor for k, tensor in self.tensors.items() if k.startswith(prefix)}

    def conditions(self, name: str = "conditions") -> list[Tensor]:
        return list(self.group(f"{name}.").values())

    @property
    def noisy(self) -> Tensor:
        sigmas = self["sigmas"].reshape(-1, *[1] * (self["latents"].ndim - 1))
        return (1 - sigmas) * self["latents"] + sigmas * self["noise"]


Predict = Callable[[nn.Module, dict[str, Tensor], Step], Tensor]
"""(model, its weights with the LoRA in them, the step) -> velocity, like the latents"""


def call(model: nn.Module, weights: dict[str, Tensor], **inputs: Any) -> Any:
    return torch.func.functional_call(model, weights, kwargs={**inputs, "return_dict": False})[0]


def predict_z_image(model: nn.Module, weights: dict[str, Tensor], step: Step) -> Tensor:
    images = [image.unsqueeze(1) for image in step.noisy]  # [C, 1, H, W] each
    texts = [text[0] for text in step.conditions()]
    predicted = call(model, weights, x=images, t=1 - step["sigmas"], cap_feats=texts)
    return -torch.stack(list(predicted)).squeeze(2)


def predict_flux_2(model: nn.Module, weights: dict[str, Tensor], step: Step) -> Tensor:
    text = torch.cat(step.conditions())
    predicted = call(
        model,
        weights,
        hidden_states=Flux2KleinPipeline._pack_latents(step.noisy),
        encoder_hidden_states=text,
        timestep=step["sigmas"],
        img_ids=Flux2KleinPipeline._prepare_latent_ids(step.noisy),
        txt_ids=Flux2KleinPipeline._prepare_text_ids(text),
    )
    return predicted.transpose(1, 2).reshape(step.noisy.shape)


def predict_qwen_image(model: nn.Module, weights: dict[str, Tensor], step: Step) -> Tensor:
    """One text after the other: they differ in length."""
    height, width = step.noisy.shape[-2:]
    parts = []
    for noisy, sigma, text in zip(step.noisy.split(1), step["sigmas"].split(1), step.conditions(), strict=True):
        predicted = call(
            model,
            weights,
            hidden_states=QwenImagePipeline._pack_latents(noisy[:, :, 0], 1, 16, height, width),
            encoder_hidden_states=text,
            encoder_hidden_states_mask=torch.ones(text.shape[:2], dtype=torch.bool),
            timestep=sigma,
            img_shapes=[[(1, height // 2, width // 2)]],
        )
        parts.append(QwenImagePipeline._unpack_latents(predicted, height * 8, width * 8, 8))
    return torch.cat(parts)


@dataclass(frozen=True)
class Reference:
    """diffusers' class in the sizes of tests/host/tiny_models.py, and how its pipeline calls it."""

    make: Callable[[], nn.Module]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    predict: Predict


FLUX_SIZES = {"num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 4}
Z_IMAGE = Reference(
    lambda: ZImageTransformer2DModel(
        dim=384, n_layers=2, n_heads=6, n_kv_heads=6, cap_feat_dim=64, axes_dims=[16, 24, 24]
    ),
    single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers,
    predict_z_image,
)
REFERENCES = {
    "Z-Image": Z_IMAGE,
    "Z-Image, padded": Z_IMAGE,
    "FLUX.2": Reference(
        lambda: Flux2Transformer2DModel(
            **FLUX_SIZES, joint_attention_dim=64, guidance_embeds=False, axes_dims_rope=(8, 8, 8, 8)
        ),
        single_file_utils.convert_flux2_transformer_checkpoint_to_diffusers,
        predict_flux_2,
    ),
    "Qwen-Image": Reference(
        lambda: QwenImageTransformer2DModel(
            num_layers=2,
            attention_head_dim=32,
            num_attention_heads=4,
            joint_attention_dim=64,
            axes_dims_rope=(8, 12, 12),
        ),
        dict,
        predict_qwen_image,
    ),
}


def put_in(weights: dict[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ComfyUI's weights plus alpha / rank * up @ down, through which gradients flow."""
    merged = dict(weights)
    for name in (name.removesuffix(".down") for name in adapters if name.endswith(".down")):
        path = f"{name.removeprefix('diffusion_model.')}.weight"
        merged[path] = merged[path] + STRENGTH * adapters[f"{name}.up"] @ adapters[f"{name}.down"]
    return merged


def compute_in_diffusers(reference: Reference, step: Step) -> tuple[float, dict[str, Any]]:
    """The loss of diffusers' training scripts for flow models, and its gradients."""
    adapters = {name: tensor.clone().requires_grad_() for name, tensor in step.group("adapter.").items()}
    model = reference.make()
    weights = reference.convert(put_in(step.group("weight."), adapters))
    missing = {name: parameter.shape for name, parameter in model.state_dict().items() if name not in weights}
    assert not missing, missing
    assert set(weights) == set(model.state_dict())
    target = step["noise"] - step["latents"]
    losses = (reference.predict(model, weights, step).float() - target).square().flatten(1).mean(1)
    losses.mean().backward()
    return float(losses.mean()), {name: tensor.grad for name, tensor in adapters.items()}


def check_gradients(step: Step, gradients: Mapping[str, Tensor], *, minimum: int) -> None:
    ours = step.group("gradient.")
    assert ours.keys() == gradients.keys() and len(ours) >= minimum
    for name, gradient in ours.items():
        theirs = gradients[name]
        assert theirs is not None and theirs.norm() > 0, name
        cosine = torch.cosine_similarity(gradient.double().flatten(), theirs.double().flatten(), dim=0)
        assert cosine > 1 - COSINE, f"{name}: cosine 1 - {1 - cosine:.1e}"
        torch.testing.assert_close(gradient.norm(), theirs.norm(), rtol=1e-4, atol=0, msg=name)


@pytest.mark.parametrize("case", REFERENCES)
def test_loss_and_gradients_are_those_of_diffusers(case: str, steps: Path):
    step = Step(load_file(steps / f"{case}.safetensors"))
    loss, gradients = compute_in_diffusers(REFERENCES[case], step)
    assert step["loss"].item() == pytest.approx(loss, rel=RELATIVE_LOSS)
    check_gradients(step, gradients, minimum=16)


@pytest.fixture(scope="module")
def in_musubi(steps: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    try:
        installation = find_installation()
    except NoMusubi as error:
        pytest.skip(str(error))
    target = tmp_path_factory.mktemp("musubi") / "step.safetensors"
    subprocess.run(
        [installation.python, SCRIPTS / "zimage_step_in_musubi.py", steps / "Z-Image.safetensors", target],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM), str(installation.folder / "src")])},
        check=True,
        timeout=TIME_LIMIT,
    )
    return load_file(target)


def join_parts(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Musubi's gradients by our names: q, k and v share one `down`, and their `up` are parts
    of one.
    """
    joined = {}
    for name, gradient in gradients.items():
        module, half = name.rsplit(".", 1)
        name = f"diffusion_model.{name.replace('attention.to_out.0', 'attention.out')}"
        if module.endswith("attention.to_q"):
            parts = [gradients[f"{module[:-1]}{part}.{half}"] for part in "qkv"]
            name = name.replace("to_q", "qkv")
            joined[name] = torch.cat(parts) if half == "up" else sum(parts)
        elif not module.endswith(("attention.to_k", "attention.to_v")):
            joined[name] = gradient
    return joined


def test_loss_and_gradients_are_those_of_musubis_z_image_step(in_musubi: dict[str, Tensor], steps: Path):
    """At Musubi's noise level without the thousandth that it adds to the timestep."""
    step = Step(load_file(steps / "Z-Image.safetensors"))
    assert step["loss"].item() == pytest.approx(in_musubi["loss"].item(), rel=RELATIVE_LOSS)
    check_gradients(step, join_parts(Step(in_musubi).group("gradient.")), minimum=16)


def test_the_thousandth_in_musubis_timestep_changes_the_loss_by_less_than_a_hundredth(in_musubi: dict[str, Tensor]):
    assert in_musubi["loss_as_is"].item() == pytest.approx(in_musubi["loss"].item(), rel=1e-2)


def test_gradient_checkpointing_changes_no_gradient_of_any_family(steps: Path):
    """Some of ComfyUI's blocks write into tensors that the backward pass needs."""
    found = json.loads((steps / "checkpointing.json").read_text())
    assert len(found) > 20
    for name, answer in found.items():
        assert isinstance(answer, list), f"{name}: {answer}"
        num_matrices, difference = answer
        assert num_matrices >= 10 and difference < 1e-6, f"{name}: {difference:.1e}"


PIPELINES = {"Z-Image": ZImagePipeline, "FLUX.2": Flux2KleinPipeline, "Qwen-Image": QwenImagePipeline}


@pytest.mark.parametrize("case", PIPELINES)
def test_diffusers_loads_every_layer_of_a_file_at_the_right_strength(case: str, steps: Path):
    step, reference, pipeline = Step(load_file(steps / f"{case}.safetensors")), REFERENCES[case], PIPELINES[case]
    adapters = step.group("adapter.")
    modules = {name.rpartition(".")[0].removeprefix("diffusion_model.") for name in adapters}
    file = {}
    for (_, path), name in name_modules(sorted(modules)).items():
        for half in ("down", "up"):
            file[f"{name}.lora_{half}.weight"] = adapters[f"diffusion_model.{path}.{half}"].clone()
        file[f"{name}.alpha"] = torch.tensor(2.0)
    model, before = reference.make(), reference.convert(step.group("weight."))
    sizes = {name: weight.shape for name, weight in model.state_dict().items()}  # diffusers fixes one embedder's
    model.load_state_dict(
        {name: weight for name, weight in before.items() if weight.shape == sizes[name]}, strict=False
    )
    pipeline.load_lora_into_transformer(pipeline.lora_state_dict(file), transformer=model, adapter_name="x")
    after = reference.convert(put_in(step.group("weight."), adapters))
    changes = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
    layers = {name: layer for name, layer in model.named_modules() if "x" in getattr(layer, "lora_A", {})}
    assert {f"{name}.weight" for name in layers} == set(changes) and len(layers) >= 10
    for name, layer in layers.items():
        torch.testing.assert_close(layer.get_delta_weight("x"), changes[f"{name}.weight"], rtol=1e-4, atol=1e-6)
