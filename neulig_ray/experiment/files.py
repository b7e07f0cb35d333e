"""Finding and loading experiment files."""

import dataclasses
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import neulig_ray
from neulig_ray.errors import InputError, did_you_mean, listed, shown
from neulig_ray.experiment.config import Experiment

FOLDER = Path("experiments")
Variants = Mapping[str, Experiment]


@dataclasses.dataclass(frozen=True)
class ExperimentFile:
    """What a file defines: `experiment`, its docstring, and perhaps `variants`, each chosen by --NAME."""

    experiment: Experiment
    about: str
    variants: Variants


def folders() -> dict[str, Path]:
    """Where stems are looked for, first to last: the folder's name for people -> the folder.

    The package's own experiments lie in `_shipped` of an installed wheel, and in `experiments` beside the
    package of a checkout.
    """
    package = Path(neulig_ray.__file__).parent
    shipped = package / "_shipped"
    if not shipped.is_dir() and (package.parent / "pyproject.toml").is_file():
        shipped = package.parent / "experiments"
    return {f"./{FOLDER}": FOLDER, "the package": shipped}


def known() -> dict[str, tuple[Path, str]]:
    """Stem -> the file that it means, and the folder that this is found in."""
    found: dict[str, tuple[Path, str]] = {}
    for name, folder in folders().items():
        for file in sorted(folder.glob("*.py")):
            found.setdefault(file.stem, (file, name))
    return found


def find(given: str) -> Path:
    """The file of a path, or of a stem in ./experiments or the package; raises InputError."""
    path = Path(given)
    if path.suffix == ".py" and path.is_file():
        return path
    if path.suffix != ".py":
        for folder in folders().values():
            if (file := folder / f"{given}.py").is_file():
                return file
    stems = known()
    raise InputError(
        f"no experiment {shown(given)}.{did_you_mean(path.stem, stems)} In {' and '.join(folders())}: "
        f"{listed(path.stem, stems) or 'none'}. Give the path of a file or one of these "
        "(`neulig ls experiments`)."
    )


def load(given: str) -> tuple[Experiment, str]:
    """The experiment that a file defines, and the file's docstring; raises InputError."""
    found = load_file(given)
    return found.experiment, found.about


def load_file(given: str) -> ExperimentFile:
    """All that an experiment's file defines; raises InputError."""
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
    variants = getattr(module, "variants", {})
    if not isinstance(variants, dict) or not all(isinstance(v, Experiment) for v in variants.values()):
        raise InputError(f'{path}: `variants` is not of the form {{"name": Experiment(...)}}')
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(Experiment)}
    if taken := sorted(fields & variants.keys()):
        raise InputError(f"{path}: the variant {taken[0]!r} has the name of a field: rename it")
    return ExperimentFile(experiment, module.__doc__ or "", variants)
