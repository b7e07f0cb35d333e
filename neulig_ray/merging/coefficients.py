"""AdaMerging's coefficients of task vectors, learned by entropy minimisation."""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal

import torch
from torch.func import functional_call

from neulig_ray.errors import InputError
from neulig_ray.merging.adaptation import backward_each, entropy, minimise, task_batches
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.options import About
from neulig_ray.merging.task_vectors import TaskVectors
from neulig_ray.models.logits import head_logits
from neulig_ray.weights.compatibility import check_specs
from neulig_ray.weights.sources import State, StateSource

Level = Annotated[
    Literal["layer", "task"], About("one coefficient for each parameter tensor and task, or for each task")
]
Init = Annotated[float, About("coefficient that every task vector starts with")]
Clamp = Annotated[bool, About("whether the coefficients are clamped to [0, 1] in the forward pass")]


def task_vectors(bench: MergeInputs) -> TaskVectors:
    """The task vectors of the bench's experts, on its tower's device.

    Raises InputError where there is no base, or the models' tensors are not those of the tower.
    """
    if bench.base is None:
        raise InputError("task vectors need the base model: give the origin of the experts")
    check_specs(
        {"the tower": StateSource(bench.tower.state_dict()).specs, "the base": StateSource(bench.base).specs}
    )
    return TaskVectors.of(bench.base, bench.experts, next(bench.tower.parameters()).device)


def layerwise(coefficients: torch.Tensor, layers: int, clamp: bool) -> torch.Tensor:
    """What the forward pass uses, (layers, n), of trainable coefficients (layers, n) or (1, n).

    Outside of [0, 1] a clamped coefficient has no gradient.
    """
    used = coefficients.clamp(0, 1) if clamp else coefficients
    return used.expand(layers, -1)


def backward(
    vectors: TaskVectors,
    coefficients: torch.Tensor,
    losses: Callable[[State], Iterable[torch.Tensor]],
) -> float:
    """Backpropagate the sum of `losses(merged state)` through coefficients (L, n); returns the sum.

    The merged parameters are leaves: d loss / d lambda_lt = <d loss / d theta*_l, tau_lt>. So the graph of
    one loss holds one model's activations and no task vector, and is gone before the next is computed.
    """
    theta = {name: tensor.requires_grad_() for name, tensor in vectors.merged(coefficients.detach()).items()}
    total = backward_each(losses({**theta, **vectors.buffers}))
    coefficients.backward(vectors.pull_back([tensor.grad for tensor in theta.values()]))  # type: ignore[no-untyped-call]
    return total


def learn_coefficients(
    method: str,
    bench: MergeInputs,
    vectors: TaskVectors,
    *,
    level: Literal["layer", "task"],
    steps: int,
    batch_size: int,
    learning_rate: float,
    init: float,
    clamp: bool,
) -> torch.Tensor:
    """The coefficients (L, n), as the forward pass uses them, after minimising the tasks' summed entropies.

    The bench's tower runs in eval mode, so BatchNorm uses the averaged statistics and leaves them alone.
    Raises InputError for a task without images, TrainingDiverged for an entropy that is not finite.
    """
    layers = len(vectors.names)
    free = vectors.uniform(init)[: layers if level == "layer" else 1].requires_grad_()
    tower, batches = bench.tower.eval(), task_batches(bench, batch_size)

    def losses(state: State) -> Iterable[torch.Tensor]:
        for images, head in next(batches):
            yield entropy(head_logits(functional_call(tower, dict(state), (images,)), head))

    minimise(
        method,
        [free],
        lambda: backward(vectors, layerwise(free, layers, clamp), losses),
        steps=steps,
        learning_rate=learning_rate,
    )
    return layerwise(free.detach(), layers, clamp)
