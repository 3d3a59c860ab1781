"""The quality bench: what a training on an embedded base model learns, and what it damages."""
