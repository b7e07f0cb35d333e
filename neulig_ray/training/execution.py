"""How a training step is computed, which changes its cost and, up to rounding, not its meaning."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from neulig_ray.errors import InputError
from neulig_ray.models.archs import FinetuneRecipe

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Execution:
    """A recipe's choices on a device, for one of `world_size` data-parallel workers."""

    recipe: FinetuneRecipe
    device: torch.device
    world_size: int = 1

    def prepare(self, tower: nn.Module) -> None:
        """Bring the tower to the device in the recipe's form, in place.

        Raises InputError for gradient checkpointing of a tower without it, and for BatchNorm synchronised on
        CPUs, where torch has no such layer.
        """
        tower.to(self.device)
        if self.recipe.channels_last:
            tower.to(memory_format=torch.channels_last)
        if self.recipe.gradient_checkpointing:
            enable: Any = getattr(tower, "set_grad_checkpointing", None)
            if enable is None:
                raise InputError(f"gradient_checkpointing: a {type(tower).__name__} has none; leave it out")
            enable(True)
        if self.recipe.batchnorm == "synchronised" and self.world_size > 1:
            if self.device.type != "cuda":
                raise InputError(
                    "batchnorm 'synchronised' works on GPUs only; use 'frozen' here, or one worker"
                )
            nn.SyncBatchNorm.convert_sync_batchnorm(tower)  # type: ignore[no-untyped-call]

    def compiled(self, tower: nn.Module) -> nn.Module:
        """The tower, compiled where the recipe says so; its parameters are the same ones."""
        return torch.compile(tower) if self.recipe.compile else tower  # type: ignore[return-value]

    def train(self, module: nn.Module) -> None:
        """Training mode; frozen BatchNorm keeps using the statistics that it has."""
        module.train()
        if self.recipe.batchnorm == "frozen":
            for layer in module.modules():
                if isinstance(layer, _BatchNorm):
                    layer.eval()

    def forward(self, module: nn.Module, pixels: Tensor) -> Tensor:
        """The module under the recipe's precision and memory format."""
        precision = self.recipe.precision
        half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        if self.recipe.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            found: Tensor = module(pixels)
        return found

    def backward(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[slice], Tensor],
        count: int,
        scale: float,
    ) -> float:
        """Gradients of `scale` times the summed `loss(rows)` of a worker's `count` images; returns that.

        Micro-batches are added up, and with several workers exchanged once, with the last one.
        """
        optimizer.zero_grad(set_to_none=True)
        parts = -(-count // (self.recipe.micro_batch or count))
        total = 0.0
        for part in range(parts):  # of even sizes: BatchNorm cannot train on a last one of one image
            silent: Any = getattr(module, "no_sync", nullcontext)
            with nullcontext() if part == parts - 1 else silent():
                found = loss(slice(count * part // parts, count * (part + 1) // parts)) * scale
                found.backward()  # type: ignore[no-untyped-call]
            total += found.item()
        return total


def ahead(read: Callable[[A], B], items: Sequence[A], depth: int = 2) -> Iterator[B]:
    """`read(item)` for each item in order; up to `depth` are read in a thread before they are asked for."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, item) for item in items[:depth]]
        for place in range(len(items)):
            found = waiting.pop(0).result()
            if place + depth < len(items):
                waiting.append(pool.submit(read, items[place + depth]))
            yield found
