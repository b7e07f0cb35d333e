"""Which worker group trains what: everything once, again after a loss, not for ever."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neulig_ray.cluster.jobs import Resources
from neulig_ray.cluster.train import groups as train_groups
from neulig_ray.cluster.train.groups import Groups
from neulig_ray.cluster.train.queue import Event, TrainQueue

JOBS = ["a", "b", "c"]


def told(queue: TrainQueue) -> list[tuple[str, str]]:
    return [(event.kind, event.training) for event in queue.events()[0]]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_everything_is_trained_once_in_its_order(order: tuple[int, ...]) -> None:
    queue, had = TrainQueue(JOBS, 3), []
    waiting = list(order)
    while waiting:
        for group in list(waiting):
            if (name := queue.take(group)) is None:
                waiting.remove(group)
            else:
                had.append(name)
                queue.end(group, "done", name, "")
    assert had == JOBS
    assert queue.events() == ([Event("done", name, "") for name in JOBS], 0)


def test_a_restarted_group_gets_back_what_it_had() -> None:
    queue = TrainQueue(JOBS, 3)
    assert [queue.take(0), queue.take(1), queue.take(0)] == ["a", "b", "a"]
    queue.progress(0, "a", 1, "epoch 1")
    queue.lost(0, "its node died")
    assert queue.goes_on(0)
    assert queue.take(0) == "a"
    queue.end(0, "failed", "a", "reason")
    assert queue.take(0) == "c"
    events, waiting = queue.events()
    assert events == [
        Event("running", "a", "epoch 1"),
        Event("lost", "a", "its node died"),
        Event("failed", "a", "reason"),
    ]
    assert waiting == 0
    assert queue.events() == ([], 0)


def test_what_kills_its_workers_again_and_again_fails_alone() -> None:
    queue = TrainQueue(JOBS, 2)
    for _ in range(3):
        assert queue.take(0) == "a"
        queue.lost(0, "WorkerDied: out of memory")
    assert queue.goes_on(0), "there is more to do"
    assert queue.take(0) == "b"
    events, waiting = queue.events()
    assert [event.kind for event in events] == ["lost", "lost", "failed"]
    assert events[-1].text == "WorkerDied: out of memory (tried 3 times)"
    assert waiting == 1


def test_a_loss_counts_from_the_last_progress() -> None:
    """Twenty nodes lost in twenty epochs are twenty times one epoch; the same epoch again is no progress."""
    queue = TrainQueue(["a"], 1)
    for epoch in range(1, 21):
        assert queue.take(0) == "a"
        queue.progress(0, "a", epoch, "")
        queue.lost(0, "spot node taken back")
    queue.take(0)
    queue.progress(0, "a", 20, "")
    queue.lost(0, "again")
    assert told(queue)[-1] == ("failed", "a")


def test_a_group_that_never_starts_is_given_up() -> None:
    queue = TrainQueue(JOBS, 2)
    for _ in range(2):
        queue.lost(0, "no import")
        assert queue.goes_on(0)
    queue.lost(0, "no import")
    assert not queue.goes_on(0)
    queue.fail("no import")
    assert told(queue) == [("failed", name) for name in JOBS]
    assert queue.take(1) is None


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["end", "lost"])), max_size=60), st.integers(0, 3)
)
def test_every_training_ends_once(steps: list[tuple[int, str]], most: int) -> None:
    queue = TrainQueue(JOBS, most)
    for group, step in (*steps, *[(group, "end") for group in (0, 1, 2) for _ in JOBS]):
        name = queue.take(group)
        if step == "lost":
            queue.lost(group, "why")
        elif name is not None:
            queue.end(group, "done", name, "")
    ended = [name for kind, name in told(queue) if kind in ("done", "failed")]
    assert sorted(ended) == JOBS


@pytest.mark.parametrize("died", ["controller", "workers"])
def test_a_group_is_begun_again_a_bounded_number_of_times(died: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train tells of its workers' deaths itself, once each; of its controller's nobody else tells."""
    from ray.train import WorkerGroupError

    queue, given_back = TrainQueue(["a"], 2), []

    class Trainer:
        runs = 0

        def fit(self) -> None:
            Trainer.runs += 1
            if Trainer.runs > 10:
                pytest.fail("without end")
            assert queue.take(0) == "a"
            if died == "workers":
                queue.lost(0, "WorkerDied: by SIGKILL")
                raise WorkerGroupError("a worker died", {0: RuntimeError("by SIGKILL")})
            raise RuntimeError("the controller died")

    groups = Groups("folder", [], {}, None, Resources(max_failures=2), 1, None)  # type: ignore[arg-type]
    monkeypatch.setattr(groups, "_call", lambda method, *given: getattr(queue, method)(*given))
    monkeypatch.setattr(groups, "_trainer", lambda group: Trainer())
    monkeypatch.setattr(train_groups, "release_orphans", lambda: given_back.append(None))
    groups._keep(0)
    events: list[Any] = queue.events()[0]
    assert [event.kind for event in events] == ["lost", "lost", "failed"]
    assert "died" in events[-1].text.lower()
    assert events[-1].text.endswith("(tried 3 times)")
    assert len(given_back) == Trainer.runs == 3
