"""Which of the things in a file are its weights, and their names: a state dict, or one of several."""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

from .objects import (
    DEEPEST,
    LONGEST_NAMED,
    LONGEST_NAMES,
    MOST_NAMED,
    MOST_TENSORS,
    Inert,
    Tensor,
    Unreadable,
)

# Where training programs keep the state dict inside what they save; the first of these is taken.
NESTS = ("state_dict", "model_state_dict", "model", "module")
# What the keys of a training's own state have in their names, and those of whole models.
_TRAINING = ("optim", "sched", "scaler", "rng")
_MODELS = ("model", "state", "ema", "param", "weight", "net", "module", "student", "teacher", "swa", "avg")


def parts_of(found: Any) -> dict[str, Any]:
    """What a dict, or a module's state dict, has under names: tensors, and what may hold more of them."""
    if isinstance(found, Inert):
        state = found.state if isinstance(found.state, dict) else {}
        hidden = state.get("_non_persistent_buffers_set")
        hidden = {name for name in hidden if isinstance(name, str)} if isinstance(hidden, (set, list)) else ()
        held = [state.get(name) for name in ("_parameters", "_modules", "_buffers")]
        pairs = [
            (name, value)
            for number, part in enumerate(held)
            if isinstance(part, dict)
            for name, value in part.items()
            if number < 2 or name not in hidden
        ]
    else:
        pairs = list(found.items()) if isinstance(found, dict) else []
    return {name: value for name, value in pairs if isinstance(name, str)}


class TensorNames:
    """The tensors below an object, under the names of its state dict. Each object is looked at once."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # -1 while its parts are counted
        self._held: list[Any] = []  # so that no other object takes an id that is known

    def count(self, found: Any, depth: int = 0) -> int:
        """How many names lead to a tensor; one that two names lead to counts twice, as in a state dict."""
        if isinstance(found, Tensor):
            return 1
        if not isinstance(found, (dict, Inert)):
            return 0
        if (known := self._counts.get(id(found))) is not None:
            if known < 0:
                raise Unreadable("it holds a dict or module that holds itself")
            return known
        if depth > DEEPEST:
            raise Unreadable(f"its dicts or modules are nested more than {DEEPEST} levels deep")
        self._counts[id(found)] = -1
        self._held.append(found)
        total = sum(self.count(value, depth + 1) for value in parts_of(found).values())
        self._counts[id(found)] = total
        return total

    def flat(self, found: Any, prefix: str = "") -> dict[str, Tensor]:
        """Name -> tensor. Raises Unreadable for more than a file of weights has."""
        if (count := self.count(found)) > MOST_TENSORS:
            raise Unreadable(f"it gives {count} names to tensors, and at most {MOST_TENSORS} are read")
        named: dict[str, Tensor] = {}
        self._room = LONGEST_NAMES
        self._flatten(found, prefix, named)
        return named

    def _flatten(self, found: Any, prefix: str, named: dict[str, Tensor]) -> None:
        for name, value in parts_of(found).items():
            full = f"{prefix}{name}"
            if not self.count(value):
                continue
            if not isinstance(value, Tensor):
                self._flatten(value, f"{full}.", named)
                continue
            self._room -= len(full)
            if self._room < 0:
                raise Unreadable(f"the names of its tensors take more than {LONGEST_NAMES} letters")
            if full in named:
                raise Unreadable(f"it has two tensors of the name {full[:LONGEST_NAMED]!r}")
            named[full] = value


class Choice(NamedTuple):
    """Which part of a file its weights are: the keys that lead there, and the keys that were passed over."""

    found: Any
    key: str
    others: tuple[str, ...]


def choose(found: Any, wanted: str, names: TensorNames) -> Choice:
    """The weights in what a program saved: a state dict, a module, or one of these under a key.

    Two parts that are models of one kind (`model` and `ema`) are refused unless `wanted` names one. Where
    there is one model alone, it is taken whatever `wanted` says.
    """
    key, others = "", []
    while isinstance(found, dict):
        parts = parts_of(found)
        held = {
            name: value
            for name, value in parts.items()
            if not isinstance(value, Tensor)
            and names.count(value)
            and not any(word in name.lower() for word in _TRAINING)
        }
        fitting = [name for name in held if f"{wanted}.".startswith(f"{name}.")]
        chosen: str | None = max(fitting, key=len, default=None)
        if chosen is not None:
            wanted = wanted.removeprefix(chosen).removeprefix(".")
        elif wanted and len(held) > 1:
            known = ", ".join(repr(f"{key}{name}"[:LONGEST_NAMED]) for name in list(held)[:MOST_NAMED])
            raise Unreadable(f"it has no weights under {wanted!r}: --weights-key takes one of {known}")
        elif twins := _twins(held, names):
            shown = " and ".join(repr(f"{key}{name}"[:LONGEST_NAMED]) for name in twins[:MOST_NAMED])
            raise Unreadable(f"it holds several models, {shown}: choose one with --weights-key KEY")
        else:
            loose = any(isinstance(value, Tensor) and value.shape for value in parts.values())
            known_nests = [name for name in NESTS if name in held]
            if known_nests:
                chosen = known_nests[0]
            elif len(held) == 1 and not loose:
                (chosen,) = held
        if chosen is None:
            break
        others += [f"{key}{name}" for name in parts if name != chosen and names.count(parts[name])]
        found, key = held[chosen], f"{key}{chosen}."
    return Choice(found, key.removesuffix("."), tuple(others))


def _twins(held: Mapping[str, Any], names: TensorNames) -> list[str]:
    """Two or more parts that are models of one kind: most of their tensors have one name and shape.

    Parts of one model may be alike too, as encoder and decoder are: one of them is called as models are.
    """
    kinds = {}
    for part, value in held.items():
        flat = names.flat(value)
        ends = ((".".join(name.split(".")[-2:]), tensor.shape) for name, tensor in flat.items())
        kinds[part] = collections.Counter(ends)
    for part in (part for part in held if any(word in part.lower() for word in _MODELS)):
        kind = kinds[part]
        alike = [
            other
            for other, theirs in kinds.items()
            if 2 * (kind & theirs).total() > max(kind.total(), theirs.total())
        ]
        if len(alike) > 1:
            return alike
    return []
