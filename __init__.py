"""ComfyUI-LoRA-Trainer. ComfyUI imports this folder as a package; anywhere else (pytest, `python
-m trainers`) importing it does nothing.
"""

from importlib.util import find_spec

# A package that ComfyUI loads has a name, and ComfyUI's own modules are beside it.
INSIDE_COMFYUI = bool(__package__) and find_spec("comfy_api") is not None

if INSIDE_COMFYUI:
    from .nodes import comfy_entrypoint as comfy_entrypoint

    WEB_DIRECTORY = "./web"
