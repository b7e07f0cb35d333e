"""Run a notebook's cells in one process, as Jupyter would; no kernel, no Jupyter.

    python scripts/run_notebook.py docs/tour.ipynb            # run it, print what its cells print
    python scripts/run_notebook.py docs/tour.ipynb --write    # and keep it with its outputs

A cell that raises ends with its traceback and exit status 1. Outputs are what is printed, the value of a last
expression (text and, where it has one, HTML) and open matplotlib figures.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """The outputs of one cell, in the notebook's format; what it defines stays in the namespace."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    outputs = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        outputs.append(
            {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": shown(value)}
        )
    return outputs + [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}}
        for picture in pictures()
    ]


def shown(value: Any) -> dict[str, list[str]]:
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_") and (page := value._repr_html_()):
        data["text/html"] = page.splitlines(keepends=True)
    return data


def pictures() -> list[str]:
    """The open figures as PNG, which are closed."""
    from matplotlib import pyplot

    found = []
    for number in pyplot.get_fignums():
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, format="png", dpi=80, bbox_inches="tight")
        found.append(base64.b64encode(buffer.getvalue()).decode())
    pyplot.close("all")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    notebook = json.loads(given.notebook.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(cells, 1):
        cell["outputs"] = run_cell("".join(cell["source"]), f"cell {count}", namespace)
        cell["execution_count"] = count
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = count
            print("".join(output.get("text") or output["data"].get("text/plain", ["a picture\n"])))
    if given.write:
        given.notebook.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
