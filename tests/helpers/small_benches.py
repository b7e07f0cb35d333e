"""Three experts near a small base with unlabelled images of their tasks: what adapting methods look at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from small_models import DIM
from torch import nn
from torch.func import functional_call

from neulig_ray.merging import METHODS
from neulig_ray.merging.adaptation import entropy
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.prediction import head_logits
from neulig_ray.weights.sources import State


@dataclass(frozen=True)
class PixelImages:
    """Images that are pixels already: float32 (N, 3, S, S), or whatever the model takes."""

    all: torch.Tensor

    def __len__(self) -> int:
        return len(self.all)

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        return self.all[rows]


LABELS = ("a", "b", "c")


def make_vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return VisionTransformer(8, 4, width=16, layers=2, heads=2, mlp_ratio=2.0, output_dim=DIM).eval()


def small_steps(base: State, seed: int, size: float = 0.1) -> dict[str, torch.Tensor]:
    """An expert near the base: every float parameter moved by N(0, size), statistics by up to half."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            moved[name] = tensor + seed
        elif "running" in name:
            moved[name] = tensor * (0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            moved[name] = tensor + size * torch.randn(tensor.shape, generator=generator)
    return moved


def make_bench(
    tower: nn.Module, labels: Iterable[str] = LABELS, seed: int = 0, size: float = 0.1
) -> MergeInputs:
    labels = tuple(labels)
    base = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    generators = {label: torch.Generator().manual_seed(ord(label)) for label in labels}
    return MergeInputs(
        tower=tower,
        experts={label: small_steps(base, ord(label), size) for label in labels},
        base=base,
        images={
            label: PixelImages(torch.randn(40, 3, 8, 8, generator=generators[label])) for label in labels
        },
        heads={label: 5 * torch.randn(4, DIM, generator=generators[label]) for label in labels},
        seed=seed,
    )


def run(method: str, bench: MergeInputs, **options: Any) -> Any:
    """The one model that the method makes: a merged state, or a module."""
    found: Any = METHODS[method]
    return found.run(bench, options).by_task[bench.tasks[0]]


def entropies(bench: MergeInputs, model: Any) -> float:
    """The objective on all images; `model`: a merged state, or a module."""
    total = 0.0
    with torch.no_grad():
        for label, images in bench.images.items():
            pixels = images.pixels(torch.arange(len(images)))
            found = (
                model(pixels) if isinstance(model, nn.Module) else functional_call(bench.tower, model, pixels)
            )
            total += float(entropy(head_logits(found, bench.heads[label])))
    return total


class LiveTensors:
    """The most numbers that autograd kept at once for backward passes."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def __enter__(self) -> "LiveTensors":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: Kept(self, t), lambda kept: kept.tensor
        )
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)


class Kept:
    def __init__(self, live: LiveTensors, tensor: torch.Tensor) -> None:
        self.live, self.tensor = live, tensor
        live.now += tensor.numel()
        live.most = max(live.most, live.now)

    def __del__(self) -> None:
        self.live.now -= self.tensor.numel()
