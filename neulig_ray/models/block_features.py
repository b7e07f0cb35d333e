"""What an image looks like to every block of a visual tower, as one vector: what a gate on the origin sees.

Of each block of a transformer the class token and the mean over the other tokens (mean and maximum where
there is no class token); of each block of a convolutional network the mean and the maximum over positions;
then the embedding. A block is a transformer layer, a residual block of a ModifiedResNet, a stage of timm's
convolutional networks.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS, Arch
from neulig_ray.models.clip import image_size, in_batches, skeleton


@dataclass(frozen=True)
class _Network:
    """Where the blocks stand, and the parameter that is the class token where there is one."""

    blocks: tuple[str, ...]
    class_token: str = ""


_KNOWN: Final = {
    "open_clip.transformer.VisionTransformer": _Network(("transformer.resblocks",), "class_embedding"),
    "open_clip.modified_resnet.ModifiedResNet": _Network(("layer1", "layer2", "layer3", "layer4")),
    "timm.models.vision_transformer.VisionTransformer": _Network(("blocks",), "cls_token"),
    "timm.models.eva.Eva": _Network(("blocks",), "cls_token"),
    "timm.models.convnext.ConvNeXt": _Network(("stages",)),
    "timm.models.fastvit.FastVit": _Network(("stages",)),
}


def block_features(
    tower: nn.Module,
    images: np.ndarray,
    arch: Arch,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """Features float32 (N, `block_width(arch.name)`) of images uint8 (N, H, W, 3); the tower in eval mode.

    Block after block in the order of the computation, then the embedding, not normalised. Raises InputError
    for a tower whose blocks are not known.
    """
    with _looking(tower, arch.name) as look:
        return in_batches(look, tower, images, arch, batch_size, device)


@functools.lru_cache(maxsize=64)
def block_width(arch: str) -> int:
    """Numbers of one image's block features, found without computing any.

    Raises InputError for an arch whose tower's blocks are not known.
    """
    size = image_size(ARCHS[arch])
    tower = skeleton(ARCHS[arch]).visual.eval()
    with torch.device("meta"), torch.no_grad(), _looking(tower, arch) as look:
        return look(torch.empty(1, 3, size, size)).shape[1]


@contextlib.contextmanager
def _looking(tower: nn.Module, arch: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from pixels (B, 3, S, S) to features (B, width); hooks stand on the blocks meanwhile."""
    network = getattr(tower, "trunk", tower)  # of open_clip's TimmModel
    known = _known(network, arch)
    parts: list[Tensor] = []

    def note(block: nn.Module, inputs: Any, output: Tensor) -> None:
        parts.append(_summary(output, network, known).float())

    def look(pixels: Tensor) -> Tensor:
        parts.clear()
        embedding: Tensor = tower(pixels)
        return torch.cat([*parts, embedding.float()], dim=1)

    blocks = [block for name in known.blocks for block in network.get_submodule(name).children()]
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()


def _summary(output: Tensor, network: nn.Module, known: _Network) -> Tensor:
    """A block's output, maps (B, C, H, W) or tokens (B, T, C), as (B, 2 C)."""
    if output.ndim == 4:
        return torch.cat([output.mean((2, 3)), output.amax((2, 3))], dim=1)
    # Class and register tokens stand before the image's: one class token in open_clip's.
    positions = output[:, int(getattr(network, "num_prefix_tokens", 1)) :]
    if getattr(network, known.class_token) is None:
        return torch.cat([positions.mean(1), positions.amax(1)], dim=1)
    return torch.cat([output[:, 0], positions.mean(1)], dim=1)


def _known(network: nn.Module, arch: str) -> _Network:
    for kind in type(network).__mro__:
        if found := _KNOWN.get(f"{kind.__module__}.{kind.__qualname__}"):
            return found
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    raise InputError(
        f"arch {arch!r}: the blocks of its visual tower, a {name}, are not known. "
        f"Known: {', '.join(_KNOWN)}. Let the gate see embeddings instead"
    )
