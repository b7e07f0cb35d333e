"""Two rows of a table, compared: how they are chosen, what is told, and what is refused."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from neulig_ray.errors import InputError
from neulig_ray.results import schema
from neulig_ray.results.comparison import Comparison, compare
from neulig_ray.results.correctness import Correctness, row_key
from neulig_ray.results.paired import difference

GENERATOR = np.random.default_rng(0)
HARD = {task: GENERATOR.random(200) for task in ("a", "b", "c")}


def answers(task: str, reach: float, positions: np.ndarray) -> np.ndarray:
    return HARD[task][positions] + GENERATOR.normal(0, 0.1, len(positions)) < reach


class Results:
    """A table of made-up rows, and their bits."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.bits: dict[str, dict[str, Correctness]] = {}

    def add(
        self,
        task: str,
        *,
        images: int = 200,
        reach: float = 0.8,
        ensembling: float | None = None,
        **more: Any,
    ) -> None:
        base = {
            "arch": "tiny-rn",
            "origin": "seed-0",
            "n": 2,
            "collaborators": "a,b",
            "buffers": "",
            "seed": 0,
        }
        row: dict[str, Any] = {**base, "task": task, "method": "average", "granularity": "global", **more}
        seen = np.sort(np.random.default_rng(images).permutation(200)[:images])
        sides = {"merging": answers(task, reach, seen)}
        if ensembling is not None:
            sides["ensembling"] = answers(task, ensembling, seen)
        row |= {f"{side}_accuracy": 100.0 * right.mean() for side, right in sides.items()}
        row["fingerprint"] = f"{row['method']}{row['granularity']}{row['seed']}"
        self.rows.append(row)
        self.bits.setdefault(row["fingerprint"], {})[row_key(row)] = Correctness.of(seen, **sides)

    @property
    def table(self) -> pd.DataFrame:
        return schema.frame(self.rows)

    def compare(self, first: str | Mapping[str, Any], second: str | Mapping[str, Any]) -> Comparison:
        return compare(self.table, self.bits.__getitem__, first, second)

    def right(self, side: str, task: str, **more: Any) -> np.ndarray:
        (row,) = [r for r in self.rows if r["task"] == task and all(r[k] == v for k, v in more.items())]
        found = self.bits[row["fingerprint"]][row_key(row)].right(side)
        assert found is not None
        return found


@pytest.fixture
def results() -> Results:
    made = Results()
    ligand = {"method": "ligand", "alignment": "sup"}
    for task in ("a", "b"):
        made.add(task)
        made.add(task, reach=0.6, buffers="re-estimated")
        made.add(task, reach=0.95, ensembling=0.93, granularity="task", **ligand)
        made.add(task, images=40, reach=0.95, ensembling=0.93, granularity="sample", **ligand)
        for order in (0, 1, 2):
            made.add(
                task, reach=0.9, ensembling=0.93, granularity="batch-mean-mixed", order_seed=order, **ligand
            )
    made.add("c", collaborators="a,c", method="ties")
    return made


LIGAND = "method=ligand granularity=task"
AVERAGE = "method=average buffers="


def test_one_row_against_another(results: Results) -> None:
    found = results.compare(f"{LIGAND} task=a", f"{AVERAGE} task=a")
    one, other = (
        results.right("merging", "a", method=m, granularity=g, buffers="")
        for m, g in (("ligand", "task"), ("average", "global"))
    )
    assert found.difference == difference([one], [other])
    assert found.difference.significant
    assert found.first.accuracy == pytest.approx(100 * one.mean())
    assert (found.first.side, found.tasks, found.seeds) == ("merging", ("a",), 1)
    for part in (
        "task=a",
        f"{found.difference.points:+.2f} points",
        "95 % interval",
        "the same 200 images of a",
        "the two differ",
    ):
        assert part in str(found)


def test_words_and_a_dict_choose_alike(results: Results) -> None:
    by_dict = results.compare(
        {"method": "ligand", "granularity": "task", "task": "a"},
        {"method": "average", "buffers": "", "task": "a", "options": {}},
    )
    assert by_dict == results.compare(f"{LIGAND} task=a", f"{AVERAGE} task=a options={{}}")


def test_what_is_left_open_is_averaged(results: Results) -> None:
    found = results.compare("method=ligand granularity=batch-mean-mixed", LIGAND)
    tasks = ("a", "b")
    orders = [
        np.mean(
            [results.right("merging", t, granularity="batch-mean-mixed", order_seed=o) for o in (0, 1, 2)], 0
        )
        for t in tasks
    ]
    single = [results.right("merging", t, granularity="task") for t in tasks]
    assert found.difference == difference(orders, single)
    assert found.tasks == tasks
    assert "the mean over 2 tasks" in str(found)


def test_several_seeds_are_a_level_of_their_own() -> None:
    made = Results()
    for seed in (0, 1, 2):
        made.add("a", reach=0.7 + 0.1 * seed, seed=seed, method="ligand")
        made.add("a", reach=0.6, seed=seed, method="ties")
    made.add("a", reach=0.6)
    stacked = [
        np.stack([made.right("merging", "a", method=m, seed=s) for s in (0, 1, 2)])
        for m in ("ligand", "ties")
    ]
    assert made.compare("method=ligand", "method=ties").difference == difference([stacked[0]], [stacked[1]])
    alone = made.right("merging", "a", method="average")
    beside = made.compare("method=ligand", "method=average")
    assert beside.difference == difference([stacked[0]], [np.stack([alone] * 3)])
    assert beside.seeds == 3
    assert made.compare("method=ligand seed=1", "method=average").seeds == 1
    made.add("a", seed=7, method="ties-too")
    made.add("a", seed=8, method="ties-too")
    with pytest.raises(InputError, match="seeds 0, 1, 2, the second 7, 8; name one of each, seed=N"):
        made.compare("method=ligand", "method=ties-too")


