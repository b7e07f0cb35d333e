"""Put a quickstart's table and plot into the README: numbers that a command of ours made.

neulig run quickstart --storage STORAGE
python scripts/readme_results.py STORAGE
"""

import re
import sys
from pathlib import Path

from neulig_ray.report.plots import png, scatter
from neulig_ray.report.summary import Table, tables
from neulig_ray.report.table import score_parts
from neulig_ray.stages.results import read_results
from neulig_ray.stages.storage import Storage

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- quickstart: scripts/readme_results.py -->", "<!-- end -->"
SHOWN = {  # the README's name of a line -> (method, alignment, granularity, buffers)
    "zero-shot origin": ("zeroshot", "", "global", ""),
    "the task's own expert": ("expert", "", "global", ""),
    "average": ("average", "", "global", None),
    "average, BatchNorm re-estimated": ("average", "", "global", "re-estimated"),
    "uniform ensemble of probabilities": ("ensemble-probability", "", "global", ""),
    "hard routing by the ligand (no merging)": ("hard-routing", "sup", "sample", ""),
    "**ligand, one model per image** (`sample`)": ("ligand", "sup", "sample", None),
    "**ligand, one model per task** (`task`)": ("ligand", "sup", "task", None),
    "ligand, batches of mixed tasks": ("ligand", "sup", "batch-mean-mixed", None),
    "ligand, one static model (`global`)": ("ligand", "sup", "global", None),
    "ligand without labels (semi), per image": ("ligand", "semi", "sample", None),
}


def cell(table: Table, wanted: tuple[str, str, str, str | None]) -> str:
    """Merging / ensembling / gap of one line's mean, or nothing where the arch has no such line."""
    method, alignment, granularity, buffers = wanted
    for line in table.lines:
        v = line.variant
        if (v.method, v.alignment, v.granularity) == (method, alignment, granularity) and (
            v.buffers in ("", "average") if buffers is None else v.buffers == buffers
        ):
            return " / ".join(score_parts(line.mean))
    return ""


def compact(shown: list[Table]) -> str:
    """One row for each line of SHOWN, one column for each arch."""
    rows = [[f"n = {shown[0].n}, mean of {len(shown[0].tasks)} tasks", *(table.arch for table in shown)]]
    rows.append(["---", *("---:" for _ in shown)])
    rows += [[name, *(cell(table, wanted) for table in shown)] for name, wanted in SHOWN.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(storage: str) -> None:
    frame, _ = read_results(Storage(storage), "quickstart")
    (ROOT / "docs" / "quickstart.png").write_bytes(png(scatter(frame[frame["n"] > 1])))
    largest = frame["n"].max()
    within = compact([table for table in tables(frame) if table.n == largest])
    readme = ROOT / "README.md"
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    text = re.sub(
        pattern, lambda _: f"{BEGIN}\n{within}\n{END}", readme.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    readme.write_text(text, encoding="utf-8")
    print(within)


if __name__ == "__main__":
    main(sys.argv[1])
