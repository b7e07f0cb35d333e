"""Which experts are combined: bounded draws are balanced, repeatable, and mixed where mixing is asked."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from neulig_ray.experiment.combinations import groups, origin_of
from neulig_ray.experiment.config import Experiment

NAMES = ("count", "digits", "letters", "mnist-5k", "shapes", "signs", "textures")


def task(key: str) -> str:
    return key.split("@")[0]


def experiment(tasks: int, n: int, most: int | None, seed: int = 0, mixed: bool = False) -> Experiment:
    return Experiment(
        name="draw",
        archs=("tiny-rn",),
        origins=("seed-0", "seed-1") if mixed else ("seed-0",),
        tasks=NAMES[:tasks],
        n=(n,),
        combinations=most,
        mixed_origins=(n,) if mixed else (),
        seed=seed,
    )


sizes = st.integers(2, 7).flatmap(lambda tasks: st.tuples(st.just(tasks), st.integers(2, tasks)))


@given(sizes)
@settings(max_examples=30, deadline=None)
def test_without_a_bound_there_are_all_combinations(size: tuple[int, int]) -> None:
    (group,) = groups(experiment(*size, None))
    expected = itertools.combinations(NAMES[: size[0]], size[1])
    assert sorted(tuple(map(task, c)) for c in group.combinations) == sorted(expected)


@given(sizes, st.integers(1, 40), st.integers(0, 5), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_bounded_draw_is_valid_repeatable_and_balanced(
    size: tuple[int, int], most: int, seed: int, mixed: bool
) -> None:
    e = experiment(*size, most, seed, mixed)
    assert groups(e) == groups(e)
    for group in groups(e):
        assert len(group.combinations) <= most
        assert len(set(group.combinations)) == len(group.combinations)
        assert list(group.combinations) == sorted(group.combinations)
        for combination in group.combinations:
            assert len(combination) == size[1]
            assert len(set(map(task, combination))) == size[1], "two experts of one task"
            assert list(combination) == sorted(combination)
        used = Counter(key for combination in group.combinations for key in combination)
        everyone = [f"{name}@{o}" for name in e.tasks for o in group.origin.split("+")]
        counts = [used[key] for key in everyone]
        # Greedy on the least used: nobody falls behind by more than the last few combinations can carry.
        assert max(counts) - min(counts) <= 2 if not mixed else max(counts) - min(counts) <= 3


@given(sizes, st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_mixed_groups_really_mix(size: tuple[int, int], seed: int) -> None:
    found = {group.origin: group for group in groups(experiment(*size, None, seed, mixed=True))}
    assert set(found) == {"seed-0", "seed-1", "seed-0+seed-1"}
    for origin in ("seed-0", "seed-1"):
        assert all({origin_of(key) for key in c} == {origin} for c in found[origin].combinations)
    mixed = found["seed-0+seed-1"].combinations
    assert all({origin_of(key) for key in c} == {"seed-0", "seed-1"} for c in mixed)
    tasks, n = size
    assert len(mixed) == sum(1 for _ in itertools.combinations(range(tasks), n)) * (2**n - 2)


def test_the_draw_follows_the_seed() -> None:
    draws = {groups(experiment(7, 3, 8, seed))[0].combinations for seed in range(4)}
    assert len(draws) > 1


def test_the_order_in_which_tasks_are_named_changes_nothing() -> None:
    e = experiment(5, 2, 4)
    turned = Experiment(
        name="draw",
        archs=e.archs,
        origins=e.origins,
        tasks=tuple(reversed(e.tasks)),
        n=e.n,
        combinations=4,
    )
    assert groups(turned) == groups(e)


def test_an_origins_file_is_called_by_its_stem() -> None:
    files = ("some/where/mine.safetensors", "seed-0")
    e = Experiment(
        name="files",
        archs=("tiny-rn",),
        origins=files,
        tasks=("digits", "signs"),
        n=(2,),
        mixed_origins=(2,),
    )
    found = {group.origin: group.combinations for group in groups(e)}
    assert found["mine"] == (("digits@mine", "signs@mine"),)
    assert set(found["mine+seed-0"]) == {("digits@mine", "signs@seed-0"), ("digits@seed-0", "signs@mine")}
