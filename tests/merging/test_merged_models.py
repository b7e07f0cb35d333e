"""What merged models keep is counted once, wherever several tasks share it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import SmallTower, make_states, make_tower
from torch import nn

from neulig_ray.merging import MergedModels, MergeInputs
from neulig_ray.merging.merged_models import Model, count_parameters
from neulig_ray.merging.parameters import ExpertStack

STATES = make_states()
KEYS = tuple(STATES)
SIZE = sum(p.numel() for p in SmallTower().parameters())
BUFFERS = sum(b.numel() for b in SmallTower().buffers())
TAIL = sum(p.numel() for p in SmallTower().proj.parameters())


def state(seed: int) -> dict[str, torch.Tensor]:
    return make_tower(seed).state_dict()


def with_tail(trunk: nn.Module) -> nn.Module:
    return nn.Sequential(trunk, nn.Linear(4 * 9, 6))


def shared_trunk() -> list[Model]:
    trunk = make_tower(0)
    trunk.proj = nn.Identity()  # type: ignore[assignment]
    return [with_tail(trunk) for _ in range(3)]


def one_state_thrice() -> list[Model]:
    one = state(0)
    return [one, dict(one), {name: tensor.detach() for name, tensor in one.items()}]


def a_last_layer_of_its_own() -> list[Model]:
    one = state(0)
    return [{**one, "proj.weight": one["proj.weight"].clone()} for _ in range(2)]


def views_of_a_stack() -> list[Model]:
    stack = ExpertStack.from_states(STATES)
    return [stack.state(key) for key in KEYS] * 2


def halves_of_one_tensor() -> list[Model]:
    both = torch.randn(2, 4, 3, 3, 3)
    return [{**state(0), "conv.weight": half} for half in both]


def transposed() -> list[Model]:
    one = state(0)
    return [one, {**one, "proj.weight": one["proj.weight"].T}]


def expanded() -> list[Model]:
    return [{**state(0), "proj.bias": torch.zeros(1).expand(6)}]


CASES: dict[str, tuple[Callable[[], list[Model]], int]] = {
    "one-state": (lambda: [state(0)], SIZE),
    "states": (lambda: [state(0), state(1)], 2 * SIZE),
    "one-state-thrice": (one_state_thrice, SIZE),
    "a-layer-of-its-own": (a_last_layer_of_its_own, SIZE + 36 * 6),
    "views-of-one-vector": (views_of_a_stack, 3 * SIZE),
    "halves-of-one-tensor": (halves_of_one_tensor, 2 * SIZE),
    "transposed": (transposed, SIZE),
    "expanded": (expanded, SIZE - 5),
    "module": (lambda: [make_tower(0)], SIZE + BUFFERS),
    "modules": (lambda: [make_tower(0), copy.deepcopy(make_tower(0))], 2 * (SIZE + BUFFERS)),
    "shared-trunk": (shared_trunk, SIZE + BUFFERS + 2 * TAIL),
    "meta": (lambda: [SmallTower().to("meta"), SmallTower().to("meta")], 2 * (SIZE + BUFFERS)),
}


@pytest.mark.parametrize("case", CASES)
def test_shared_memory_is_counted_once(case: str) -> None:
    models, expected = CASES[case]
    made = models()
    if case == "halves-of-one-tensor":  # the rest of each state is its own
        assert made[0]["conv.bias"].data_ptr() != made[1]["conv.bias"].data_ptr()  # type: ignore[index]
    assert count_parameters(made, SmallTower()) == expected


def inputs(**more: Any) -> MergeInputs:
    return MergeInputs(SmallTower(), STATES, **more)


def test_what_a_function_returns_stands_for_all_tasks() -> None:
    one, tower = state(0), make_tower(1)
    static, routing = (MergedModels.of(found, inputs(), "mine") for found in (one, tower))
    assert (static.granularity, static.parameters, static.modules) == ("global", SIZE, False)
    assert (routing.granularity, routing.parameters, routing.modules) == ("sample", SIZE + BUFFERS, True)
    assert set(static.by_task) == set(routing.by_task) == set(KEYS), "labels, where tasks have no names"
    assert all(model is one for model in static.by_task.values())
    whole = MergedModels.counted({key: state(i) for i, key in enumerate(KEYS)}, inputs())
    assert MergedModels.of(whole, inputs(), "mine") is whole
    assert (whole.granularity, whole.parameters) == ("task", 3 * SIZE)


def test_inputs_know_their_tasks() -> None:
    named = inputs(tasks=("a", "b", "c"))
    assert named.by_task(named.labels) == dict(zip("abc", KEYS, strict=True))
    with pytest.raises(ValueError, match="zip"):
        named.by_task(KEYS[:2])
