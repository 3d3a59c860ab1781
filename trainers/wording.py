"""How messages name numbers of things."""


def pluralize(number: int, noun: str) -> str:
    """The number with its noun, such as "1 image" and "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
