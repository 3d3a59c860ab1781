"""Driving a ComfyUI from outside: find an installation, start its server, queue prompts. Imports
none of ComfyUI's modules.
"""
