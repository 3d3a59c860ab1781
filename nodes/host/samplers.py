"""The names of ComfyUI's samplers and schedulers."""

import comfy.samplers


def list_samplers() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def list_schedulers() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)
