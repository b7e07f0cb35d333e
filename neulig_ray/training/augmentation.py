"""Augmentation: drawn for all images of an epoch at once, so that it does not depend on who computes what,
and applied on the device to a batch at a time.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from neulig_ray.models.archs import FinetuneRecipe
from neulig_ray.tasks.reading.crops import crop_boxes


def draw(recipe: FinetuneRecipe, rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """What happens to each image of (N, H, W, 3) in an epoch, int64 (N, k).

    `shift`: (dy, dx); `crop`: left, top, right, bottom of a box; `none`: nothing, (N, 0).
    """
    count, height, width = shape[:3]
    if recipe.augment == "crop":
        return crop_boxes(rng, count, width, height)
    if recipe.augment == "shift":
        return rng.integers(-recipe.shift, recipe.shift + 1, size=(count, 2))
    return np.empty((count, 0), np.int64)


def augmented(recipe: FinetuneRecipe, images: Tensor, moves: Tensor, size: int) -> Tensor:
    """A batch uint8 (B, H, W, 3) after its drawn moves (B, k); crops become `size` pixels on a side."""
    if recipe.augment == "crop":
        return cropped(images, moves, size)
    return shifted(images, moves) if recipe.augment == "shift" else images


def shifted(images: Tensor, shifts: Tensor) -> Tensor:
    """Images (B, H, W, 3) moved by (dy, dx) pixels each, int (B, 2); the border pixels are repeated."""
    height, width = images.shape[1:3]
    moves = shifts.to(images.device)
    rows = (torch.arange(height, device=images.device) - moves[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) - moves[:, 1:]).clamp(0, width - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]]


def cropped(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """A box of each image uint8 (B, H, W, 3), resized: uint8 (B, size, size, 3), as PIL's bicubic does.

    `boxes`: left, top, right, bottom, int (B, 4). Resizing is linear and goes by columns, then by rows, so
    that a whole batch is two batched matrix products, whatever its boxes. PIL rounds to levels of 255 in
    between, too.
    """
    left, top, right, bottom = boxes.to(images.device).unbind(1)
    height, width = images.shape[1:3]
    pixels = images.permute(0, 3, 1, 2).float()
    columns = _resizing(left, right, width, size).transpose(1, 2)  # (B, W, size)
    wide = (pixels.flatten(1, 2) @ columns).view(len(images), 3, height, size)
    found = _resizing(top, bottom, height, size)[:, None] @ wide
    return found.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _resizing(start: Tensor, end: Tensor, length: int, size: int) -> Tensor:
    """Matrices (B, size, length) that resize pixels start..end of a line of `length` to `size`, antialiased.

    Rows are the cubic convolution kernel (Keys 1981, a = -0.5), as wide as the shrinking asks for.
    """
    scale = (end - start) / size
    pixels = torch.arange(length, device=start.device) + 0.5
    centres = start[:, None] + (torch.arange(size, device=start.device) + 0.5) * scale[:, None]
    x = (pixels - centres[:, :, None]).abs() / scale.clamp(min=1)[:, None, None]
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    inside = (pixels > start[:, None]) & (pixels < end[:, None])
    weights = weights * inside[:, None]
    return weights / weights.sum(2, keepdim=True)
