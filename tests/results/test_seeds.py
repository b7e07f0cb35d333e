"""Several seeds in one table: means, spreads, intervals, pairs, and what people are shown of them."""

import importlib.util
import io
import re
from collections.abc import Sequence
from itertools import product
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
import samples
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from neulig_ray.report import console, html
from neulig_ray.results import schema
from neulig_ray.results.intervals import student
from neulig_ray.results.paired import bootstrap
from neulig_ray.results.summary import Line, lines, tables
from neulig_ray.results.summary_frame import summary_frame
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking import projection

COMBINATIONS = ("a,b", "a,c", "b,c")
PLACE = {"arch": "tiny-rn", "origin": "seed-0", "n": 2, "split": "test"}
LIGAND = {"method": "ligand", "alignment": "sup", "granularity": "task"}
AVERAGE = {"method": "average", "alignment": "", "granularity": "global"}


def cell(
    kind: dict[str, Any], seeds: Sequence[tuple[int | None, int]], draw: np.random.Generator, **more: Any
) -> list[dict[str, Any]]:
    """A row for each combination, task and (expert_seed, seed)."""
    return [
        {**PLACE, **kind, "collaborators": combination, "task": task, "expert_seed": expert, "seed": seed,
         "merging_accuracy": draw.uniform(40, 60), "ensembling_accuracy": draw.uniform(60, 90), **more}
        for combination in COMBINATIONS for task in combination.split(",") for expert, seed in seeds
    ]  # fmt: skip


def line_of(frame: pd.DataFrame, method: str) -> Line:
    (found,) = (line for line in lines(frame) if line.variant.method == method)
    return found


FIVE_BY_THREE = list(product(range(3), range(5)))
SEEDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=8, unique=True)


@given(SEEDS, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_every_seed_has_the_same_weight(seeds: list[tuple[int, int]], start: int) -> None:
    draw = np.random.default_rng(start)
    rows = cell(LIGAND, seeds, draw) + cell(AVERAGE, sorted({(e, e) for e, _ in seeds}), draw)
    frame = schema.frame(rows)
    for method in ("ligand", "average"):
        found = line_of(frame, method)
        own = [row for row in rows if row["method"] == method]
        by_seed: dict[Any, list[float]] = {}
        for row in own:
            by_seed.setdefault((row["expert_seed"], row["seed"]), []).append(row["merging_accuracy"])
        means = [fmean(values) for values in by_seed.values()]
        assert found.mean.merging == pytest.approx(fmean(means))
        assert (found.seeds, found.expert_seeds) == (len(means), len({e for e, _ in by_seed}))
        spread = stdev(means) if len(means) > 1 else float("nan")
        assert found.seed_spread.merging == pytest.approx(spread, nan_ok=True)
        a = [row["ensembling_accuracy"] for row in own if row["task"] == "a"]
        assert found.scores["a"].ensembling == pytest.approx(fmean(a))


def test_five_ligands_three_seeds_of_experts_and_what_is_computed_once_for_each() -> None:
    draw = np.random.default_rng(0)
    experts = [(seed, seed) for seed in range(3)]
    frame = schema.frame(cell(LIGAND, FIVE_BY_THREE, draw) + cell(AVERAGE, experts, draw))
    (table,) = tables(frame)
    assert [(line.variant.method, line.seeds, line.expert_seeds) for line in table.lines] == [
        ("average", 3, 3), ("ligand", 15, 3)]  # fmt: skip
    assert "means over 15 seeds, of 3 seeds of experts, ±: their standard deviation" in table.caption
    ligand = table.lines[1]
    assert ligand.combinations == 3
    assert ligand.spread.merging != ligand.seed_spread.merging


def test_a_seed_with_more_orders_counts_no_more() -> None:
    orders = [(0, 0, 10.0), (0, 1, 30.0), (1, 0, 50.0)]
    mixed = {**PLACE, **LIGAND, "granularity": "batch-mean-mixed", "collaborators": "a,b", "task": "a"}
    rows = [mixed | {"seed": seed, "order_seed": order, "merging_accuracy": x} for seed, order, x in orders]
    found = line_of(schema.frame(rows), "ligand")
    assert found.mean.merging == (20 + 50) / 2
    assert found.seed_spread.merging == pytest.approx(stdev([20, 50]))


def test_what_failed_of_one_seed_is_no_spread_and_is_told_by_its_seed() -> None:
    draw = np.random.default_rng(0)
    rows = cell(LIGAND, [(0, 0), (0, 1), (0, 2)], draw)
    for row in rows:  # combinations differ by 20 points, seeds by 1
        row["merging_accuracy"] = 50.0 + 20 * COMBINATIONS.index(row["collaborators"]) + row["seed"]
    gone = {"status": schema.failed("loss became NaN")}
    rows = [row | gone if (row["collaborators"], row["seed"]) == ("b,c", 1) else row for row in rows]
    found = line_of(schema.frame(rows), "ligand")
    assert found.seed_spread.merging == pytest.approx(1.0)
    assert found.failures == ("ligand sup task of b,c: loss became NaN (seed 1 on experts of 0)",)
    none = [row | gone if row["seed"] == COMBINATIONS.index(row["collaborators"]) else row for row in rows]
    apart = line_of(schema.frame([row | {"gap_low": 0.0, "gap_high": 50.0} for row in none]), "ligand")
    assert np.isnan(apart.seed_spread.merging)
    assert not apart.mean.has_interval, "no combination has all seeds"
    every = line_of(schema.frame([row | gone for row in rows]), "ligand")
    assert every.failures[0] == "ligand sup task of a,b: loss became NaN"


@pytest.mark.parametrize("freedom", [*range(1, 12), 29, 1000])
def test_the_quantile_is_that_of_scipy(freedom: int) -> None:
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=0.003)


