"""How much work an architecture is."""

import functools

import torch

from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import image_size, skeleton


@functools.lru_cache(maxsize=64)
def forward_flops(arch: str) -> int:
    """Floating-point operations of the visual tower on one image, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode  # imports triton, which a finished run needs not

    size = image_size(ARCHS[arch])
    tower = skeleton(ARCHS[arch]).visual.eval()
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.empty(1, 3, size, size))
    return int(counter.get_total_flops())
