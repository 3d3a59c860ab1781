"""The graph's MODEL, CLIP and VAE as the base model of a flow training, on the graph's memory."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import comfy.conds
import comfy.model_management
import comfy.model_sampling
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from ...trainers.flow.base_model import Conditions
from ...trainers.flow.families import FlowFamilyRow
from ...trainers.training.config import MAX_TIMESTEP
from ...trainers.training.generators import seed_globals
from ...trainers.training.host import Host
from ...trainers.training.resume.weight_samples import hash_samples
from ...trainers.training.sample_prompts import SamplePrompt
from .control_images import encode_with_controls
from .flow_checks import check_graph, count_tokens, find_text_width, read_text
from .fused_kernels import add_derivatives
from .training_samples import draw_samples
from .twin import make_twin
from .weights import GraphModel, name_model, unload_models

_PRECISIONS = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}
_SMALLEST_LEVEL = 1e-4


def find_precision(model: Any) -> str:
    """Return the precision that a MODEL computes in, as mixed_precision calls it."""
    return _PRECISIONS[model.model.get_dtype_inference()]


class GraphFlowModel:
    """Make it in training mode, outside of inference mode."""

    _more_options: ClassVar[dict[str, Any]] = {}  # for ComfyUI's blocks

    def __init__(self, graph: GraphModel, family: FlowFamilyRow) -> None:
        check_graph(graph)
        self.family = family
        self.name = name_model(graph.model)
        self._graph, self._clip, self._vae = graph, graph.clip, graph.vae
        self._adopt(make_twin(graph.model), graph.model)
        self._device = comfy.model_management.get_torch_device()
        self.precision = find_precision(graph.model)
        self.pixels_per_latent = graph.vae.spacial_compression_encode()
        self._text_width = find_text_width(self.network)

    def _adopt(self, twin: Any, model: Any) -> None:
        self._model = twin
        self._sampling = twin.model_sampling
        self._schedule = model.get_model_object("model_sampling")
        # the network's answer itself, not the clean latents that the sampler wants
        self._model._modules["model_sampling"] = _RawAnswer(self._sampling)

    @property
    def network(self) -> nn.Module:
        return self._model.diffusion_model

    def identify(self) -> dict[str, str]:
        clip, vae = self._clip.cond_stage_model, self._vae.first_stage_model
        return {
            "MODEL": hash_samples(self.network),
            "CLIP": hash_samples(clip) + _hash_kind(self._clip) + _hash_patches(self._clip.patcher),
            "VAE": hash_samples(vae),
            "sampling": _describe_sampling(self._sampling),
        }

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, *, seed: int) -> Tensor:
        with seed_globals(self._device, seed), torch.inference_mode():
            latents = self._model.process_latent_in(self._vae.encode(pixels))
        return latents[0].clone().to("cpu", torch.float32)

    def encode_caption(self, caption: str, control_images: Sequence[Tensor] = ()) -> Conditions:
        with seed_globals(self._device, "control images"), torch.inference_mode():
            entries = self._encode(caption, control_images)
        return _to_plain([*read_text(entries, self._text_width, self.family.name)])

    def _encode(self, caption: str, control_images: Sequence[Tensor]) -> Any:
        if not control_images:
            return self._clip.encode_from_tokens_scheduled(self._clip.tokenize(caption))
        assert self.family.control_images is not None, "checked before"
        return encode_with_controls(self.family.control_images.way, self._clip, self._vae, caption, control_images)

    def count_tokens(self, caption: str) -> int:
        return count_tokens(self._clip, caption)

    def release_encoders(self) -> None:
        unload_models()

    def load_network(self, *, without: Sequence[nn.Module]) -> None:
        left_out = {id(module) for block in without for module in block.modules()}
        for module in self._model.modules():
            _move_buffers(module, self._device)
            if id(module) not in left_out:
                _move_weights(module, self._device)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """ComfyUI's blocks look at `in_training`, in forward and in the recomputation of it. Some
        write into tensors that the backward pass needs.
        """
        add_derivatives()
        before, comfy.model_management.in_training = comfy.model_management.in_training, True
        try:
            # it looks at every operation, which a prediction without gradients does not need
            with allow_mutation_on_saved_tensors() if torch.is_grad_enabled() else nullcontext():
                yield
        finally:
            comfy.model_management.in_training = before

    def shift_level(self, level: float) -> float:
        """By the graph's own sampling, which lies in main memory: no waiting for the device."""
        sampling, level = self._schedule, min(max(level, _SMALLEST_LEVEL), 1 - _SMALLEST_LEVEL)
        if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):  # its sigma is noise over image
            return level / (1 - level)
        sigma = torch.tensor(sampling.percent_to_sigma(1 - level))
        if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
            sigma = sampling.sigma(sampling.timestep(sigma[None]))[0]
        return float(sigma)

    def find_timestep(self, sigma: float) -> float:
        sampling = self._schedule
        if isinstance(sampling, comfy.model_sampling.COSMOS_RFLOW):
            return MAX_TIMESTEP * sigma / (1 + sigma)
        if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
            return float(sampling.timestep(torch.tensor([sigma])))
        return MAX_TIMESTEP * sigma

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        return self._sampling.noise_scaling(sigmas, noise, latents)

    def target(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """The answer from which the model's own formula gives the clean latents. That formula is
        linear in the answer; in float64, as it divides by small sigmas.
        """
        sigmas, latents = sigmas.double(), latents.double()
        noisy = self.add_noise(latents, noise.double(), sigmas)
        zero = torch.zeros_like(latents)
        offset = self.denoised(zero, noisy, sigmas)
        slope = self.denoised(zero + 1, noisy, sigmas) - offset
        return ((latents - offset) / slope).float()

    def denoised(self, output: Tensor, noisy: Tensor, sigmas: Tensor) -> Tensor:
        return self._sampling.calculate_denoised(sigmas, output, noisy)

    def predict(self, noisy: Tensor, sigmas: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        found = [self._make_conds(noisy[index : index + 1], each) for index, each in enumerate(conditions)]
        if _fit_together(found):
            return self._apply(noisy, sigmas, _concatenate(found))
        parts = [
            self._apply(noisy[index : index + 1], sigmas[index : index + 1], _concatenate([conds]))
            for index, conds in enumerate(found)
        ]
        return torch.cat(parts)

    def _make_conds(self, noisy: Tensor, conditions: Conditions) -> dict[str, comfy.conds.CONDRegular]:
        cross_attn, others = conditions
        given = {
            "device": noisy.device,
            "noise": noisy,
            "latent_image": torch.zeros_like(noisy),
            "width": noisy.shape[-1] * 8,
            "height": noisy.shape[-2] * 8,
            "prompt_type": "positive",
            **({} if self.family.needs_guidance is None else {"guidance": self.family.needs_guidance}),
            **others,
        }
        conds = self._model.extra_conds(cross_attn=cross_attn, **given)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}

    def _apply(self, noisy: Tensor, sigmas: Tensor, conds: dict[str, Any]) -> Tensor:
        options = {"sigmas": sigmas, "cond_or_uncond": [0], "sample_sigmas": sigmas, **self._more_options}
        return self._model.apply_model(noisy, sigmas, transformer_options=options, **conds).float()

    def draw(
        self,
        positive: Conditions,
        negative: Conditions,
        prompt: SamplePrompt,
        *,
        size_hw: tuple[int, int],
        host: Host,
    ) -> list[Image.Image]:
        """A model that reads a guidance (FLUX.1 dev and others) gets it as FluxGuidance gives it,
        and no CFG.
        """
        reads_guidance = bool(self.family.needs_guidance)
        guidance = {"guidance": prompt.guidance_scale} if reads_guidance else {}
        positive, negative = ([[cond, {**others, **guidance}]] for cond, others in (positive, negative))
        return draw_samples(
            self._graph,
            self._model,
            positive,
            negative,
            prompt,
            sampling=self._sampling,
            scheduler="simple",
            cfg=1.0 if reads_guidance else prompt.guidance_scale,
            size_hw=size_hw,
            host=host,
        )


def _move_weights(module: nn.Module, device: torch.device) -> None:
    for name, weight in module._parameters.items():
        if weight is not None and weight.device != device and not weight.requires_grad:
            module._parameters[name] = nn.Parameter(weight.detach().to(device), requires_grad=False)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.device != device:
            module._buffers[name] = buffer.to(device)


class _RawAnswer(nn.Module):
    """A model's sampling that leaves the network's answer as it is."""

    def __init__(self, sampling: Any) -> None:
        super().__init__()
        self.sampling = sampling

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("sampling"), name)

    def calculate_denoised(self, sigma: Tensor, output: Tensor, noisy: Tensor) -> Tensor:
        return output


