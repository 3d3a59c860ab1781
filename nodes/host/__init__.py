"""The seam to ComfyUI: nothing outside this folder imports comfy.*, folder_paths or server. Its
files are imported when a node runs or lists files.
"""
