"""What the ComfyUI graph sees: thin nodes over trainers/."""

from .extension import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