def _fit_together(found: Sequence[dict[str, Any]]) -> bool:
    """Texts of different lengths are predicted one by one: ComfyUI would repeat the shorter one,
    which changes what models with positions of text answer.
    """
    first, *others = found
    return all(
        conds.keys() == first.keys()
        and all(_shape(cond) == _shape(first[name]) and first[name].can_concat(cond) for name, cond in conds.items())
        for conds in others
    )


def _shape(cond: Any) -> Any:
    return cond.cond.shape if isinstance(cond.cond, Tensor) else None


def _concatenate(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = found
    return {name: cond.concat([conds[name] for conds in others]) for name, cond in first.items()}


def _to_plain(value: Any) -> Any:
    """Copies of tensors that autograd accepts, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().clone().cpu()
    if isinstance(value, (list, tuple)):
        return [_to_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _to_plain(each) for name, each in value.items()}
    return value


def _hash_kind(clip: Any) -> str:
    """Tell apart what one file gives to several families: Z-Image and FLUX.2 klein take other
    layers of the same Qwen3, and ask it in other words.
    """
    kinds = [f"{type(part).__module__}.{type(part).__qualname__}" for part in (clip.cond_stage_model, clip.tokenizer)]
    options = json.dumps([*kinds, clip.layer_idx, clip.tokenizer_options], sort_keys=True)
    return hashlib.sha256(options.encode()).hexdigest()[:40]


def _hash_patches(patcher: Any) -> str:
    """Tell apart what LoRAs on the text encoders change."""
    if not patcher.patches:
        return ""
    digest = hashlib.sha256()
    for name in sorted(patcher.patches):
        with torch.inference_mode():
            weight = patcher.patch_weight_to_device(name, device_to=patcher.load_device, return_weight=True)
        digest.update(f"{name} {weight.double().sum().item()!r} {weight.double().square().sum().item()!r}".encode())
    return digest.hexdigest()[:40]


def _describe_sampling(sampling: Any) -> str:
    classes = " ".join(base.__name__ for base in type(sampling).__mro__[1:3])
    return f"{classes}, shift {getattr(sampling, 'shift', None)}, noise scale {getattr(sampling, 'noise_scale', None)}"
