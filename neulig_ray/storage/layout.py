"""What lies at the top of a storage beside the experiments' folders, and so is no experiment's name."""

import re
from enum import StrEnum
from typing import Final


class Top(StrEnum):
    """Every name that this package, Ray or MLflow uses at the top of a storage."""

    ARTIFACTS = "artifacts"
    RAY = "ray"
    CLAIMS = ".claims"
    REPORT = "report.html"
    DATABASE = "mlflow.db"  # with sqlite's own files, whose names begin so
    MLFLOW_ARTIFACTS = "mlflow-artifacts"


TABLE, ABOUT = "results.parquet", "results.json"  # of an experiment, and of history/FINGERPRINT in its folder
CORRECT = "correct"  # beside the last table: what each row got right, a file for each evaluation
FOLDERS: Final = (Top.ARTIFACTS, Top.RAY, Top.MLFLOW_ARTIFACTS)
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?")  # some file servers drop a last dot
LONGEST: Final = 100  # characters of a name
_MLFLOWS_OWN: Final = "Default"  # the experiment that every tracking store has from the start


def is_ours(name: str) -> bool:
    """Whether a name at the top of a storage is one of `Top`, or one of sqlite's beside the database."""
    return name in set(Top) or name.startswith(Top.DATABASE)


def reserved(name: str) -> bool:
    """Whether an experiment may not have this name. Case is no difference: file systems differ."""
    folded = name.casefold()
    return any(is_ours(own) for own in (name, folded)) or folded == _MLFLOWS_OWN.casefold()


def usable_name(name: str) -> bool:
    """Whether an experiment may have this name: it names a folder at the top of the storage."""
    return _NAME.fullmatch(name) is not None and len(name) <= LONGEST and not reserved(name)
