"""Finding and loading experiment files."""

import difflib
import importlib.util
import sys
from pathlib import Path

from neulig_ray.config import Experiment
from neulig_ray.errors import InputError

FOLDER = Path("experiments")


def find(given: str) -> Path:
    """The file of a path or of a stem in ./experiments; raises InputError with the near misses."""
    path = Path(given)
    if path.suffix == ".py":
        if path.is_file():
            return path
    elif (FOLDER / f"{given}.py").is_file():
        return FOLDER / f"{given}.py"
    known = sorted(file.stem for file in FOLDER.glob("*.py"))
    near = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listing = f" In ./{FOLDER}: {', '.join(known)}." if known else f" There is no folder ./{FOLDER} here."
    raise InputError(
        f"no experiment {given!r}.{hint}{listing} Give the path of a file or the stem of one there."
    )


def load(given: str) -> tuple[Experiment, str]:
    """The experiment that a file defines, and the file's docstring; raises InputError."""
    path = find(given)
    name = f"neulig_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} does not import: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"{path} defines no `experiment = Experiment(...)` (found {type(experiment).__name__})"
        )
    return experiment, module.__doc__ or ""
