"""The blocks of a network in the order in which it computes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


def block_of(name: str) -> str:
    """The block that an entry of a state dict belongs to: its name up to the first number.

    A layer of a transformer ("transformer.resblocks.3"), a residual block of a ResNet ("layer2.0"), a module
    of an nn.Sequential ("4"). What stands outside of numbered blocks is one for each of the tower's own
    modules and parameters ("conv1", "attnpool", "proj").
    """
    parts = name.split(".")
    place = next((i for i, part in enumerate(parts) if part.isdigit()), 0)
    return ".".join(parts[: place + 1])


@torch.no_grad()
def blocks_in_order(tower: nn.Module, pixels: torch.Tensor) -> list[list[str]]:
    """The names of the state dict's entries by block, the blocks in the order in which their parameters are
    first used for `pixels`. Blocks that are not used are left out."""
    watch = _FirstUse(tower)
    pixels = pixels.to(next(tower.parameters()).device)
    with watch:
        tower(pixels)
    blocks: dict[str, list[str]] = {block_of(name): [] for name in watch.seen}
    for name in tower.state_dict():
        if block_of(name) in blocks:
            blocks[block_of(name)].append(name)
    return list(blocks.values())


class _FirstUse(TorchFunctionMode):
    """While it is entered, notes the parameters that functions are given, in that order."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, None] = {}
        self._names = {id(parameter): name for name, parameter in tower.named_parameters()}

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for argument in (*args, *(kwargs or {}).values()):
            for value in argument if isinstance(argument, (list, tuple)) else [argument]:
                if id(value) in self._names:
                    self.seen.setdefault(self._names[id(value)])
        return function(*args, **(kwargs or {}))
