"""A separate ComfyUI pack for the demo and the tests: teaches ComfyUI the sizes of the embedded
base models.

ComfyUI recognises a model by its exact sizes, and knows only full-size text encoders and VAEs. This
adds a small SDXL and a small Z-Image to its list; models of other sizes load as before. Link this
folder into custom_nodes to load the embedded base models.
"""

from . import sdxl, z_image

NODE_CLASS_MAPPINGS = {}  # ComfyUI reports a pack without it as broken

sdxl.teach()
z_image.teach()
