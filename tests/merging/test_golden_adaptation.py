"""AdaMerging's and WeMoE's numbers against the authors' programs."""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from golden import Golden, goldens
from torch import nn
from torch.nn.functional import layer_norm, linear

from neulig_ray.merging.adaptation import entropy, minimise
from neulig_ray.merging.coefficients import backward, layerwise
from neulig_ray.merging.task_vectors import TaskVectors
from neulig_ray.merging.weight_ensembling import Router, WeightEnsemblingMLP


def in_double(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in state.items()}


def encode(state: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The golden files' encoder: convolution, tokens, LayerNorm, their mean, two linear layers."""
    tokens = nn.functional.conv2d(images, state["conv.weight"], stride=2).flatten(2).mT
    width = tokens.shape[-1]
    hidden = layer_norm(tokens, (width,), state["ln.weight"], state["ln.bias"]).mean(1)
    hidden = linear(hidden, state["fc1.weight"], state["fc1.bias"])
    return linear(hidden * torch.sigmoid(1.702 * hidden), state["fc2.weight"], state["fc2.bias"])


class AdaMergingProblem:
    """A golden file's tasks; `precision` casts all of it."""

    def __init__(self, golden: Golden, precision: Callable[..., dict[str, torch.Tensor]] = dict) -> None:
        states = {label: precision(state) for label, state in golden.experts.items()}
        self.vectors = TaskVectors.of(golden.base, states)
        self.vectors = TaskVectors(
            precision(self.vectors.base), precision(self.vectors.deltas), precision(self.vectors.buffers)
        )
        rows = golden.tensors["lambda"]
        if "rows" in golden.hyper:  # they are in another order than the file's names
            order = golden.hyper["rows"].split(": ")[1].split(", ")
            rows = rows[[order.index(name) for name in self.vectors.names]]
            self.to_golden = [self.vectors.names.index(name) for name in order]
        else:
            self.to_golden = [0]
        self.free = precision({"lambda": rows})["lambda"].clone().requires_grad_()
        self.heads = [precision(head) for head in golden.groups("head")]
        self.inputs = [precision({"x": golden.tensors[f"input{i}"]})["x"] for i in range(golden.n)]

    @property
    def used(self) -> torch.Tensor:
        return layerwise(self.free, len(self.vectors.names), clamp=True)

    def logits(self, state: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        for images, head in zip(self.inputs, self.heads, strict=True):
            yield linear(encode(state, images), head["weight"], head["bias"])

    def losses(self, state: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        return map(entropy, self.logits(state))

    def backward(self) -> float:
        return backward(self.vectors, self.used, self.losses)


@pytest.mark.parametrize("golden", goldens("adamerging_*"))
def test_merged_parameters(golden: Golden) -> None:
    problem = AdaMergingProblem(golden)
    golden.check(problem.vectors.merged(problem.used.detach()))


@pytest.mark.parametrize("golden", goldens("adamerging_*"))
def test_logits_entropies_gradient_and_one_step_of_adam(golden: Golden) -> None:
    problem = AdaMergingProblem(golden, in_double)
    expected = golden.group("out_aux")
    state = problem.vectors.merged(problem.used.detach())
    found = {f"logits{i}": logits for i, logits in enumerate(problem.logits(state))}
    found["entropy_per_task"] = torch.stack(list(problem.losses(state)))
    found["entropy_sum"] = torch.tensor(problem.backward())
    assert problem.free.grad is not None
    found["grad_lambda"] = problem.free.grad[problem.to_golden]
    minimise("adamerging", [problem.free], problem.backward, steps=1, learning_rate=1e-3)
    found["lambda_after_adam_step"] = problem.free.detach()[problem.to_golden]
    golden.check(found, expected)
    assert (expected["grad_lambda"] == 0).equal(found["grad_lambda"] == 0)  # those that are clamped


@pytest.mark.parametrize("golden", goldens("wemoe_*"))
def test_weight_ensembling_mlp(golden: Golden) -> None:
    hidden = golden.tensors["x"]
    width, inner = hidden.shape[-1], len(golden.base["c_fc.bias"])
    layers = golden.hyper["router_layers"]
    router = Router(width, golden.n, layers=layers, init=0.0, generator=torch.Generator())
    given = golden.group("router")
    if layers == 0:
        router.load_state_dict({"weights": given["weight"]})
    else:
        names = ["fc1", "fc2"][2 - layers :]
        router.load_state_dict(
            {
                f"layers.{i}.{p}": given[f"{name}.{p}"]
                for i, name in enumerate(names)
                for p in ("weight", "bias")
            }
        )
    mlp = nn.Sequential()
    mlp.add_module("c_fc", nn.Linear(width, inner))
    mlp.add_module("gelu", QuickGELU())
    mlp.add_module("c_proj", nn.Linear(inner, width))
    vectors = TaskVectors.of(
        {f"mlp.{name}": tensor for name, tensor in golden.base.items()},
        {label: {f"mlp.{k}": t for k, t in state.items()} for label, state in golden.experts.items()},
    )
    routing = "batch" if golden.hyper.get("batch_reduce") else "sample"
    module = WeightEnsemblingMLP.of(mlp, vectors, "mlp", router, routing)
    golden.check({"y": module(hidden).detach()})


class QuickGELU(nn.Module):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.sigmoid(1.702 * hidden)
