"""Looking at images through a merged model, without copying its parameters into a tower."""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import preprocess
from neulig_ray.weights.sources import State, moved


def embed_with(
    tower: nn.Module, state: State, images: np.ndarray, arch: Arch, batch_size: int = 256
) -> torch.Tensor:
    """Embeddings float32 (N, d), on the CPU, of images uint8 (N, H, W, 3) by `tower` with `state`'s tensors.

    Eval mode, no gradient; what `state` holds stands in for the tower's own parameters, which are not
    changed. It runs on the device of `tower`, to which the images and what `state` has elsewhere are moved.
    """
    device = next(tower.parameters()).device
    tensors = moved(state, device)
    tower.eval()
    with torch.no_grad():
        parts = [
            functional_call(tower, tensors, (preprocess(images[at : at + batch_size], arch, device),))
            for at in range(0, len(images), batch_size)
        ]
    return torch.cat(parts).float().cpu()
