"""Results table, summaries, console table, plots and the HTML page."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import samples
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from neulig_ray.errors import InputError, StageError
from neulig_ray.report import console as table
from neulig_ray.report import html, plots
from neulig_ray.results import schema
from neulig_ray.results.granularities import GRANULARITIES
from neulig_ray.results.summary import lines, origin_group, tables
from neulig_ray.results.variants import Variant, labels


def row(**values: object) -> dict[str, object]:
    base = {"arch": "tiny-rn", "origin": "seed-0", "n": 2, "collaborators": "a,b", "method": "ligand",
            "alignment": "sup", "granularity": "task", "seed": 0, "task": "a", "split": "test",
            "merging_accuracy": 80.0, "ensembling_accuracy": 82.0}  # fmt: skip
    return base | values


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return samples.results()


class TestSchema:
    def test_columns_are_the_fixed_interface_in_their_order(self, results: pd.DataFrame) -> None:
        key = (
            "arch origin n collaborators method options alignment granularity buffers batch_size order_seed "
        )
        key += "seed protocol task split expert_seed"
        values = (
            "num_samples merging_accuracy ensembling_accuracy gap matched_ensembling_accuracy agreement kl "
        )
        values += (
            "entropy routing_accuracy alignment_weight learning_rate parameters seconds peak_memory_bytes "
        )
        values += "status fingerprint gap_low gap_high agreement_unsure"
        assert list(results.columns) == key.split() + values.split()
        assert {name: str(dtype) for name, dtype in results.dtypes.items()} == {
            name: column.dtype for name, column in schema.COLUMNS.items()
        }

    def test_what_is_left_out_is_empty_and_the_gap_is_filled_in(self) -> None:
        made = schema.frame([row()]).iloc[0]
        assert (made["buffers"], made["options"], made["status"]) == ("", "{}", "ok")
        assert pd.isna(made["batch_size"])
        assert np.isnan(made["kl"])
        assert made["gap"] == pytest.approx(2.0)

    def test_the_order_of_the_rows_does_not_matter(self, results: pd.DataFrame) -> None:
        shuffled = results.sample(frac=1, random_state=0)
        pd.testing.assert_frame_equal(schema.frame(shuffled), results)

    def test_a_table_survives_parquet(self, results: pd.DataFrame, tmp_path: "object") -> None:
        path = f"{tmp_path}/results.parquet"
        results.to_parquet(path, index=False)
        pd.testing.assert_frame_equal(schema.frame(pd.read_parquet(path)), results)

    def test_two_rows_with_one_key_are_named(self) -> None:
        with pytest.raises(StageError, match=r"repeat the key.*collaborators=a,b, method=ligand.*task=a"):
            schema.frame([row(), row(merging_accuracy=1.0)])

    def test_a_column_of_the_key_that_came_later_may_be_missing(self, results: pd.DataFrame) -> None:
        made = schema.frame(results.drop(columns="expert_seed"))
        assert made["expert_seed"].isna().all()
        pd.testing.assert_frame_equal(made, results)
        with pytest.raises(StageError, match="1 results repeat the key"):
            schema.frame([row(), row()])
        pair = schema.frame([row(expert_seed=1), row(expert_seed=0)])
        assert pair["expert_seed"].tolist() == [0, 1]
        with pytest.raises(StageError, match=r"repeat the key.*expert_seed=1"):
            schema.frame([row(expert_seed=1), row(expert_seed=1)])

    def test_an_accuracy_beyond_100_is_named(self) -> None:
        with pytest.raises(StageError, match=r"merging_accuracy 101\.0 is no percentage"):
            schema.frame([row(merging_accuracy=101.0)])

    def test_an_unknown_column_names_its_near_miss(self) -> None:
        with pytest.raises(InputError, match="merging_accuracy"):
            schema.frame([row(merging_acuracy=1.0)])

    def test_a_failed_row_keeps_its_reason_and_no_values(self) -> None:
        made = schema.frame([row(status=schema.failed("loss became NaN"))]).iloc[0]
        assert made["status"] == "failed: loss became NaN"
        assert np.isnan(made[list(schema.MEASURED)].astype(float)).all()

    @given(
        st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=4)
    )
    def test_options_are_canonical(self, options: dict[str, object]) -> None:
        text = schema.canonical_options(options)
        assert json.loads(text) == options
        assert schema.canonical_options(dict(reversed(options.items()))) == text
        assert schema.canonical_options(text) == text

    def test_no_rows_make_an_empty_table(self) -> None:
        assert schema.frame([]).empty
        assert list(schema.frame([]).columns) == list(schema.empty().columns)


class TestSummary:
    def test_means_by_hand(self) -> None:
        made = schema.frame(
            [
                row(task="a", merging_accuracy=80.0, ensembling_accuracy=82.0),
                row(task="b", merging_accuracy=61.0, ensembling_accuracy=60.0),
                row(collaborators="a,c", task="a", merging_accuracy=70.0, ensembling_accuracy=76.0),
                row(collaborators="a,c", task="c", merging_accuracy=50.0, ensembling_accuracy=50.0),
            ]
        )
        (line,) = lines(made)
        assert line.scores["a"].merging == pytest.approx(75.0)  # over both combinations that contain it
        assert line.scores["b"].merging == pytest.approx(61.0)
        assert line.mean.merging == pytest.approx((80 + 61 + 70 + 50) / 4)
        assert line.mean.gap == pytest.approx((2 - 1 + 6 + 0) / 4)
        assert line.absolute_gap == pytest.approx((2 + 1 + 6 + 0) / 4)
        assert line.spread.merging == pytest.approx(np.std([70.5, 60.0], ddof=1))
        assert line.combinations == 2

    def test_repeats_are_averaged_before_combinations(self) -> None:
        orders = [row(order_seed=i, merging_accuracy=x) for i, x in enumerate((10.0, 20.0, 60.0))]
        (line,) = lines(
            schema.frame([*orders, row(collaborators="a,c", order_seed=0, merging_accuracy=50.0)])
        )
        assert line.scores["a"].merging == pytest.approx((30 + 50) / 2)

    @settings(max_examples=8, deadline=None)
    @given(st.integers(0, 10_000))
    def test_lines_agree_with_plain_python(self, seed: int) -> None:
        frame = samples.results(("tiny-rn",), ("digits", "signs", "shapes"), (2,), seed)
        for line in lines(frame):
            v = line.variant
            own = [
                r
                for r in frame.to_dict("records")
                if r["method"] == v.method
                and (r["alignment"], r["granularity"], r["buffers"])
                == (v.alignment, v.granularity, v.buffers)
            ]
            cells: dict[tuple[str, str], list[float]] = {}
            for r in own:
                cells.setdefault((r["collaborators"], r["task"]), []).append(r["merging_accuracy"])
            expected = np.mean([np.mean(values) for values in cells.values()])
            assert line.mean.merging == pytest.approx(expected, nan_ok=True)

    def test_zero_shot_and_experts_stand_in_every_table(self, results: pd.DataFrame) -> None:
        made = tables(results)
        assert [(t.arch, t.n) for t in made] == list(itertools.product(samples.ARCHS, (2, 5)))
        for found in made:
            assert [x.variant.method for x in found.lines[:2]] == ["zeroshot", "expert"]
            assert found.lines[1].scores["digits"].merging == samples.EXPERT["digits"]
            assert found.tasks == samples.TASKS

    def test_an_experiment_without_combinations_yet_has_a_table(self, results: pd.DataFrame) -> None:
        (made,) = tables(results[(results["n"] < 2) & (results["arch"] == "tiny-vit")])
        assert (made.n, len(made.lines)) == (1, 2)

    def test_mixed_origins_are_one_table_with_both_origins_references(self) -> None:
        singles = [
            row(n=1, origin=origin, collaborators="a", method="expert", alignment="", granularity="global",
                merging_accuracy=accuracy, ensembling_accuracy=None)
            for origin, accuracy in (("seed-0", 90.0), ("seed-1", 80.0))
        ]  # fmt: skip
        mixed = [row(origin="seed-0,seed-1", collaborators="a@seed-0,b@seed-1"),
                 row(origin="seed-1,seed-0", collaborators="a@seed-1,b@seed-0")]  # fmt: skip
        (made,) = tables(schema.frame([*singles, *mixed]))
        assert made.origin == origin_group("seed-1,seed-0") == "seed-0,seed-1"
        assert made.combinations == 2
        assert made.lines[0].mean.merging == pytest.approx(85.0)

    def test_failures_are_named_and_the_rest_is_averaged(self) -> None:
        frame = schema.frame(
            [row(status=schema.failed("loss became NaN")), row(task="b", merging_accuracy=70.0)]
        )
        (made,) = tables(frame)
        assert made.failures == ("ligand sup task of a,b: loss became NaN",)
        assert made.lines[0].mean.merging == 70.0

    def test_methods_stand_where_their_rows_say_whatever_they_are_called(self) -> None:
        plain = {"alignment": "", "granularity": "global", "ensembling_accuracy": None}
        frame = schema.frame(
            [
                row(**plain, method="zebra"),
                row(**plain | {"ensembling_accuracy": 61.0}, method="yak"),
                row(**plain | {"ensembling_accuracy": 61.0, "merging_accuracy": None}, method="ant"),
                row(**plain | {"granularity": "task"}, method="bee"),
                row(**plain, method="cow", n=1, collaborators="a"),
                row(**plain, method="dog", n=0, collaborators=""),
                row(**plain, method="joint"),
                row(**plain, method="ensemble-vote", status=schema.failed("no images")),
                row(**plain, method="average", status=schema.failed("no images")),
                row(**plain | {"alignment": "sup", "granularity": "sample"}, method="elk"),
                *(row(method="fox", granularity=name) for name in ("global", "sample")),
            ]
        )
        (made,) = tables(frame)
        found = [(x.variant.section, x.variant.method, label) for x, label in zip(
            made.lines, labels([x.variant for x in made.lines]), strict=True)]  # fmt: skip
        assert found == [
            ("reference", "dog", "dog"),
            ("reference", "cow", "cow"),
            ("reference", "joint", "joint"),
            ("merging", "yak", "yak"),
            ("merging", "average", "average"),
            ("merging", "zebra", "zebra"),
            ("merging, several models", "bee", "bee"),
            ("ensembles, uniform", "ant", "ant"),
            ("ensembles, uniform", "ensemble-vote", "vote"),
            ("ligand sup", "fox", "fox sample"),
            ("ligand sup", "fox", "fox global"),
            ("ligand sup", "elk", "elk"),
        ]
        assert made.lines[-1].variant.title == "elk sup"
        assert made.lines[-2].variant.title == "fox sup global"

    def test_labels_tell_batch_sizes_apart_only_where_they_differ(self) -> None:
        made = [
            Variant("ligand", granularity="batch-mean", alignment="sup", batch_size=size)
            for size in (32, 128)
        ]
        assert labels(made) == ["batch-mean batch 32", "batch-mean batch 128"]
        assert labels(made[:1]) == ["batch-mean"]

    def test_every_granularity_of_the_vocabulary_is_explained(self) -> None:
        assert set(GRANULARITIES) == set(samples.GRANULARITIES)


class TestConsoleTable:
    @pytest.mark.parametrize("width", [80, 100, 120, 160, 200])
    def test_it_fits_and_no_number_is_cut(self, results: pd.DataFrame, width: int) -> None:
        text = table.text(results, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        numbers = re.findall(r"\d+\.\d", text)
        for found in tables(results):
            for line in found.lines:
                assert table.number(line.mean.ensembling) in ("", *numbers)
        if width >= 160:
            assert re.search(r"task\*\s+\d\d\.\d/\d\d\.\d/[+-]\d+\.\d", text)

    def test_more_tasks_than_fit_fold_into_more_lines(self) -> None:
        tasks = tuple(f"task{i}" for i in range(7))
        frame = schema.frame([row(task=task, collaborators=",".join(tasks), n=7) for task in tasks])
        assert max(map(len, table.text(frame, 100).splitlines())) <= 100

    def test_failed_rows_stand_below_the_table(self) -> None:
        text = table.text(schema.frame([row(), row(task="b", status=schema.failed("loss became NaN"))]), 100)
        assert "! ligand sup task of a,b: loss became NaN" in text
        assert "task* !" in text

    def test_markdown_has_one_row_to_a_line(self, results: pd.DataFrame) -> None:
        (made, *_) = tables(results)
        text = table.markdown([made])
        rows = [part for part in text.splitlines() if part.startswith("|")]
        sections = {x.variant.section for x in made.lines}
        assert len(rows) == 2 + len(made.lines) + len(sections)
        columns = {len(re.findall(r"(?<!\\)\|", part)) for part in rows}
        assert len(columns) == 1

    @pytest.mark.parametrize(
        ("value", "shown"), [(-0.04, "+0.0"), (0.04, "+0.0"), (-1.26, "-1.3"), (12.0, "+12.0")]
    )
    def test_gaps_have_a_sign_and_no_negative_zero(self, value: float, shown: str) -> None:
        assert table.number(value, sign=True) == shown


@pytest.fixture(scope="module")
def page(results: pd.DataFrame) -> str:
    broken = results.copy()
    one = broken[(broken["method"] == "ligand") & (broken["granularity"] == "task")].index[0]
    broken.loc[one, "status"] = schema.failed("<loss> & NaN")
    about = {
        "command": "neulig run quickstart",
        "hardware": {"cpus": 2, "gpus": ["<GPU>"]},
        "git_commit": "0abc",
    }
    return html.render({"quickstart": broken, "other": results.iloc[:0]}, {"quickstart": about})


class TestHtml:
    def test_nothing_is_fetched_from_elsewhere(self, page: str) -> None:
        assert "<script" not in page
        assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", re.sub(r"xlink:href=\"#", "", page))
        assert "@import" not in page
        assert not re.search(r"url\((?!#)", page)

    def test_every_number_of_the_tables_is_on_the_page(self, page: str, results: pd.DataFrame) -> None:
        cells = set(re.findall(r">(\d+\.\d)<", page))
        for found in tables(results)[1:]:  # the first has the broken row
            for line in found.lines:
                assert table.number(line.mean.merging) in cells | {""}

    def test_plots_captions_and_experiments_are_there(self, page: str) -> None:
        assert page.count("<svg") == 2
        assert "tiny-rn · origin seed-0 · n = 5" in page
        assert "means over 10 combinations" in page
        assert "No results yet." in page
        for name in GRANULARITIES:
            assert f"<th>{name}</th>" in page

    def test_text_from_outside_is_escaped(self, page: str) -> None:
        assert "&lt;loss&gt; &amp; NaN" in page
        assert "<loss>" not in page
        assert "<GPU>" not in page

    def test_inline_plots_take_the_colour_of_the_page(self, page: str) -> None:
        assert "currentColor" in page
        assert "#010203" not in page


class TestPlots:
    def test_the_scatter_has_a_point_for_each_task_of_each_combination(self, results: pd.DataFrame) -> None:
        figure = plots.scatter(results)
        assert [axes.get_title() for axes in figure.axes] == list(samples.ARCHS)
        points = {c.get_label(): len(c.get_offsets()) for c in figure.axes[0].collections if c.get_label()}
        assert points["ligand sup · task"] == 10 * 2 + 5
        assert points["average · BN re-estimated"] == 10 * 2 + 5
        assert len([name for name in points if name.startswith(("ligand", "average"))]) == 8

    def test_the_diagonal_is_drawn_corner_to_corner(self, results: pd.DataFrame) -> None:
        axes = plots.scatter(results[results["arch"] == "tiny-vit"]).axes[0]
        (x, y) = axes.lines[0].get_data()
        assert list(x) == list(y) == list(axes.get_xlim()) == list(axes.get_ylim())

    def test_png_and_svg_files(self, results: pd.DataFrame) -> None:
        figure = plots.gaps(results[results["arch"] == "tiny-vit"])
        assert plots.png(figure).startswith(b"\x89PNG")
        assert plots.svg(figure) == plots.svg(figure)
        assert plots.svg(figure).startswith("<svg")


HOMES: dict[str, dict[str, str | None]] = {
    "45-null-device": {"HOME": "/dev/null"},
    "missing": {"HOME": "/no/such/home"},
    "unset": {"HOME": None},
    "empty": {"HOME": ""},
    "settings-below-a-file": {"MPLCONFIGDIR": "/dev/null/matplotlib"},
    "caches-below-a-file": {"XDG_CACHE_HOME": "/dev/null/x", "XDG_CONFIG_HOME": "/dev/null/y"},
}

# Each environment in a child of its own, forked before matplotlib is imported.
_IN_HOMES = """
import json, os, sys, traceback
from samples import few_results; from neulig_ray.report import plots
from neulig_ray.tasks.drawing.fonts import TASK_FONTS, glyphs
import PIL.ImageDraw, PIL.ImageFont
assert "matplotlib" not in sys.modules
frame = few_results()
frame = frame[frame["task"] == "digits"]
for name, changes in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        status = 1
        try:
            said = os.open(name, os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1), os.dup2(said, 2)
            for key, value in changes.items():
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value
            glyphs(TASK_FONTS[:1], "a")
            plots.svg(plots.scatter(frame))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    assert os.wait()[1] == 0, name
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what was printed under each of HOMES."""
    folder = tmp_path_factory.mktemp("homes")
    environment = {**os.environ, "TMPDIR": str(folder)}
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    environment["PYTHONPATH"] = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests/helpers")))
    command = [sys.executable, "-c", _IN_HOMES, json.dumps(HOMES)]
    subprocess.run(command, env=environment, cwd=folder, capture_output=True, timeout=120)
    return folder


@pytest.mark.parametrize("home", HOMES)
def test_no_home_is_no_matter(said: Path, home: str) -> None:
    """matplotlib tells where else its caches are, in two warnings at its import."""
    assert (said / home).read_text() == ""