def gap_rows(gaps: dict[tuple[int, int], float], half: float = 1.0) -> pd.DataFrame:
    return schema.frame(
        {**PLACE, **LIGAND, "collaborators": "a,b", "task": "a", "expert_seed": expert, "seed": seed,
         "merging_accuracy": 50.0, "ensembling_accuracy": 50.0 + gap, "gap_low": gap - half,
         "gap_high": gap + half} for (expert, seed), gap in gaps.items()
    )  # fmt: skip


def test_the_interval_of_a_gap_has_the_chance_of_images_and_of_seeds() -> None:
    gaps = [1.0, 2.0, 4.0, 2.5, 3.0]
    found = line_of(gap_rows({(0, seed): gap for seed, gap in enumerate(gaps)}), "ligand")
    seeds = stats.t.interval(0.95, 4, fmean(gaps), stdev(gaps) / 5**0.5)
    expected = np.hypot(1.0, fmean(gaps) - seeds[0])
    for score in (found.mean, found.scores["a"]):
        assert (score.low, score.high) == pytest.approx((2.5 - expected, 2.5 + expected), abs=1e-3)
    same = line_of(gap_rows({(0, seed): 2.5 for seed in range(5)}), "ligand").mean
    assert (same.low, same.high) == pytest.approx((1.5, 3.5))


def test_ligands_of_the_same_experts_are_no_independent_seeds() -> None:
    by_expert = [1.0, 2.0, 4.5]
    gaps = {(expert, seed): by_expert[expert] + 0.1 * (seed - 2) for expert, seed in FIVE_BY_THREE}
    found = line_of(gap_rows(gaps, half=0.0), "ligand").mean
    low, high = stats.t.interval(0.95, 2, 2.5, stdev(by_expert) / 3**0.5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-3)
    assert found.undecided


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    tries, seeds, images, truth = 800, 5, 300, 4.0
    rows = []
    for one in range(tries):
        of_seed = truth + draw.normal(0, 2.0, seeds)
        of_images = draw.normal(0, 1.5)  # the same images for all seeds
        rows += [
            {**PLACE, **LIGAND, "collaborators": "a,b", "task": "a", "expert_seed": 0, "seed": seed,
             "options": {"try": one}, "num_samples": images, "merging_accuracy": 50.0,
             "ensembling_accuracy": 50 + gap + of_images, "gap_low": gap + of_images - 1.96 * 1.5,
             "gap_high": gap + of_images + 1.96 * 1.5}
            for seed, gap in enumerate(of_seed)
        ]  # fmt: skip
    found = [line.mean for line in lines(schema.frame(rows))]
    covered = fmean(score.low <= truth <= score.high for score in found)
    assert 0.93 <= covered <= 0.98


