"""Put a quickstart's table and plot into the README: numbers that a command of ours made.

neulig run quickstart --storage STORAGE
python scripts/readme_results.py STORAGE
python scripts/readme_results.py --check STORAGE    # exit status 1 where the README's table is another
"""

import argparse
import difflib
import re
from pathlib import Path

from neulig_ray.pipeline.stored_results import read_results
from neulig_ray.report.console import interval, score_parts, spread
from neulig_ray.report.plots import png, scatter
from neulig_ray.results.summary import Line, Table, tables
from neulig_ray.storage.storage import Storage

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- quickstart: scripts/readme_results.py -->", "<!-- end -->"
TWO_PASSES = '{"gate":"origin-blocks","top_k":"1"}'
SHOWN = {  # the README's name of a line -> (method, alignment, granularity, buffers, options)
    "zero-shot origin": ("zeroshot", "", "global", "", "{}"),
    "the task's own expert": ("expert", "", "global", "", "{}"),
    "average": ("average", "", "global", None, "{}"),
    "average, BatchNorm re-estimated": ("average", "", "global", "re-estimated", "{}"),
    "uniform ensemble of probabilities": ("ensemble-probability", "", "global", "", "{}"),
    "hard routing by the ligand (no merging)": ("hard-routing", "sup", "sample", "", "{}"),
    "**ligand, one model per image** (`sample`)": ("ligand", "sup", "sample", None, "{}"),
    "**ligand, one model per task** (`task`)": ("ligand", "sup", "task", None, "{}"),
    "ligand, batches of mixed tasks": ("ligand", "sup", "batch-mean-mixed", None, "{}"),
    "ligand, one static model (`global`)": ("ligand", "sup", "global", None, "{}"),
    "ligand without labels (semi), per image": ("ligand", "semi", "sample", None, "{}"),
    "ligand without labels (semi), per task": ("ligand", "semi", "task", None, "{}"),
    "ligand without class labels (route), per image": ("ligand", "route", "sample", None, "{}"),
    "ligand without class labels (route), per task": ("ligand", "route", "task", None, "{}"),
    "gate on one pass of the origin (route), one expert": ("ligand", "route", "sample", None, TWO_PASSES),
}
ENTROPY = "entropy of beta over log n: sup, semi, route"


Wanted = tuple[str, str, str, str | None, str]


def line(table: Table, wanted: Wanted) -> Line | None:
    """The table's line of this variant; None where the arch has no such line."""
    method, alignment, granularity, buffers, options = wanted
    for found in table.lines:
        v = found.variant
        if (v.method, v.alignment, v.granularity, v.options) == (
            method,
            alignment,
            granularity,
            options,
        ) and (v.buffers in ("", "average") if buffers is None else v.buffers == buffers):
            return found
    return None


def cell(table: Table, wanted: Wanted) -> str:
    """Merging / ensembling / gap of one line's mean, or nothing; of several seeds, spread and interval."""
    found = line(table, wanted)
    if not found:
        return ""
    merging, *others = score_parts(found.mean)
    if spread(found) and found.mean.merging == found.mean.merging:
        merging = f"{merging} ± {spread(found)}"
    shown = " / ".join([merging, *others])
    is_ligand = bool(found.variant.alignment)
    ends = interval(found.mean, ", ") if is_ligand and found.seeds > 1 else ""
    return f"{shown}<br>[{ends}]" if ends else shown


def heading(shown: list[Table]) -> str:
    """What the cells are, of tables of several seeds with spread and interval."""
    seeds = max(table.seeds for table in shown)
    more = f", ± spread over {seeds} seeds, [95 % interval of the gap]" if seeds > 1 else ""
    return f"mean over tasks and combinations{more}"


def entropies(table: Table) -> str:
    """Mean entropy of beta on the test images, of the ligands of each objective."""
    found = (line(table, ("ligand", how, "task", None, "{}")) for how in ("sup", "semi", "route"))
    return ", ".join(f"{x.others['entropy']:.2f}" for x in found if x)


def compact(shown: list[Table]) -> str:
    """One row for each line of SHOWN, one column for each arch and n, the largest n first."""
    shown = sorted(shown, key=lambda table: (-table.n, table.arch))
    rows = [[heading(shown), *(f"n = {table.n}: {table.arch}" for table in shown)]]
    rows.append(["---", *("---:" for _ in shown)])
    rows += [[name, *(cell(table, wanted) for table in shown)] for name, wanted in SHOWN.items()]
    rows.append([ENTROPY, *map(entropies, shown)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rendered(readme: str, table: str) -> str:
    """The README's text with this table."""
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    return re.sub(pattern, lambda _: f"{BEGIN}\n{table}\n{END}", readme, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("storage")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    given = parser.parse_args()
    frame, _ = read_results(Storage(given.storage), "quickstart")
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    after = rendered(before, compact(tables(frame)))
    if given.check:
        changed = list(
            difflib.unified_diff(before.splitlines(), after.splitlines(), "README.md", "results", n=0)
        )
        if changed:
            raise SystemExit("\n".join([*changed, "README's table is not that of these results"]))
        print("README's table is that of these results")
        return
    readme.write_text(after, encoding="utf-8")
    (ROOT / "docs" / "quickstart.png").write_bytes(png(scatter(frame[frame["n"] > 1])))


if __name__ == "__main__":
    main()