def test_pairs_are_of_the_same_experts() -> None:
    """Five ligands for each of three seeds of experts, a method once for each, and zero-shot once."""
    made = Results()
    zero = {"n": 0, "collaborators": "", "method": "zeroshot", "fingerprint": "z"}
    made.add("a", reach=0.4, expert_seed=0, **zero)
    for expert in range(3):
        reach = 0.6 + 0.1 * expert
        made.add("a", reach=reach, expert_seed=expert, seed=expert, method=f"ties{expert}")
        made.rows[-1]["method"] = "ties"
        for seed in range(5):
            made.add("a", reach=reach + 0.05, expert_seed=expert, seed=10 * expert + seed, method="ligand")
            made.rows[-1]["seed"] = seed
            made.bits[made.rows[-1]["fingerprint"]] = {
                row_key(made.rows[-1]): bits for bits in made.bits[made.rows[-1]["fingerprint"]].values()
            }
    groups = [expert for expert in range(3) for _ in range(5)]
    ligand, ties, zeroshot = (
        np.stack([made.right("merging", "a", method=method, **more) for more in chosen])
        for method, chosen in (
            ("ligand", [{"expert_seed": e, "seed": s} for e in range(3) for s in range(5)]),
            ("ties", [{"expert_seed": e} for e in groups]),
            ("zeroshot", [{}] * 15),
        )
    )
    found = made.compare("method=ligand", "method=ties")
    assert found.difference == difference([ligand], [ties], groups=groups)
    assert found.seeds == 15
    opposite = made.compare("method=ties", "method=ligand").difference
    assert (opposite.points, opposite.wins) == (-found.difference.points, found.difference.losses)
    beside = made.compare("method=ligand", "method=zeroshot").difference
    assert beside == difference([ligand], [zeroshot], groups=groups)
    one = made.compare("method=ligand expert_seed=1", "method=ties expert_seed=1")
    assert one.difference == difference([ligand[5:10]], [ties[5:10]])
    assert made.compare("method=ligand expert_seed=1 seed=2", "method=ties expert_seed=1").seeds == 1
    with pytest.raises(
        InputError, match="seeds of experts 0, 1, 2, the second 1; name one of each, expert_seed=N"
    ):
        made.compare("method=ligand", "method=ties expert_seed=1")


def test_the_other_accuracy_of_a_row_is_chosen_by_its_word(results: Results) -> None:
    found = results.compare(f"{LIGAND} task=a accuracy=ensembling", f"{LIGAND} task=a")
    assert (found.first.side, found.second.side) == ("ensembling", "merging")
    gap = results.table.query("method == 'ligand' and granularity == 'task' and task == 'a'")["gap"].item()
    assert found.difference.points == pytest.approx(gap)
    with pytest.raises(InputError, match=r"accuracy=ensembling: .*method=average.* has merging alone"):
        results.compare(f"{AVERAGE} accuracy=ensembling", LIGAND)


REFUSED = {
    "no word": ("average", "'average' is no word column=value"),
    "no column": ("metod=average", "Did you mean 'method'"),
    "no value": ("method=avrage", "unknown method: 'avrage'.*Did you mean 'average'"),
    "no value here": ("method=average granularity=sample", "granularity of the rows with method=average: 's"),
    "twice": ("task=a task=b", "names a column twice"),
    "several rows": (
        "method=average",
        r"differ in buffers; add what chooses one:\n  buffers=\n  buffers=re-estimated",
    ),
    "no JSON": ("options=x", "is no JSON object"),
    "other tasks": ("method=ties", "no pairs: the first is of c, the second of a, b; name one that both"),
    "other images": ("granularity=sample", "no pairs: the first looks at 40 images of a, the second at 200"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_row_or_no_pair_is_refused(results: Results, case: str) -> None:
    selection, reason = REFUSED[case]
    with pytest.raises(InputError, match=f"(?s){reason}"):
        results.compare(selection, LIGAND)


def test_many_candidates_take_ten_lines() -> None:
    made = Results()
    for number in range(30):
        made.add("a", method=f"m{number:02}")
    with pytest.raises(InputError) as error:
        made.compare("task=a", "method=m01")
    lines = str(error.value).splitlines()
    assert len(lines) == 10
    assert (lines[1], lines[-1]) == ("  method=m00", "  and 22 more")


def test_rows_without_bits_are_told_with_the_remedy(results: Results) -> None:
    table = results.table

    def none(fingerprint: str) -> Mapping[str, Correctness]:
        raise FileNotFoundError(fingerprint)

    with pytest.raises(InputError, match=r"averageglobal0 .*kept no bits"):
        compare(table, none, AVERAGE, LIGAND)
    with pytest.raises(InputError, match="kept no bits"):
        compare(table, lambda _: {}, AVERAGE, LIGAND)


def test_bits_of_other_accuracies_are_not_believed(results: Results) -> None:
    table = results.table.assign(merging_accuracy=50.0)
    with pytest.raises(InputError, match="not those of its accuracies"):
        compare(table, results.bits.__getitem__, AVERAGE, LIGAND)


def test_a_failed_row_says_why(results: Results) -> None:
    results.rows.append({**results.rows[-1], "method": "fails", "status": schema.failed("loss is NaN")})
    with pytest.raises(InputError, match="not measured: failed: loss is NaN"):
        results.compare("method=fails", LIGAND)
