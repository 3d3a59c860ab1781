"""The nodes of the ComfyUI graph: thin, over trainers/."""

from .extension import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
