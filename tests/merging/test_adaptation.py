"""AdaMerging, and what all methods that adapt on unlabelled images share, on a few hundred parameters."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_benches import LABELS, LiveTensors, PixelImages, entropies, make_bench, make_vit, run
from small_models import DIM, make_tower
from torch import nn
from torch.func import functional_call

from neulig_ray.errors import InputError, TrainingDiverged
from neulig_ray.merging import METHODS
from neulig_ray.merging.adaptation import entropy, minimise
from neulig_ray.merging.coefficients import backward, layerwise, task_vectors
from neulig_ray.merging.engine import merge_with
from neulig_ray.merging.prediction import head_logits
from neulig_ray.weights.sources import State

ADAPTED = ("adamerging", "adamerging-plus-plus")


@pytest.mark.parametrize("layer", [True, False])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("make", [make_tower, make_vit])
def test_the_gradient_is_that_of_the_whole_graph(
    layer: bool, clamp: bool, make: Callable[[int], nn.Module]
) -> None:
    tower = make(0)
    bench = make_bench(tower)
    vectors = task_vectors(bench)
    rows = len(vectors.names) if layer else 1
    start = torch.empty(rows, 3).uniform_(-0.3, 1.3, generator=torch.Generator().manual_seed(1))

    def losses(state: State) -> Iterable[torch.Tensor]:
        for label, images in bench.images.items():
            embeddings = functional_call(tower, dict(state), (images.pixels(torch.arange(8)),))
            yield entropy(head_logits(embeddings, bench.heads[label]))

    ours = start.clone().requires_grad_()
    total = backward(vectors, layerwise(ours, len(vectors.names), clamp), losses)

    plain = start.clone().requires_grad_()
    used = (plain.clamp(0, 1) if clamp else plain).expand(len(vectors.names), 3)
    state: dict[str, torch.Tensor] = dict(vectors.buffers)
    assert bench.base is not None
    for name, row in zip(vectors.names, used, strict=True):
        taus = [bench.experts[label][name] - bench.base[name] for label in LABELS]
        state[name] = bench.base[name] + sum(w * tau for w, tau in zip(row, taus, strict=True))
    expected = torch.stack(list(losses(state))).sum()
    expected.backward()
    assert plain.grad is not None
    assert total == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-6)
    if clamp:
        assert (ours.grad[(start < 0) | (start > 1)] == 0).all()


@pytest.mark.parametrize("method", ADAPTED)
@pytest.mark.parametrize("level", ["layer", "task"])
def test_the_entropy_goes_down(method: str, level: str) -> None:
    bench = make_bench(make_tower(0), size=0.3)
    before, after = (
        entropies(bench, run(method, bench, steps=steps, level=level, learning_rate=0.02))
        for steps in (0, 40)
    )
    assert after < 0.98 * before


def test_layers_go_further_than_tasks() -> None:
    bench = make_bench(make_tower(0), size=0.3)
    layer, task = (
        entropies(bench, run("adamerging", bench, steps=40, level=level, learning_rate=0.02))
        for level in ("layer", "task")
    )
    assert layer < task


@pytest.mark.parametrize("method", ADAPTED)
def test_no_step_is_task_arithmetic_or_the_sum_of_ties(method: str) -> None:
    bench = make_bench(make_tower(0))
    assert bench.base is not None
    if method == "adamerging":
        expected = merge_with(METHODS["task-arithmetic"], bench.experts, bench.base, {"scaling": 0.3})
    else:
        options = {"aggregate": "sum", "scaling": 0.3, "density": 0.2}
        expected = merge_with(METHODS["ties"], bench.experts, bench.base, options)
    torch.testing.assert_close(run(method, bench, steps=0), expected)


def test_all_of_agreeing_task_vectors_is_kept() -> None:
    bench = make_bench(make_tower(0))
    bench = replace(bench, experts=dict.fromkeys(LABELS, bench.experts["a"]))
    options = {"steps": 5, "learning_rate": 0.01}
    plain = run("adamerging", bench, **options)
    torch.testing.assert_close(run("adamerging-plus-plus", bench, density=1.0, **options), plain)


@pytest.mark.parametrize("method", ADAPTED)
def test_running_statistics_are_averaged_and_never_extrapolated(method: str) -> None:
    bench = make_bench(make_tower(0))
    merged = run(method, bench, steps=3, init=4.0, clamp=False, learning_rate=0.5)
    assert bench.base is not None
    assert merged.keys() == bench.base.keys()
    for name in ("bn.running_mean", "bn.running_var"):
        torch.testing.assert_close(
            merged[name], torch.stack([s[name] for s in bench.experts.values()]).mean(0)
        )
    assert (merged["bn.running_var"] > 0).all()
    assert merged["bn.num_batches_tracked"] == bench.experts["a"]["bn.num_batches_tracked"]
    assert all(tensor.isfinite().all() for tensor in merged.values())


def test_clamped_coefficients_stay_at_the_end_of_the_interval() -> None:
    bench = make_bench(make_tower(0))
    clamped, free = (run("adamerging", bench, steps=3, init=1.5, clamp=clamp) for clamp in (True, False))
    assert bench.base is not None
    whole = merge_with(METHODS["task-arithmetic"], bench.experts, bench.base, {"scaling": 1.0})
    torch.testing.assert_close(clamped, whole)
    assert not torch.allclose(free["conv.weight"], whole["conv.weight"])


@pytest.mark.parametrize("method", [*ADAPTED, "wemoe"])
def test_one_graph_is_held_at_a_time(method: str) -> None:
    """Three tasks' graphs together would be three times what one needs, or more."""
    bench = make_bench(make_vit(0))
    with LiveTensors() as needed:
        # Parameters with gradients, as in AdaMerging: WeMoE's own graph is hardly larger.
        functional_call(bench.tower, leaves(bench.base), (bench.images["a"].pixels(torch.arange(16)),))
    with LiveTensors() as live:
        run(method, bench, steps=2)
    assert 0 < live.most < 2 * needed.most


