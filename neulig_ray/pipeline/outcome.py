"""What a run leaves to look at: its rows, their means, its report, and what could not be made."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

from neulig_ray.errors import InputError
from neulig_ray.outputs import write_output
from neulig_ray.pipeline.stored_results import correct_file, read_correctness, read_results
from neulig_ray.results.comparison import Comparison, compare
from neulig_ray.results.correctness import Correctness
from neulig_ray.results.summary import Table, tables
from neulig_ray.results.summary_frame import summary_frame
from neulig_ray.storage.layout import TABLE, Top
from neulig_ray.storage.storage import Storage

_SHOWN: Final = ("merging", "ensembling", "gap", "combinations")


@dataclass(frozen=True, repr=False)
class Results:
    """What an experiment measured.

    `rows`: a DataFrame with one row for each accuracy of one task (docs/results.md has its columns).
    `about`: the provenance that stands in results.json: configuration, versions, seeds, failures.
    """

    name: str
    rows: pd.DataFrame
    about: Mapping[str, Any]
    storage: Storage

    @classmethod
    def read(cls, storage: Storage, name: str) -> "Results":
        """The last results of an experiment; raises InputError when the storage has none."""
        try:
            rows, about = read_results(storage, name)
        except FileNotFoundError:
            raise InputError(
                f"{name} has no results in {storage.shown}: `neulig run {name}` makes them"
            ) from None
        return cls(name, rows, about, storage)

    @functools.cached_property
    def tables(self) -> list[Table]:
        """What console and report show of the rows."""
        return tables(self.rows)

    @property
    def summary(self) -> pd.DataFrame:
        """A row for each line of the tables: means in percent, and their spread between combinations.

        Keys: arch, origin, n, method, options, alignment, granularity, buffers, batch_size, protocol, split.
        `merging`, `ensembling` and `gap` are means over combinations and tasks, `..._spread` the standard
        deviations of the combinations' own means (NaN for a single one), `gap_low` and `gap_high` the 95 %
        interval of the mean gap over test images, `absolute_gap` the mean of |gap|;
        then the means of the remaining measured columns, `combinations`, and `failures`, which is text.
        """
        return summary_frame(self.rows)

    def compare(self, first: str | Mapping[str, Any], second: str | Mapping[str, Any]) -> Comparison:
        """Two rows, image by image: the difference of their accuracies, its interval, a sign test.

        Rows are chosen by words, `"method=ligand alignment=sup granularity=task"`, or a dict of them; see
        `neulig_ray.results.comparison.compare`. Raises InputError where they choose no row or several, and
        where the two are no pairs.
        """
        files: dict[str, Mapping[str, Correctness]] = {}

        def bits(fingerprint: str) -> Mapping[str, Correctness]:
            if fingerprint not in files:
                path = correct_file(self.name, fingerprint)
                files[fingerprint] = read_correctness(self.storage, path)
            return files[fingerprint]

        return compare(self.rows, bits, first, second)

    @property
    def failures(self) -> dict[str, str]:
        """Kind and label of each artifact that could not be made -> why."""
        return dict(self.about.get("failures", {}))

    @property
    def path(self) -> str:
        """Path or URI of the table, a parquet file; results.json and the report lie beside it."""
        return self.storage.child_uri(f"{self.name}/{TABLE}")

    def report(self, path: Path | str | None = None) -> str:
        """Write the HTML page, one self-contained file, to `path` or beside the results; where it is."""
        return write_report([self], path, f"{self.name}/{Top.REPORT}")

    def __repr__(self) -> str:
        failed = len(self.failures)
        lines = [f"Results of {self.name!r}: {len(self.rows)} rows, {failed} failure{'s' * (failed != 1)}"]
        if len(self.rows):
            lines.append(self._shown().to_string())
        return "\n".join([*lines, self.path])

    def _repr_html_(self) -> str:
        failed = "".join(f"<li>{escape(what)}: {escape(why)}</li>" for what, why in self.failures.items())
        return (
            f"<p><b>{escape(self.name)}</b>: {len(self.rows)} rows in {escape(self.path)}</p>"
            + (self._shown().to_html(na_rep="") if len(self.rows) else "")
            + (f"<ul>{failed}</ul>" if failed else "")
        )

    def _shown(self) -> pd.DataFrame:
        summary = self.summary
        return summary.set_index(["arch", "origin", "n", "line"])[list(_SHOWN)].round(1)


def write_report(results: Sequence[Results], path: Path | str | None, stored: str) -> str:
    """One HTML page of several experiments: the file `path`, or `stored` in the first one's storage."""
    from neulig_ray.report.html import render  # imports matplotlib

    page = render(
        {r.name: r.rows for r in results},
        {r.name: dict(r.about) for r in results},
        {r.name: r.tables for r in results},
    )
    data = page.encode("utf-8", "replace")
    if path is not None:
        write_output(Path(path), data)
        return str(path)
    storage = results[0].storage
    storage.write(stored, data)
    return storage.child_uri(stored)
