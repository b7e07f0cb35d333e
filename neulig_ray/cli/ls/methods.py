"""How `neulig ls methods` shows them."""

from typing import Any

from neulig_ray.cli.merge.flags import spelled

_MOST_SHOWN = 6  # values of a grid; of longer ones the first two and the last


def show(found: list[dict[str, Any]]) -> None:
    """Print the rows: names on the left; summary, needs, options and paper beside them, a line for each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column("method", no_wrap=True, style="bold")
    table.add_column("about", overflow="fold")
    for row in found:
        lines = [Text(row["summary"]), Text(_facts(row), style="dim")]
        if row["options"]:
            options = (_option(name, about) for name, about in row["options"].items())
            # A no-break space keeps an option's own words on one line.
            lines.append(Text("  ".join(option.replace(" ", "\N{NO-BREAK SPACE}") for option in options)))
        table.add_row(row["method"], Text("\n").join([*lines, Text()]))
    console = Console()
    console.print(table)
    console.print(
        "option=default; in brackets what experiments choose among on val. "
        "`neulig merge METHOD --help` tells more of a method that merges files."
    )


def _facts(row: dict[str, Any]) -> str:
    facts = [row["kind"]]
    if row["needs"]:
        facts.append(f"needs {', '.join(row['needs'])}")
    if row["counterpart"]:
        facts.append("with an ensemble equivalent")
    if not row["symmetric"]:
        facts.append("the order of the experts matters")
    return "; ".join([*facts, row["paper"]])


def _option(name: str, about: dict[str, Any]) -> str:
    shown = f"{name}=?" if about["required"] else f"{name}={spelled(about['default'])}"
    if grid := [spelled(value) for value in about["grid"]]:
        if len(grid) > _MOST_SHOWN:
            grid = [*grid[:2], "...", grid[-1]]
        shown += f" [{' '.join(grid)}]"
    return shown
