"""Errors that people read: each names what was given, the near misses and the remedy, and no secret."""

import difflib
from collections.abc import Iterable
from typing import Final

from neulig_ray.redaction import redacted

# Ten lines of a narrow terminal hold the longest message.
_MOST_LISTED: Final = 240  # characters of all names together
_NEAREST: Final = 6  # names, where all are more than that
_LONGEST: Final = 60  # characters of one name


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

    `near`: names that may be such a miss, but are not listed.
    """
    choices = sorted(known)
    listing = f" Known: {listed(name, choices)}." if choices else ""
    hint = did_you_mean(name, {*choices, *near})
    return InputError(f"unknown {kind} {shown(name)}.{hint}{listing}{' ' + remedy if remedy else ''}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'average'?", or nothing where no name is near."""
    misses = _nearest(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(shown, misses))}?" if misses else ""


def listed(name: str, known: Iterable[str]) -> str:
    """All names where they are few; of many those nearest to `name`, and how many more there are."""
    choices = sorted(known)
    if sum(len(choice) + 2 for choice in choices) <= _MOST_LISTED:
        return ", ".join(choices)
    nearest = _nearest(name, choices, n=_NEAREST, cutoff=0.0)
    return f"{', '.join(map(_short, nearest))} and {len(choices) - len(nearest)} more"


def shown(name: str) -> str:
    """A name between quotes, the middle of an endless one left out."""
    return repr(_short(name))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}...{name[-_LONGEST // 2 :]}"


def _nearest(name: str, known: Iterable[str], *, n: int, cutoff: float) -> list[str]:
    spelled = {choice.lower(): choice for choice in sorted(set(known))}
    found = difflib.get_close_matches(name.lower()[:_LONGEST], spelled, n=n, cutoff=cutoff)
    return [spelled[match] for match in found]
