"""Small experts for whatever merges tensor by tensor: multiples of 1/64, so that a few sum exactly."""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neulig_ray.merging import METHODS, Method
from neulig_ray.merging import models as models_module
from neulig_ray.merging.declare.masked import MaskedMethod
from neulig_ray.merging.declare.streamed import StreamedMethod
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.masks import MaskedModel
from neulig_ray.weights.sources import StateSource

State = dict[str, torch.Tensor]
SHAPES: dict[str, tuple[int, ...]] = {
    "w": (4, 6),
    "deep.w": (5, 3),
    "conv": (2, 3, 2, 2),
    "b": (7,),
    "scale": (),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
STREAMED = sorted(
    m.name for m in map(METHODS.__getitem__, METHODS) if isinstance(m, StreamedMethod | MaskedMethod)
)
SPECTRAL = ("iso-c", "iso-cts", "tsv-merge")  # singular vectors of degenerate matrices are not unique
# The defaults, and variants whose code goes another way.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "ties": (
        {"trim_scope": "tensor", "threshold": "strict", "sign_ties": "positive", "density": 0.5},
        {"aggregate": "max", "sign_ties": "zero", "density": 0.7},
    ),
    "dare": (
        {"then": "ties", "rescale": "l1"},
        {"strategy": "magnitude", "rescale": "none"},
        {"then": "ties", "trim": 1.0, "aggregate": "sum", "sign_ties": "positive"},
    ),
    "tall-mask": ({"tau_mtl": "ties", "strict": False},),
    "task-arithmetic": ({"scaling": -0.4},),
    "consensus": ({"tau_mtl": "ties", "density": 0.6},),
    "slerp": ({"on": "deltas"},),
    "multi-slerp": ({"on": "deltas"},),
    "tsv-merge": ({"convolutions": "reshape"},),
    "iso-c": ({"convolutions": "reshape"},),
    "iso-cts": ({"convolutions": "reshape"},),
}


def number_of_experts(name: str) -> int:
    return 2 if name == "slerp" else 3


def filled(name: str, options: Mapping[str, Any], n: int) -> dict[str, Any]:
    """The options with those that the method cannot do without."""
    required = {"weights": tuple(range(1, n + 1))} if name == "weighted-average" else {}
    return required | dict(options)


def small_pieces(size: int = 8) -> Any:
    """Let pieces be so small that every tensor has several."""
    return mock.patch.object(models_module, "PIECE", size)


def base_state() -> State:
    generator = torch.Generator().manual_seed(0)
    return {k: (torch.randn(s, generator=generator) * 64).round() / 64 for k, s in SHAPES.items()}


def experts_of(changes: np.ndarray) -> dict[str, State]:
    """Experts from integers (n, SIZE), in 64ths; each leaves one entry of the first tensor as it was."""
    changes = changes.copy()
    changes[:, 0] = 0
    states = {}
    for i, row in enumerate(changes):
        parts = torch.from_numpy(row).float().div(64).split([int(np.prod(s)) for s in SHAPES.values()])
        states[f"e{i}"] = {
            name: base + part.view(base.shape)
            for (name, base), part in zip(base_state().items(), parts, strict=True)
        }
    return states


def generic(n: int, seed: int = 0) -> np.ndarray:
    """Changes in general position, but for some zeros, ties and opposites."""
    generator = np.random.default_rng(seed)
    changes = generator.integers(-60, 61, (n, SIZE)) * (generator.random((n, SIZE)) < 0.8)
    changes[1, ::9] = -changes[0, ::9]
    return changes


def changes_for(name: str, n: int) -> st.SearchStrategy[np.ndarray]:
    if name in SPECTRAL:
        return st.integers(0, 10_000).map(lambda seed: generic(n, seed))
    return arrays(np.int64, (n, SIZE), elements=st.integers(-60, 60))


def results(
    method: Method, experts: Mapping[str, State], options: Mapping[str, Any], threads: int = 1
) -> dict[str, State]:
    """The merged model, or each task's of a masked method."""
    found = merge_with(method, experts, base_state(), options, threads=threads)
    if not method.masked:
        return {"": found}
    model = MaskedModel(StateSource(found), tuple(experts))
    return {label: model.dense(label) for label in experts}


def check_close(found: Mapping[str, State], expected: Mapping[str, State], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for label, state in expected.items():
        assert found[label].keys() == state.keys()
        for name, tensor in state.items():
            torch.testing.assert_close(
                found[label][name],
                tensor,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, at=name: f"{at}: {m}",
            )
