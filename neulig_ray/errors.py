"""Errors that people read: each names what was given, the near misses and the remedy, and no secret."""

import difflib
from collections.abc import Iterable

from neulig_ray.redaction import redacted


class _Told(Exception):
    """Messages go to consoles, logs, results and MLflow: they never hold what an address may hide."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redacted(message))


class InputError(_Told, ValueError):
    """The input is unusable and nothing was started: the command line ends with exit status 2."""


class NotApplicable(InputError):
    """A method does not exist for these models: a comparison goes on without it and says why."""


class StageError(_Told, RuntimeError):
    """Something failed on the way; what was finished before is kept: exit status 1."""


class NotFinite(StageError):
    """A method gives NaN or infinite numbers with these options: others may be tried."""


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; the message names the training and the step."""


def unknown(
    kind: str, name: str, known: Iterable[str], remedy: str = "", *, near: Iterable[str] = ()
) -> InputError:
    """The error for a name that nothing answers to, with its near misses first.

    `near`: names that may be such a miss, but are too many to be listed.
    """
    choices = sorted(known)
    spelled = {choice.lower(): choice for choice in sorted({*choices, *near})}
    misses = [spelled[m] for m in difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(repr(n) for n in misses)}?" if misses else ""
    listing = f" Known: {', '.join(choices)}." if choices else ""
    return InputError(f"unknown {kind} {name!r}.{hint}{listing}{' ' + remedy if remedy else ''}")
