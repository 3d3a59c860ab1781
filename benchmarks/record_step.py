"""Runs an unmodified training script for a few steps and records its inputs and results, for
parity_against_scripts.py.

It must run under the script's own interpreter. Library functions that the script calls (VAE, noise
schedule, UNet, backward, optimizer) are wrapped to copy their arguments; the script itself is not
changed. Only the first call of each function in a step is kept.

Letters: B batch, H W image height and width.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from run_script import make_sd_scripts_thin, run
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import CLIPTextModel, CLIPTextModelWithProjection


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help=".safetensors file to write")
    parser.add_argument("script", type=Path)
    parser.add_argument("script_arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    recorder = StepRecorder()
    recorder.watch_libraries()
    prepare = (
        functools.partial(watch_sd_scripts, recorder) if options.script.name.startswith("sdxl_train_network") else None
    )
    run(str(options.script), options.script_arguments, prepare=prepare)
    save_file(recorder.tensors, options.record)


class StepRecorder:
    """Copies tensors as STEP/NAME, with steps counted from 0, and adapters as STEP/before/NAME,
    STEP/gradient/NAME (clipped) and STEP/after/NAME.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.step = 0
        self.adapters: nn.Module | None = None  # its trainable parameters are the LoRA

    def keep(self, name: str, tensor: Tensor) -> None:
        self.tensors.setdefault(f"{self.step}/{name}", tensor.detach().clone().contiguous())

    def watch_libraries(self) -> None:
        watch(AutoencoderKL, "encode", self._on_encode)
        watch(DDPMScheduler, "add_noise", self._on_add_noise)
        watch(UNet2DConditionModel, "forward", self._on_diffusers_unet)
        watch(
            CLIPTextModelWithProjection,
            "forward",
            lambda encoder, result, input_ids, **_: self.keep("input_ids_2", input_ids),
        )
        watch(CLIPTextModel, "forward", lambda encoder, result, input_ids, **_: self.keep("input_ids_1", input_ids))
        watch(Tensor, "backward", lambda loss, result, **_: self.keep("loss", loss))
        register_optimizer_step_pre_hook(lambda optimizer, *_: self._before_update())
        register_optimizer_step_post_hook(lambda optimizer, *_: self._after_update())

    def _on_encode(self, vae: AutoencoderKL, result: Any, pixel_values: Tensor, **_: object) -> None:
        self.keep("pixel_values", pixel_values)  # [B, 3, H, W]
        self.keep("latents_mean", result.latent_dist.mean)

    def _on_add_noise(
        self, schedule: DDPMScheduler, result: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> None:
        for name, tensor in (
            ("latents", latents),
            ("noise", noise),
            ("timesteps", timesteps),
            ("noisy_latents", result),
        ):
            self.keep(name, tensor)

    def _on_diffusers_unet(
        self,
        unet: UNet2DConditionModel,
        result: Any,
        noisy_latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        **keywords: Any,
    ) -> None:
        conditions = keywords["added_cond_kwargs"]
        self.adapters = unet
        self.keep("prompt_embeds", prompt_embeds)
        self.keep("pooled_prompt_embeds", conditions["text_embeds"])
        self.keep("add_time_ids", conditions["time_ids"])
        self.keep("model_pred", result[0])

    def on_sd_scripts_unet(
        self,
        unet: nn.Module,
        result: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        vector: Tensor,
    ) -> None:
        self.keep("prompt_embeds", prompt_embeds)
        self.keep("vector", vector)  # pooled embeddings and the sinusoids of the six size ids
        self.keep("model_pred", result)

    def _before_update(self) -> None:
        for name, parameter in self._list_trainable():
            self.keep(f"before/{name}", parameter)
            if parameter.grad is not None:
                self.keep(f"gradient/{name}", parameter.grad)

    def _after_update(self) -> None:
        for name, parameter in self._list_trainable():
            self.keep(f"after/{name}", parameter)
        self.step += 1

    def _list_trainable(self) -> list[tuple[str, nn.Parameter]]:
        assert self.adapters is not None
        return [(name, parameter) for name, parameter in self.adapters.named_parameters() if parameter.requires_grad]


def watch(owner: type, name: str, observe: Callable[..., None]) -> None:
    """After each call of owner.name, call observe(self, result, *arguments)."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def observed(self: Any, *arguments: Any, **keywords: Any) -> Any:
        result = original(self, *arguments, **keywords)
        observe(self, result, *arguments, **keywords)
        return result

    setattr(owner, name, observed)


def watch_sd_scripts(recorder: StepRecorder) -> None:
    """Watch the UNet and the LoRA network of sd-scripts, which has its own classes."""
    # imported late: the checkout's folder is on sys.path only now
    from library.sdxl_original_unet import SdxlUNet2DConditionModel  # pyright: ignore[reportMissingImports]
    from networks.lora import LoRANetwork  # pyright: ignore[reportMissingImports]

    make_sd_scripts_thin()
    watch(SdxlUNet2DConditionModel, "forward", recorder.on_sd_scripts_unet)
    watch(LoRANetwork, "apply_to", lambda network, result, *_, **__: setattr(recorder, "adapters", network))


if __name__ == "__main__":
    main()
