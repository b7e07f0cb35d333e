"""`neulig ls`: what there is, with what each needs."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from neulig_ray.cli.experiments import known, load
from neulig_ray.errors import InputError
from neulig_ray.plugins import load_plugins, read_plugins


def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"neulig {command}", description=__doc__)
    parser.add_argument("what", choices=("archs", "experiments", "methods", "tasks"))
    parser.add_argument(
        "--plugins", nargs="*", default=[], metavar="PATH", help="files that add to the lists"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    load_plugins(read_plugins(given.plugins))
    rows = _experiments() if given.what == "experiments" else _rows(given.what)
    if given.json:
        json.dump(rows, sys.stdout, indent=1)
        print()
        return 0
    if given.what == "methods":
        from neulig_ray.cli.ls.methods import show

        show(rows)
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    what = given.what.removesuffix("s")  # the column of names
    for column in rows[0] if rows else ():
        table.add_column(column, overflow="fold", no_wrap=column == what)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    return 0


def _rows(what: str) -> list[dict[str, Any]]:
    from neulig_ray.api.listings import LISTINGS

    return LISTINGS[what]()


def _experiments() -> list[dict[str, Any]]:
    rows = []
    for stem, (path, folder) in sorted(known().items()):
        row = {"experiment": stem, "from": folder, "archs": "", "tasks": "", "n": "", "about": ""}
        rows.append(row)
        try:
            experiment, text = load(str(path))
        except InputError as error:
            row["about"] = f"error: {error}"
            continue
        row |= {
            "archs": ", ".join(experiment.archs),
            "tasks": str(len(experiment.tasks)),
            "n": ", ".join(map(str, experiment.n)),
            "about": text.strip().splitlines()[0] if text.strip() else "",
        }
    return rows
