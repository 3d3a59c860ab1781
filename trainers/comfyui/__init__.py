"""Drives a ComfyUI from outside: finds an installation, starts its server, queues prompts. Imports
none of ComfyUI's modules.
"""
