"""What there is, with what each needs: methods, tasks and archs, for Python and for `neulig ls`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd


def list_methods() -> "pd.DataFrame":
    """Every merging method, those of plugins that were loaded included.

    Columns: method, kind, needs (besides the experts), options (name -> type, default, whether it is
    required, the grid that experiments choose from on val, and what it is about), symmetric (the order of the
    experts does not matter), counterpart (predictions can be combined as parameters are), paper, summary.

    Example:
        >>> import neulig_ray as nl
        >>> methods = nl.list_methods().set_index("method")
        >>> methods.loc["ties", "needs"]
        ['base']
        >>> methods.loc["ties", "options"]["density"]["default"]
        0.2
    """
    return _frame(method_rows())


def list_tasks() -> "pd.DataFrame":
    """Every registered task: classes, prompts, images where these are known, what it is read from.

    `train` and `test` are "drawn" where the package draws the images; `paper` says whether it has the splits
    of protocol `paper`, `stream` whether it has a captioned stream for pre-training.

    Example:
        >>> import neulig_ray as nl
        >>> nl.list_tasks().query("task == 'digits'")["classes"].tolist()
        [10]
    """
    return _frame(task_rows())


def list_archs() -> "pd.DataFrame":
    """Every declared architecture: its activation, the dimension d of its embeddings, its shipped origins.

    Any open_clip model is an arch by its open_clip name besides.

    Example:
        >>> import neulig_ray as nl
        >>> nl.list_archs().query("arch == 'tiny-vit'")["dimension"].tolist()
        [128]
    """
    return _frame(arch_rows())


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd  # which `neulig ls` does without

    return pd.DataFrame(rows)


def method_rows() -> list[dict[str, Any]]:
    """One row for each method, as JSON values.

    `symmetric`: whether the order of the experts does not matter. `counterpart`: whether predictions can be
    combined as the method combines parameters, so that there is an ensembling accuracy. An option's `grid`:
    the values among which experiments choose on val.
    """
    from neulig_ray.merging import METHODS
    from neulig_ray.merging.options import type_name

    return [
        {
            "method": method.name,
            "kind": method.kind,
            "needs": list(method.needs),
            "options": {
                option.name: {
                    "type": type_name(option.type),
                    "default": None if option.required else option.default,
                    "required": option.required,
                    "grid": list(option.grid),
                    "about": option.about.text,
                }
                for option in method.schema.values()
            },
            "symmetric": method.symmetric,
            "counterpart": method.has_ensemble_equivalent,
            "paper": method.paper,
            "summary": method.summary,
        }
        for method in METHODS.values()
    ]


def task_rows() -> list[dict[str, Any]]:
    """One row for each task, as JSON values."""
    from neulig_ray.tasks import TASKS

    return [
        {
            "task": task.name,
            "classes": len(task.class_names),
            "prompts": len(task.templates),
            "train": task.files.num_images.get("train") if task.files else "drawn",
            "test": task.files.num_images.get("test") if task.files else "drawn",
            "paper": "yes" if "paper" in task.protocols else "",
            "stream": "yes" if task.pretraining else "",
            "source": task.source,
        }
        for task in TASKS.values()
    ]


def arch_rows() -> list[dict[str, Any]]:
    """One row for each arch, as JSON values."""
    from neulig_ray.models.archs import ARCHS
    from neulig_ray.models.origin_source import shipped

    return [
        {
            "arch": arch.name,
            "activation": arch.activation,
            "dimension": arch.config["embed_dim"],
            "shipped origins": ", ".join(f"seed-{k}" for k in range(10) if shipped(arch.name, f"seed-{k}"))
            or "none",
            "description": arch.description,
        }
        for arch in ARCHS.values()
    ]


LISTINGS: Final[dict[str, Callable[[], list[dict[str, Any]]]]] = {
    "methods": method_rows,
    "tasks": task_rows,
    "archs": arch_rows,
}
