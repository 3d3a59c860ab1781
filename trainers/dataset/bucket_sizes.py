"""The sizes of aspect-ratio buckets, and which of them fits an image.

Sizes are (height, width) in pixels.
"""

from .bucket_config import BucketConfig

Size = tuple[int, int]
SMALL_LOSS = 0.04  # share of an image's area; the buckets cost ordinary photos as much (4032 x 3024: 3.6 %)


def list_bucket_sizes(config: BucketConfig) -> list[Size]:
    """All sizes of multiples of bucket_reso_steps whose area is at most resolution squared, each
    side with its largest partner.

    The list of sd-scripts' make_bucket_resolutions. For resolution 1024 and steps of 64 it has all
    sizes that SDXL was trained at.
    """
    step, area = config.bucket_reso_steps, config.resolution**2
    sizes: set[Size] = set()
    for side in range(config.shortest_side, config.longest_side + 1, step):
        partner = min(area // side // step * step, config.longest_side)
        sizes |= {(side, partner), (partner, side)}
    return sorted(sizes)


def choose_target(size_hw: Size, config: BucketConfig, buckets: list[Size]) -> Size | None:
    """The size at which an image is trained; None: it would have to be enlarged.

    In bucket mode that is the bucket of the nearest shape, which is also the one that cuts away
    least. Where the image does not cover it, and must not be enlarged, it is the largest size in
    steps inside the image that cuts away at most 4 %, or else the one that cuts away least.
    (sd-scripts rounds both sides down there and loses 6 % of 1023 x 1025.)
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
    """Share of the image's area that is cut away when it is scaled to just cover the target."""
    ratio = (size[1] * target[0]) / (size[0] * target[1])
    return 1 - min(ratio, 1 / ratio)
