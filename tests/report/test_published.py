"""Rows that others published: read as printed, beside ours in the report, marked, and in no results table."""

import re

import pandas as pd
import pytest

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.report.html import render
from neulig_ray.report.published_rows import names, published
from neulig_ray.results import schema
from neulig_ray.tasks import TASKS

FIVE = ("gtsrb", "cifar100", "resisc45", "cifar10", "mnist")


def declares(*columns: str, theory: str = "") -> dict[str, object]:
    known = ("ViT", "CNN", "diverse origins", "ensembling")
    return {"paper": "p", **{column: column in columns for column in known}, "theory": theory}


DECLARED = {
    "archs": {"ViT-B-32-quickgelu": "ViT"},
    "methods": {
        "average": declares("ViT", "CNN", "diverse origins", "ensembling"),
        "wemoe": declares("ViT"),
        "ligand": declares("ViT", "CNN", "diverse origins", "ensembling", theory="why"),
    },
}


def frame(origin: str = "openai") -> pd.DataFrame:
    common = {"arch": "ViT-B-32-quickgelu", "origin": origin, "n": 5, "collaborators": ",".join(sorted(FIVE))}
    return schema.frame(
        [
            {**common, "method": "average", "granularity": "global", "protocol": "paper", "split": "test",
             "seed": 0, "task": task, "merging_accuracy": 61.0, "ensembling_accuracy": 64.5}
            for task in FIVE
        ]
    )  # fmt: skip


def page(made: pd.DataFrame, name: str = "neulig_table2") -> str:
    return render({"e": made}, {"e": {"configuration": {"published": name}, "declared": DECLARED}})


@pytest.mark.parametrize("name", names())
def test_files_are_whole_and_speak_of_our_tasks(name: str) -> None:
    found = published(name)
    assert found.title
    assert found.source
    assert found.family
    for table in found.tables:
        assert table.tasks <= set(TASKS)
        assert table.rows
        assert len({row.label for row in table.rows}) == len(table.rows)
        for row in table.rows:
            assert set(row.scores) in (set(), set(table.tasks))


@pytest.mark.parametrize("name", names())
def test_rows_without_a_note_agree_with_their_own_means(name: str) -> None:
    """Ours to one printed digit: a slip in copying would show."""
    digits = 0.06 if name == "fusionbench_8" else 0.011
    checked = 0
    for table in published(name).tables:
        for row in table.rows:
            if row.scores and not row.note:
                for place in (0, 1):
                    values = [cell[place] for cell in row.scores.values() if cell[place] is not None]
                    if values:
                        assert row.mean[place] == pytest.approx(sum(values) / len(values), abs=digits), (
                            row.label
                        )
                        checked += 1
    assert checked or name in ("neulig_figure3", "tall_20")


def test_an_unknown_name_is_refused_with_its_near_misses() -> None:
    with pytest.raises(InputError, match=r"unknown published rows 'neulig_tabel2'.*'neulig_table2'"):
        make_plan(Experiment(name="x", archs=("tiny-vit",), published="neulig_tabel2"))


def test_rows_stand_beside_ours_and_are_marked() -> None:
    text = page(frame())
    assert "Published, not ours: NeuLig, Table 2" in text
    rows = re.findall(r'<tr class="published">.*?</tr>', text)
    assert len(rows) == 10
    (regmean,) = [row for row in rows if ">RegMean<" in row]
    cells = re.findall(r'<td class="start(?: mean)?">([^<]*)</td>', regmean)
    # Our columns are sorted by task: cifar10, cifar100, gtsrb, mnist, resisc45, then the mean.
    assert cells == ["95.89", "70.04", "76.72", "93.19", "79.94", "83.16", ""]
    assert "arXiv 2503.01268" in text
    assert "† WEMoE: its own cells give a merging mean of 89.62" in text
    assert "61.0" in text


def test_rows_of_other_settings_stand_nowhere() -> None:
    text = page(frame(origin="laion400m_e32"))
    assert '<tr class="published">' not in text
    assert "The published rows of NeuLig, Table 2 stand beside no table here" in text


def test_without_a_name_nothing_is_published() -> None:
    text = page(frame(), name="")
    assert "Published" not in text
    assert "Which method serves what" in text


def test_ticks_are_declared_and_counts_are_measured() -> None:
    text = page(frame())
    table = text[text.index("Which method serves what") :]
    rows = dict(re.findall(r'<tr><th title="[^"]*">([a-z-]+)</th>(.*?)</tr>', table))
    average, wemoe, ligand = (
        re.findall(r"<td[^>]*>(.*?)</td>", rows[n]) for n in ("average", "wemoe", "ligand")
    )
    assert average[0] == '✓ <small>5 rows</small> <span class="published">[✓]</span>'
    assert average[1] == '✓ <span class="published">[(✓)]</span>'
    assert average[3].startswith("✓ <small>5 rows</small>")
    assert wemoe[1].startswith('<span class="none">–</span>')
    assert "<small>" not in "".join(ligand)
    assert '<td title="why">✓' in rows["ligand"]


def test_a_failed_row_is_not_counted_as_measured() -> None:
    bad = frame().assign(status=schema.failed("NaN"))
    text = page(schema.frame(bad))
    assert "<small>5 rows</small>" not in text
