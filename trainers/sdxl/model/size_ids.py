"""SDXL's size conditions."""


def size_ids(original_hw: tuple[int, int], crop_top_left_yx: tuple[int, int], target_hw: tuple[int, int]) -> list[int]:
    """Return SDXL's six size conditions in pixels, in the order of add_time_ids [B, 6]."""
    return [*original_hw, *crop_top_left_yx, *target_hw]
