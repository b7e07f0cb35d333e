"""The runs that an experiment amounts to: which there are, what they hold, when they count as changed."""

from collections import Counter

import pandas as pd
import pytest
import samples

from neulig_ray.errors import StageError
from neulig_ray.results.schema import failed, skipped
from neulig_ray.results.summary import lines
from neulig_ray.tracking import projection
from neulig_ray.tracking.records import TrialRecord


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return samples.few_results()


def test_one_parent_for_each_cell_and_each_family_of_experts(results: pd.DataFrame) -> None:
    made = projection.runs("demo", **samples.everything(results))
    parents = [run.name for run in made if not run.parent]
    assert parents == ["experts tiny-rn seed-0", "tiny-rn seed-0 n=2"]
    assert {run.parent for run in made} - {""} <= {run.key for run in made}
    assert len({run.key for run in made}) == len(made)
    stages = Counter(run.tags.get("stage") for run in made)
    assert stages == {"search": 4, "finetune": 4, "evaluate": 1 + samples.VARIANTS, None: 1}


def test_a_child_has_the_metrics_of_its_line(results: pd.DataFrame) -> None:
    made = {run.name: run for run in projection.runs("demo", **samples.everything(results))}
    line = next(x for x in lines(results) if x.variant.title == "ligand semi batch-mean-mixed")
    metrics = {name: value for name, value, _ in made[line.variant.title].metrics}
    assert metrics["merging/digits"] == pytest.approx(line.scores["digits"].merging)
    assert metrics["gap/mean"] == pytest.approx(line.mean.gap)
    assert metrics["ensembling/mean"] == pytest.approx(line.mean.ensembling)
    assert "ensembling/mean" not in {name for name, *_ in made["zeroshot"].metrics}


def test_an_evaluations_time_counts_once_however_many_rows_it_has(results: pd.DataFrame) -> None:
    averages = (results["method"] == "average").astype(bool)
    ones = ("average " + results["collaborators"] + results["n"].astype(str)).where(averages, "other")
    timed = results.assign(fingerprint=ones, seconds=averages.map({True: 30.0, False: 0.0}))
    made = {run.name: run for run in projection.runs("demo", **samples.everything(timed) | {"trials": []})}
    evaluations = len(set(ones[averages & (results["n"] == 2)]))
    assert 0 < evaluations < sum(averages & (results["n"] == 2))
    assert made["average"].seconds == made["tiny-rn seed-0 n=2"].seconds == 30.0 * evaluations


def test_the_parent_shows_its_selected_ligand_at_task_and_sample(results: pd.DataFrame) -> None:
    (parent,) = [
        r for r in projection.runs("demo", **samples.everything(results)) if r.name == "tiny-rn seed-0 n=2"
    ]
    metrics = {name: value for name, value, _ in parent.metrics}
    by_title = {x.variant.title: x.mean for x in lines(results)}
    assert parent.tags["alignment"] == "sup"
    for level in ("merging", "ensembling", "gap"):
        assert metrics[f"{level}/mean"] == pytest.approx(getattr(by_title["ligand sup task"], level))
        assert metrics[f"sample/{level}/mean"] == pytest.approx(getattr(by_title["ligand sup sample"], level))
        semi = getattr(by_title["ligand semi sample"], level)
        assert metrics[f"semi/sample/{level}/mean"] == pytest.approx(semi)


def test_content_follows_what_is_shown_and_nothing_else(results: pd.DataFrame) -> None:
    def contents(frame: pd.DataFrame) -> dict[str, str]:
        return {run.key: run.content for run in projection.runs("demo", **samples.everything(frame))}

    first = contents(results)
    assert contents(results.sample(frac=1, random_state=0)) == first
    changed = results.copy()
    place = changed.index[(changed["method"] == "ensemble-vote")][0]
    changed.loc[place, "ensembling_accuracy"] = 1.0
    differing = [key for key, content in contents(changed).items() if first[key] != content]
    assert len(differing) == 2  # its own run and the parent with the table


def test_expert_seeds_count_where_they_alone_tell_rows_apart(results: pd.DataFrame) -> None:
    """Databases of results without the column, or of one seed, are not written again because it came."""

    def parent(frame: pd.DataFrame) -> str:
        return next(
            r for r in projection.runs("demo", **samples.everything(frame)) if r.tags["n"] == "2"
        ).content

    first = parent(results.drop(columns="expert_seed"))
    assert parent(results) == first
    own = results["n"] > 0
    assert parent(results.assign(expert_seed=own.astype("Int64"))) == first, "0 for what is not of seed 1"
    several = [results.assign(expert_seed=seed) for seed in (0, 1)]
    again = pd.concat([several[0], several[1].assign(expert_seed=2)])
    assert len({first, parent(pd.concat(several)), parent(again)}) == 3


def test_rows_without_a_cell_are_named(results: pd.DataFrame) -> None:
    with pytest.raises(StageError, match=r"'tiny-rn', 'seed-0', 2.*belong to no cell"):
        projection.runs("demo", results)


def test_a_failed_trial_and_a_failed_method_are_failed_runs(results: pd.DataFrame) -> None:
    broken = results.copy()
    gone = (broken["method"] == "average") & (broken["buffers"] == "average")
    broken.loc[gone, "status"] = failed("singular")
    trial = TrialRecord(arch="tiny-rn", origin="seed-0", n=2, seed=0, alignment="sup", learning_rate=0.1,
                  alignment_weight=0.0, status=failed("loss became NaN"), fingerprint="f")  # fmt: skip
    made = {r.name: r for r in projection.runs("demo", broken, [trial, trial], [], samples.cells(results))}
    assert made["search sup lr=0.1 alpha=0"].status == "FAILED"
    assert made["average"].status == "FAILED"
    assert "singular" in made["average"].tags["status"]
    assert made["average BN re-estimated"].status == "FINISHED"


def test_a_method_that_does_not_exist_for_the_models_is_not_a_failed_run(results: pd.DataFrame) -> None:
    left_out = results.copy()
    gone = (left_out["method"] == "average") & (left_out["buffers"] == "average")
    left_out.loc[gone, "status"] = skipped("it needs one base")
    made = {r.name: r for r in projection.runs("demo", left_out, [], [], samples.cells(results))}
    assert made["average"].status == "FINISHED"
    assert "skipped: it needs one base" in made["average"].tags["status"]


def test_long_curves_are_thinned_and_kept_whole_in_the_table(results: pd.DataFrame) -> None:
    long = samples.curves(results, 450)
    (run,) = [r for r in projection.runs("demo", results.iloc[:0], [], long[:1]) if r.parent]
    steps = [step for name, _, step in run.metrics if name == "loss"]
    assert len(steps) <= 101
    assert (steps[0], steps[-1]) == (0, 449)
    assert len(run.tables["epochs.json"]) == 450


def test_a_reference_of_a_plugin_is_tagged_with_the_number_of_its_models(results: pd.DataFrame) -> None:
    mine = results[results["method"] == "expert"].assign(method="mine")
    made = projection.runs("demo", **samples.everything(pd.concat([results, mine])))
    tags = {(run.tags["method"], run.tags["n"]) for run in made if run.name in ("mine", "zeroshot")}
    assert tags == {("mine", "1"), ("zeroshot", "0")}
