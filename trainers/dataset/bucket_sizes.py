"""The sizes of aspect-ratio buckets, and the choice of one for an image.

Sizes are (height, width) in pixels.
"""

from .bucket_config import BucketConfig

Size = tuple[int, int]
SMALL_LOSS = 0.04  # share of the area; an ordinary photo of 4032 x 3024 loses 3.6 % to its bucket


def list_bucket_sizes(config: BucketConfig) -> list[Size]:
    """List the bucket sizes: both sides multiples of bucket_reso_steps, the area at most resolution
    squared, each side paired with the longest side that fits.

    The same list as sd-scripts' make_bucket_resolutions. For resolution 1024 and steps of 64 it has
    every size that SDXL was trained at.
    """
    step, area = config.bucket_reso_steps, config.resolution**2
    sizes: set[Size] = set()
    for side in range(config.shortest_side, config.longest_side + 1, step):
        partner = min(area // side // step * step, config.longest_side)
        sizes |= {(side, partner), (partner, side)}
    return sorted(sizes)


def choose_target(size_hw: Size, config: BucketConfig, buckets: list[Size]) -> Size | None:
    """Choose the size an image is trained at; None if it would have to be enlarged.

    In bucket mode this is the bucket with the nearest shape, which also cuts away least. If the
    image does not cover that bucket and must not be enlarged, it is the largest size in steps
    inside the image that cuts away at most 4 %, or else the size that cuts away least. (sd-scripts
    rounds both sides down here and loses 6 % of 1023 x 1025.)
    """
    if config.resize_mode != "bucket":
        square = (config.resolution, config.resolution)
        return square if not config.bucket_no_upscale or _covers(size_hw, square) else None
    nearest = min(
        buckets,
        key=lambda bucket: (bucket != size_hw, measure_lost_share(size_hw, bucket), -bucket[0] * bucket[1], bucket),
    )
    if not config.bucket_no_upscale or _covers(size_hw, nearest):
        return nearest
    return _find_largest_inside(size_hw, config)


def _find_largest_inside(size_hw: Size, config: BucketConfig) -> Size | None:
    step, shortest = config.bucket_reso_steps, config.shortest_side
    heights, widths = (range(shortest, min(side, config.longest_side) + 1, step) for side in size_hw)
    inside = [(height, width) for height in heights for width in widths if height * width <= config.resolution**2]
    return min(
        inside,
        key=lambda size: (max(measure_lost_share(size_hw, size), SMALL_LOSS), -size[0] * size[1], size),
        default=None,
    )


def _covers(size: Size, target: Size) -> bool:
    return size[0] >= target[0] and size[1] >= target[1]


def measure_lost_share(size: Size, target: Size) -> float:
    """Return the share of the area that is cut away when the image just covers the target."""
    ratio = (size[1] * target[0]) / (size[0] * target[1])
    return 1 - min(ratio, 1 / ratio)
