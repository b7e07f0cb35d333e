"""MLPs whose weights are merged anew for every sample: WeMoE's modules."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from neulig_ray.merging.task_vectors import TaskVectors

Routing = Literal["sample", "batch"]
CHUNK = 1 << 20  # numbers of merged matrices held at once: 4 MiB, which caches hold


class Router(nn.Module):
    """Task vectors' weights (B, n) of hidden states (B, N, d): the mean over the tokens of r(h).

    r has `layers` linear layers: none, n free scalars; one; or two with a ReLU between. No softmax: weights
    may be negative. Matrices start with N(0, 0.01), the last bias with `init`, so that the first forward
    passes are nearly task arithmetic with that scale.
    """

    def __init__(self, width: int, n: int, *, layers: int, init: float, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for inner, outer in pairwise([width] * layers + [n]):
            layer = nn.Linear(inner, outer, device="meta").to_empty(device="cpu")
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers.append(layer)
        if layers:
            nn.init.constant_(layer.bias, init)
        else:
            self.weights = nn.Parameter(torch.full((n,), init))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.layers:
            return self.weights.expand(len(hidden), -1)
        for layer in self.layers[:-1]:
            hidden = layer(hidden).relu()
        weights: torch.Tensor = self.layers[-1](hidden).mean(1)
        return weights


class MergedProduct(torch.autograd.Function):
    """y_b = x_b sum_k s_bk W_k for x (B, N, in), s (B, K) and frozen matrices W (K, in, out).

    Merged matrices are made for few samples at a time, and anew in the backward pass, so that neither pass
    holds one for each sample. Merging costs K in out multiplications a sample where the sum of the K products
    costs N K in out: at ViT-B-32's size, K = 9, one CPU thread took a third of that sum's time for the
    forward pass and less than half for both.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, scales: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, scales, matrices)
        return torch.cat([x @ _merge(s, matrices) for x, s in _chunks(matrices, hidden, scales)])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        hidden, scales, matrices = ctx.saved_tensors
        for_hidden, for_scales = [], []
        for g, x, s in _chunks(matrices, gradient, hidden, scales):
            for_hidden.append(g @ _merge(s, matrices).mT)
            for_scales.append((x.mT @ g).flatten(1) @ matrices.flatten(1).T)
        return torch.cat(for_hidden), torch.cat(for_scales), None


def _merge(scales: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    return (scales @ matrices.flatten(1)).view(len(scales), *matrices.shape[1:])


def _chunks(matrices: torch.Tensor, *rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows side by side, as many at a time as CHUNK numbers are merged matrices of."""
    size = max(1, CHUNK // matrices[0].numel())
    return zip(*(torch.split(r, size) for r in rows), strict=True)


class WeightEnsemblingLinear(nn.Module):
    """A linear layer W = W_0 + sum_t w_t tau_t whose w (B, n) is given with its input (B, N, in)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor, weight_deltas: torch.Tensor, bias_deltas: torch.Tensor
    ) -> None:
        """W_0 (out, in), its bias (out,), and the task vectors (n, out, in) and (n, out)."""
        super().__init__()
        self.register_buffer("weight", torch.cat([weight[None], weight_deltas]).mT.contiguous())
        self.register_buffer("bias", torch.cat([bias[None], bias_deltas]))

    def forward(self, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(B, N, out). Weights (1, n) serve the whole batch."""
        scales = torch.cat([weights.new_ones(len(weights), 1), weights], 1)
        bias = (scales @ self.bias)[:, None]
        if len(weights) == 1:
            return hidden @ torch.tensordot(scales[0], self.weight, 1) + bias
        product: torch.Tensor = MergedProduct.apply(hidden, scales, self.weight)
        return product + bias


class WeightEnsemblingMLP(nn.Module):
    """Linear layers and activations on weights that one router chooses from the MLP's input (B, N, d).

    `routing`: "sample", each sample its own weights; "batch", the mean of the batch's for all of them, so
    that a prediction depends on what else is in the batch.
    """

    def __init__(self, router: nn.Module, layers: Sequence[nn.Module], routing: Routing) -> None:
        super().__init__()
        self.router = router
        self.layers = nn.ModuleList(layers)
        self.routing = routing

    @classmethod
    def of(
        cls, mlp: nn.Sequential, vectors: TaskVectors, prefix: str, router: nn.Module, routing: Routing
    ) -> "WeightEnsemblingMLP":
        """The MLP that the state dict has under `prefix`: its linear layers ensembled, the rest as it is."""
        layers = [
            _ensembled(vectors.base, vectors.deltas, f"{prefix}.{name}")
            if isinstance(layer, nn.Linear)
            else layer
            for name, layer in mlp.named_children()
        ]
        return cls(router, layers, routing)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weights = self.router(hidden)
        if self.routing == "batch":
            weights = weights.mean(0, keepdim=True)
        for layer in self.layers:
            hidden = layer(hidden, weights) if isinstance(layer, WeightEnsemblingLinear) else layer(hidden)
        return hidden


def _ensembled(
    base: Mapping[str, torch.Tensor], deltas: Mapping[str, torch.Tensor], name: str
) -> WeightEnsemblingLinear:
    weight, bias = base[f"{name}.weight"], base[f"{name}.bias"]
    return WeightEnsemblingLinear(
        weight, bias, deltas[f"{name}.weight"].view(-1, *weight.shape), deltas[f"{name}.bias"]
    )