def test_the_bootstrap_draws_experts_seeds_and_the_ligands_of_each() -> None:
    draw = np.random.default_rng(0)
    by_expert = np.repeat([0.0, 0.1, 0.3], 4)
    values = by_expert[:, None] + draw.normal(0, 0.01, (12, 200))
    groups = [place // 4 for place in range(12)]
    low, high = bootstrap([values], groups=groups)
    means = [fmean(found) for found in product([0.0, 0.1, 0.3], repeat=3)]
    ends = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert (low, high) == pytest.approx(tuple(100 * ends), abs=1.5)
    flat = bootstrap([values])
    assert flat[1] - flat[0] < 0.7 * (high - low)
    assert bootstrap([values], groups=[0] * 12) == flat == bootstrap([values], groups=list(range(12)))


@pytest.fixture(scope="module")
def seeded() -> pd.DataFrame:
    """Five ligands for each cell of a small quickstart, each with an interval; the rest once."""
    whole = samples.results(("tiny-rn",)).assign(expert_seed=0)
    learned = whole["alignment"] != ""
    draw = np.random.default_rng(0)
    parts = [whole[~learned].assign(seed=0)]
    for seed in range(5):
        part = whole[learned & (whole["order_seed"].isna() | (whole["order_seed"] == seed))].assign(seed=seed)
        moved = (part["merging_accuracy"] + draw.normal(0, 0.3)).clip(0, 100)
        parts.append(part.assign(merging_accuracy=moved, gap=part["ensembling_accuracy"] - moved))
    made = pd.concat(parts)
    return schema.frame(made.assign(gap_low=made["gap"] - 1.2, gap_high=made["gap"] + 1.4))


@pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
def test_the_console_shows_spread_and_interval_whole(seeded: pd.DataFrame, width: int) -> None:
    text = console.text(seeded, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    shown = {float(number) for number in re.findall(r"[+-]?\d+\.\d", text)}
    for table in tables(seeded):
        for line in table.lines:
            if line.seeds > 1:
                ends = line.mean.low, line.mean.high, line.seed_spread.merging
                assert {round(float(x), 1) for x in ends if x == x} <= shown, line.variant.title
    assert "means over 5 seeds, ±: their standard deviation" in " ".join(text.split())
    assert "batches over 5 orders" in text


def test_page_markdown_and_summary_show_them_too(seeded: pd.DataFrame) -> None:
    (line,) = (x for x in tables(seeded)[0].lines if x.variant.title == "ligand sup task")
    spread = console.spread(line)
    markdown = console.markdown(tables(seeded)[:1])
    (row,) = [part for part in markdown.splitlines() if part.startswith("| task\\*")][:1]
    assert f" | {spread} | {console.interval(line.mean)} |" in row
    page = html.render({"e": seeded}, {})
    assert f'{line.mean.merging:.1f}<small class="ends">±{spread}</small></td>' in page
    assert "standard deviation over seeds" in page
    found = summary_frame(seeded).query("line == 'ligand sup task' and n == 2").iloc[0]
    assert found["merging_seed_spread"] == line.seed_spread.merging
    assert (found["seeds"], found["expert_seeds"]) == (5, 1)
    single = schema.frame(seeded[seeded["seed"] == 0])
    for shown in (console.text(single), console.markdown(single), html.render({"e": single}, {})):
        assert not re.search(r"±\d| ± \|", shown)


def test_mlflow_has_spread_and_interval_where_there_are_several_seeds(seeded: pd.DataFrame) -> None:
    def parent(frame: pd.DataFrame) -> dict[str, float]:
        runs = projection.runs("e", frame, cells=samples.cells(frame))
        return {
            name: value for run in runs if run.name == "tiny-rn seed-0 n=2" for name, value, _ in run.metrics
        }

    found = parent(seeded)
    (line,) = (x for x in tables(seeded)[0].lines if x.variant.title == "ligand sup task")
    assert found["merging/mean"] == pytest.approx(line.mean.merging)
    assert found["gap/mean"] == pytest.approx(line.mean.gap)
    assert found["merging/seed_spread"] == pytest.approx(line.seed_spread.merging)
    assert (found["gap/low"], found["gap/high"]) == pytest.approx((line.mean.low, line.mean.high))
    assert "sample/merging/seed_spread" in found
    assert found["merging/mean"] != parent(seeded[seeded["seed"] == 0])["merging/mean"]
    assert not {"merging/seed_spread", "gap/low", "gap/high"} & parent(seeded[seeded["seed"] == 0]).keys()


def test_readmes_table_of_five_seeds_is_checked(
    seeded: pd.DataFrame, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = REPOSITORY / "scripts/readme_results.py"
    specification = importlib.util.spec_from_file_location("readme_results", place)
    assert specification
    assert specification.loader
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    stream = io.BytesIO()
    seeded.to_parquet(stream, index=False)
    storage = Storage(str(tmp_path / "storage"))
    storage.write("quickstart/results.parquet", stream.getvalue())
    storage.write("quickstart/results.json", b"{}")
    made = script.compact(tables(seeded))
    head, _, *rows = made.splitlines()
    assert head.startswith(
        "| mean over tasks and combinations, ± spread over 5 seeds, [95 % interval of the gap] |"
    )
    by_name = {row.split(" | ")[0].strip("| "): row for row in rows}
    cell = r"\d+\.\d ± \d\.\d / \d+\.\d / [+-]\d+\.\d<br>\[[+-]\d+\.\d, [+-]\d+\.\d\]"
    for name, wanted in script.SHOWN.items():
        count = len(re.findall(cell, by_name[name]))
        in_samples = wanted[1] in ("sup", "semi") and wanted[4] == "{}"
        assert count == (2 if wanted[0] == "ligand" and in_samples else 0), name
    cells = [
        part for row in rows for whole in row.split(" | ")[1:] for part in whole.strip("| ").split("<br>")
    ]
    assert max(map(len, cells)) <= len("95.6 ± 0.2 / 95.9 / +35.3")
    single = script.compact(tables(schema.frame(seeded[seeded["seed"] == 0])))
    assert not set("±[") & set(single), "one seed: as before there were several"
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["readme_results.py", "--check", storage.uri])
    text = f"{script.BEGIN}\n{made}\n{script.END}\n"
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    script.main()
    assert "README's table is that of these results" in capsys.readouterr().out
    (tmp_path / "README.md").write_text(text.replace(" ± ", " ± 1", 5), encoding="utf-8")
    with pytest.raises(SystemExit, match="is not that of these results"):
        script.main()
