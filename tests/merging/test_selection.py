"""Exact order statistics of numbers that are never held together, against sorting them."""

from threading import Thread
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neulig_ray.merging import models as models_module
from neulig_ray.merging.models import Models
from neulig_ray.merging.selection import Selection
from neulig_ray.merging.trimming import cutoffs, drop, ordered, tensor_order_statistics
from neulig_ray.weights.sources import StateSource

# Zeros, ties, subnormal numbers and neighbours of one binade: what a selection by bits could get wrong.
SPECIAL = [0.0, 1e-45, 1e-38, 1.0, float(np.nextafter(np.float32(1), np.float32(2))), 1.5, 3.4e38]
magnitudes = st.one_of(st.sampled_from(SPECIAL), st.floats(0, 1e6, width=32))


def select(values: torch.Tensor, ranks: torch.Tensor, pieces: int) -> torch.Tensor:
    selection = Selection(ranks)
    for _ in range(2):
        for piece in values.tensor_split(pieces, 1):
            selection.add(piece)
        selection.narrow()
    return selection.found()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_selected_numbers_are_those_of_the_sorted_row(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40))
    values = torch.from_numpy(data.draw(arrays(np.float32, (rows, size), elements=magnitudes)))
    count = data.draw(st.integers(1, 4))
    ranks = data.draw(arrays(np.int64, (rows, count), elements=st.integers(0, size - 1)))
    found = select(values, torch.from_numpy(ranks), data.draw(st.integers(1, 5)))
    expected = values.sort(1).values.gather(1, torch.from_numpy(ranks))
    assert torch.equal(found, expected)


def test_every_rank_of_many_numbers_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(2, 5000, generator=generator) * 20).round().abs() / 20
    values[1] *= 1e-30
    ranks = torch.arange(0, 5000, 50).expand(2, -1)
    assert torch.equal(select(values, ranks.contiguous(), 7), values.sort(1).values[:, ::50])


def test_threads_may_count_at_once() -> None:
    values = torch.rand(1, 40_000, generator=torch.Generator().manual_seed(1))
    selection = Selection(torch.tensor([[31_999]]))
    for _ in range(2):
        threads = [Thread(target=selection.add, args=(piece,)) for piece in values.split(1000, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        selection.narrow()
    assert selection.found().item() == values[0].sort().values[31_999].item()


def make_models(n: int = 3, threads: int = 1) -> tuple[Models, torch.Tensor]:
    """Models of three tensors, one of them a number, and their sorted |task vectors| (n, d)."""
    generator = torch.Generator().manual_seed(2)
    shapes = {"w": (13, 17), "scale": (), "b": (9,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    experts = {
        f"e{i}": {name: (t + torch.randn(t.shape, generator=generator).round()) for name, t in base.items()}
        for i in range(n)
    }
    rows = [torch.cat([(e[name] - base[name]).flatten().abs() for name in base]) for e in experts.values()]
    sources = {label: StateSource(state) for label, state in experts.items()}
    return Models(sources, StateSource(base), threads=threads), torch.stack(rows).sort(1).values


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("piece", [16, 1 << 16])
def test_order_statistics_over_whole_models(threads: int, piece: int) -> None:
    models, expected = make_models(threads=threads)
    ranks = torch.tensor([[0, 100, 230], [5, 5, 5], [229, 0, 1]])
    with mock.patch.object(models_module, "PIECE", piece):
        found = models.order_statistics(lambda tensors, base: (tensors - base).abs(), ranks)
    assert torch.equal(found, expected.gather(1, ranks))


def test_order_statistics_of_each_tensor() -> None:
    models, _ = make_models()
    found = tensor_order_statistics(models, lambda size: (size // 2, 0, size - 1))
    assert found.keys() == {"w", "scale", "b"}
    for name, numbers in found.items():
        tensors, known = models.inputs(next(p for p in models.pieces([name], False)), False)
        for row, tensor in zip(numbers, tensors, strict=True):
            size = tensor.numel()
            values = (tensor - known["base"]).abs().flatten().sort().values
            assert torch.equal(row, values[[size // 2, 0, size - 1]])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_ordered_with_several_ranks(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 60))
    values = torch.from_numpy(data.draw(arrays(np.float32, size, elements=magnitudes)))
    ranks = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
    assert torch.equal(ordered(values.clone(), ranks), values.sort().values[ranks])


@pytest.mark.parametrize("scope", ["vector", "tensor"])
@pytest.mark.parametrize("density", [1e-9, 0.1, 0.2, 0.5, 0.999, 1.0])
def test_what_cutoffs_keep(scope: str, density: float) -> None:
    """The k-th smallest magnitude t, k = d - floor(density d): |tau| >= t is kept, or > t; 1 keeps all."""
    models, _ = make_models()
    whole = {name: [] for name in models.names}
    for piece in models.pieces(models.names, False):
        tensors, known = models.inputs(piece, False)
        whole[piece.name] = [(t - known["base"]).flatten() for t in tensors]
    for threshold in ("inclusive", "strict"):
        found = cutoffs(models, density, scope, threshold)  # type: ignore[arg-type]
        for expert in range(models.n):
            vectors = {name: rows[expert] for name, rows in whole.items()}
            for name, tau in vectors.items():
                over = torch.cat(list(vectors.values())) if scope == "vector" else tau
                k = len(over) - int(density * len(over))
                t = over.abs().sort().values[k - 1] if k else torch.tensor(-1.0)
                keep = tau.abs() >= t if threshold == "inclusive" else tau.abs() > t
                left = drop(tau.clone()[None], found.of(name)[expert : expert + 1])[0]
                assert torch.equal(left, torch.where(keep, tau, 0.0))
