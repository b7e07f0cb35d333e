"""Which worker group trains what: everything once, what was interrupted by the group that began it."""

import itertools

import pytest

from neulig_ray.stages.training import _Queue

JOBS = ["a", "b", "c"]


def drain(queue: _Queue, order: list[int]) -> dict[int, list[str]]:
    """Groups ask in turn, finishing each training before they ask again, until nobody gets any."""
    had: dict[int, list[str]] = {group: [] for group in order}
    waiting = list(order)
    while waiting:
        for group in list(waiting):
            if (name := queue.take(group)) is None:
                waiting.remove(group)
            else:
                had[group].append(name)
                queue.post(group, "done", name, "")
    return had


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    "interrupted", [{}, {0: "b"}, {1: "a"}, {0: "c", 2: "a"}, {0: "b", 1: "b"}, {2: "gone"}]
)
def test_everything_is_trained_once_and_goes_on_where_it_was(
    order: tuple[int, ...], interrupted: dict[int, str]
) -> None:
    had = drain(_Queue(JOBS, interrupted), list(order))
    assert sorted(itertools.chain(*had.values())) == JOBS
    for name in set(interrupted.values()) & set(JOBS):
        owners = [group for group, its in interrupted.items() if its == name]
        assert any(had[group][:1] == [name] for group in owners)


def test_a_restarted_group_gets_back_what_it_had() -> None:
    queue = _Queue(JOBS, {})
    assert [queue.take(0), queue.take(1), queue.take(0)] == ["a", "b", "a"]
    queue.post(0, "running", "a", "epoch 1")
    assert queue.take(0) == "a"
    queue.post(0, "failed", "a", "reason")
    assert queue.take(0) == "c"
    assert queue.drop(1) == "b"
    assert queue.take(1) is None
    assert queue.events() == [("running", "a", "epoch 1"), ("failed", "a", "reason")]
    assert queue.events() == []
