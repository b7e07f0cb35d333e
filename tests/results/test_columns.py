"""The results columns have one home: a line of the schema is a column in all that reads the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import samples
from conftest import REPOSITORY

from neulig_ray.evaluation.rows import new_row
from neulig_ray.results import schema
from neulig_ray.results.granularities import GRANULARITIES, OWN

# In a process of its own, since everything looks the columns up when it is imported.
WITH_A_FURTHER_COLUMN = """
import io, sys, types
from pathlib import Path
import pandas as pd

name = "neulig_ray.results.schema"
text = (Path(sys.argv[1]) / "neulig_ray/results/schema.py").read_text(encoding="utf-8")
line = '    "surprise": Column(REAL, "how odd it is", measured=True, heading="odd", digits=3),'
place = '    "alignment_weight": Column('
assert text.count(place) == 1
module = sys.modules[name] = types.ModuleType(name)
exec(compile(text.replace(place, line + chr(10) + place), name, "exec"), module.__dict__)
import neulig_ray.results
neulig_ray.results.schema = module

import samples
from neulig_ray.evaluation.rows import new_row
from neulig_ray.report import console, html
from neulig_ray.report.published_rows import Published, PublishedRow, PublishedTable
from neulig_ray.results.summary import lines, tables
from neulig_ray.results.summary_frame import summary_frame
from neulig_ray.tracking.projection import runs
from neulig_ray.tracking.records import CellRecord

key = dict(arch="tiny-rn", origin="seed-0", n=2, method="ligand", alignment="sup", split="test", seed=0)
rows = [
    {**key, "collaborators": "a,b", **new_row(task, "task", merging_accuracy=80.0, surprise=value)}
    for task, value in (("a", 0.25), ("b", 0.75))
]
failed = {**rows[0], "task": "c", "collaborators": "a,c", "status": module.failed("NaN")}
frame = module.frame([*rows, failed])
assert frame["surprise"].tolist()[:2] == [0.25, 0.75] and frame["surprise"].isna().tolist()[2]
stream = io.BytesIO()
frame.to_parquet(stream, index=False)
pd.testing.assert_frame_equal(module.frame(pd.read_parquet(stream)), frame)
assert module.frame(frame.drop(columns="surprise"))["surprise"].isna().all(), "files without it are read"
assert summary_frame(frame)["surprise"].tolist() == [0.5]
cell = CellRecord(arch="tiny-rn", origin="seed-0", n=2, seed=0, fingerprint="x")
measured = [dict((n, v) for n, v, _ in run.metrics) for run in runs("e", frame, cells=[cell])]
assert [metrics["surprise/mean"] for metrics in measured] == [0.5, 0.5]
text = console.text(frame)
assert "odd: how odd it is." in text and " odd" in text.splitlines()[2] and "0.500" in text
page = html.render({"e": frame}, {})
assert ">odd</th>" in page and "<b>odd</b>: how odd it is." in page and "<td>0.500</td>" in page
published = Published("p", "", "", "", (), (PublishedTable(
    "tiny-rn", "seed-0", 2, frozenset("abc"), (PublishedRow("theirs", (1.0, None, None), {}, "x"),)),))
(table,) = tables(frame)
body = html._table(table, published).partition("<tbody>")[2]
widths = {row.count("<td") for row in body.split("<tr")[1:] if 'class="section' not in row}
assert len(widths) == 1, widths
"""


def test_a_further_column_is_a_line_of_the_schema_and_what_fills_it(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests/helpers'}"}
    script = tmp_path / "further.py"
    script.write_text(WITH_A_FURTHER_COLUMN)
    done = subprocess.run(
        [sys.executable, script, REPOSITORY], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_row_of_an_evaluation_has_columns_of_the_schema_alone() -> None:
    row = new_row("digits", "task", num_samples=3, kl=0.5)
    assert row.keys() <= schema.COLUMNS.keys()
    assert (row["kl"], row["merging_accuracy"], row["buffers"]) == (0.5, None, "")
    with pytest.raises(ValueError, match="agrement"):
        new_row("digits", "task", agrement=1.0)


def test_the_page_on_results_has_todays_columns_and_granularities() -> None:
    text = (REPOSITORY / "docs/results.md").read_text(encoding="utf-8")
    table = text.partition("| column | meaning |\n|---|---|\n")[2].partition("\n\n")[0]
    expected = [f"| `{name}` | {column.meaning} |" for name, column in schema.COLUMNS.items()]
    assert table.splitlines() == expected, "\n".join(expected)
    shown = text.partition("| granularity |")[2].partition("\n\n")[0]
    rows = {
        name: row.split("|")[-2].strip() != "none"
        for row in shown.splitlines()[2:]
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    assert rows == {name: GRANULARITIES[name].knows_task for name in OWN}


def test_reading_a_table_and_the_report_import_no_torch(tmp_path: Path) -> None:
    samples.few_results().to_parquet(tmp_path / "results.parquet", index=False)
    script = (
        "import sys, pandas as pd; from neulig_ray.results.schema import frame;"
        "from neulig_ray.report import console, html;"
        "rows = frame(pd.read_parquet(sys.argv[1])); html.render({'x': rows}, {}); console.text(rows);"
        "print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "results.parquet"],
        capture_output=True, text=True, timeout=120, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr
