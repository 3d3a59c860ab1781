"""What the ComfyUI graph sees: thin nodes over trainers/. There are none yet."""
