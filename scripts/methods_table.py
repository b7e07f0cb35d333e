"""Put the table of methods, as the methods declare themselves, into the README and docs/methods.md.

python scripts/methods_table.py
"""

import re
from pathlib import Path

from neulig_ray.cli.merge.flags import spelled
from neulig_ray.merging import METHODS, Method
from neulig_ray.merging.declare.method import PredictingMethod

ROOT = Path(__file__).parent.parent
FILES = ("README.md", "docs/methods.md")
BEGIN, END = "<!-- methods: scripts/methods_table.py -->", "<!-- end of methods -->"


def short(method: Method) -> str:
    """One line for the README."""
    equivalent = "yes" if method.has_ensemble_equivalent else ""
    cells = [f"`{method.name}`", method.kind, ", ".join(method.needs), equivalent, method.summary]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def full(method: Method) -> str:
    """A section: what it is, what it needs, its options."""
    lines = [f"### `{method.name}`", "", f"{method.summary} Paper: {method.paper}."]
    facts = [f"kind: {method.kind}"]
    if method.needs:
        facts.append(f"needs {', '.join(method.needs)}")
    if not method.symmetric:
        facts.append("the order of the experts matters")
    if not isinstance(method, PredictingMethod):
        facts.append(
            "has a prediction-level counterpart"
            if method.has_ensemble_equivalent
            else "no counterpart: Ens. and Gap stay empty"
        )
    lines += ["", "; ".join(facts) + "."]
    if method.schema:
        lines += ["", "| option | default | chosen on val from | meaning |", "| --- | --- | --- | --- |"]
        for option in method.schema.values():
            grid = ", ".join(map(spelled, option.grid))
            choices = f" ({', '.join(map(str, option.choices))})" if option.choices else ""
            default = "required" if option.required else spelled(option.default)
            lines.append(f"| `{option.name}` | {default} | {grid} | {option.about.text}{choices} |")
    return "\n".join(lines)


def rendered(file: str) -> str:
    """The whole file with the tables of today's methods."""
    methods = [m for m in METHODS.values() if METHODS.module(m.name).startswith("neulig_ray.")]
    if file == "README.md":
        head = [
            "| method | kind | needs besides the experts | counterpart | |",
            "| --- | --- | --- | --- | --- |",
        ]
        made = "\n".join([*head, *map(short, methods)])
    else:
        made = "\n\n".join(map(full, methods))
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    return re.sub(
        pattern,
        lambda _: f"{BEGIN}\n{made}\n{END}",
        (ROOT / file).read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for name in FILES:
        (ROOT / name).write_text(rendered(name), encoding="utf-8")