def leaves(state: State | None) -> dict[str, torch.Tensor]:
    assert state is not None
    return {name: tensor.clone().requires_grad_() for name, tensor in state.items()}


@pytest.mark.parametrize("method", [*ADAPTED, "wemoe"])
def test_the_seed_decides_and_the_order_of_the_tasks_does_not(method: str) -> None:
    def found(labels: Iterable[str] = LABELS, seed: int = 0) -> torch.Tensor:
        bench = make_bench(make_vit(0), labels, seed)
        torch.rand(len(tuple(labels)))  # the global generator's state is of no account
        merged = run(method, bench, steps=3, learning_rate=1e-2)
        state = bench.tower.state_dict() | merged if isinstance(merged, dict) else None
        images = bench.images["a"].pixels(torch.arange(16))
        with torch.no_grad():
            return merged(images) if state is None else functional_call(bench.tower, state, images)

    first = found()
    assert first.equal(found())
    assert not torch.allclose(first, found(seed=1), atol=1e-6)
    if method != "wemoe":  # its routers' initial weights belong to a place in the order
        torch.testing.assert_close(first, found(("c", "a", "b")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [*ADAPTED, "wemoe"])
def test_the_bench_stays_as_it_is_and_half_precision_is_taken(method: str) -> None:
    bench = make_bench(make_vit(0))
    assert bench.base is not None
    bench = replace(
        bench,
        base={name: tensor.half() for name, tensor in bench.base.items()},
        experts={label: {k: t.half() for k, t in s.items()} for label, s in bench.experts.items()},
    )
    states = [bench.base, *bench.experts.values(), bench.tower.state_dict()]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    merged = run(method, bench, steps=2)
    for state, copied in zip(states, before, strict=True):
        assert all(tensor.equal(copied[name]) for name, tensor in state.items())
    tensors = merged.values() if isinstance(merged, dict) else [*merged.parameters(), *merged.buffers()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in tensors)


def test_an_annealed_learning_rate_falls_along_half_a_cosine() -> None:
    place, places = torch.zeros(1, requires_grad=True), []

    def down() -> float:  # a slope of one: Adam's steps are the learning rate
        place.grad = torch.ones(1)
        places.append(place.item())
        return places[-1]

    for annealed, rates in ((False, [0.1, 0.1, 0.1]), (True, [0.1, 0.075, 0.025])):
        places.clear()
        losses = minimise("it", [place], down, steps=3, learning_rate=0.1, annealed=annealed)
        assert losses == places
        found = [a - b for a, b in pairwise([*places, place.item()])]
        assert found == pytest.approx(rates, rel=1e-4)


@pytest.mark.parametrize("method", [*ADAPTED, "wemoe"])
def test_unusable_benches(method: str) -> None:
    bench = make_bench(make_vit(0))
    with pytest.raises(InputError, match="origin"):
        run(method, replace(bench, base=None))
    with pytest.raises(InputError, match="no unlabelled image of 'b'"):
        run(method, replace(bench, images={**bench.images, "b": PixelImages(torch.empty(0, 3, 8, 8))}))
    with pytest.raises(InputError, match=r"the tower.*the base"):
        run(method, replace(bench, base=make_tower(0).state_dict()))
    broken = {**bench.experts["c"], "conv1.weight": torch.full((16, 3, 4, 4), float("nan"))}
    with pytest.raises(InputError, match=r"conv1\.weight"):
        run(method, replace(bench, experts={**bench.experts, "c": broken}))
    with pytest.raises(TrainingDiverged, match=rf"{method}: .*step 1 of 2"):
        run(method, replace(bench, heads={**bench.heads, "a": torch.full((4, DIM), torch.inf)}), steps=2)
