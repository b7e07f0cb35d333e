"""What one line of a table stands for: a method with its settings; its label, section and place."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from neulig_ray.results.granularities import granularity_of

REFERENCE, MERGING, SEVERAL = "reference", "merging", "merging, several models"
ENSEMBLE = "ensembles, uniform"
_SECTIONS: Final = (REFERENCE, MERGING, SEVERAL, ENSEMBLE)
JOINT: Final = "joint"  # the bound for one network: of n tasks, and not merged
ENSEMBLE_PREFIX: Final = "ensemble-"  # left out where the section says so
OBJECTIVES: Final = ("sup", "semi", "route")

FIELDS: Final = (
    "method",
    "options",
    "alignment",
    "granularity",
    "buffers",
    "batch_size",
    "protocol",
    "split",
)


@dataclass(frozen=True)
class Nature:
    """What all rows of a method show of it. `n`: models that it combines, at least 2 for many.

    `merges`, `ensembles`: whether some row has a merging accuracy, an ensembling accuracy.
    """

    n: int = 2
    merges: bool = True
    ensembles: bool = False


@dataclass(frozen=True)
class Variant:
    """The part of a row's key that a reader compares; batch_size 0 where there are no batches.

    `nature`, of its method, decides where its line stands in a table.
    """

    method: str
    options: str = "{}"
    alignment: str = ""
    granularity: str = ""
    buffers: str = ""
    batch_size: int = 0
    protocol: str = ""
    split: str = ""
    nature: Nature = field(default=Nature(), compare=False)

    @property
    def section(self) -> str:
        if self.alignment:
            return f"ligand {self.alignment}"
        if self.nature.n < 2 or self.method == JOINT:
            return REFERENCE
        if self.nature.ensembles and not self.nature.merges:
            return ENSEMBLE
        return MERGING if not self.granularity or granularity_of(self.granularity).static else SEVERAL

    @property
    def is_ligand(self) -> bool:
        """Whether it is the ligand without any option: of the default gate, with all of its beta."""
        return self.method == "ligand" and self.options == "{}"

    @property
    def shows_granularity(self) -> bool:
        """Whether the lines of its method are granularities of a ligand's merged models."""
        return bool(self.alignment) and (self.method == "ligand" or self.nature.ensembles)

    @property
    def label(self) -> str:
        """The line's name inside its section, with the options that are not the default."""
        name = self.method.removeprefix(ENSEMBLE_PREFIX)
        if self.shows_granularity:
            name = self.granularity if self.method == "ligand" else f"{name} {self.granularity}"
        return " ".join([name, *self._extra])

    @property
    def _extra(self) -> list[str]:
        """The options that are not the default, and what becomes of BatchNorm, in words."""
        options: dict[str, Any] = json.loads(self.options)
        # Adapted on the very images that are reported.
        transductive = options.pop("adapt_on", None) == "test"
        extra = [f"{key}={_plain(value)}" for key, value in options.items()]
        extra += ["transductive"] if transductive else []
        if self.buffers and self.buffers != "average":
            extra.append(f"BN {self.buffers}")
        return extra

    @property
    def knows_task(self) -> bool:
        """Whether the line needs to know the task of a test image: batches of one task tell it as well."""
        return granularity_of(self.granularity).knows_task and self.nature.n > 1

    @property
    def title(self) -> str:
        """The line's name on its own, as in `ligand sup task`."""
        words = [self.method, self.alignment, self.granularity if self.shows_granularity else ""]
        return " ".join(word for word in [*words, *self._extra] if word)

    @property
    def place(self) -> tuple[object, ...]:
        """Where the line stands in a table; of a section's methods, those with both accuracies first."""
        section = _SECTIONS.index(self.section) if self.section in _SECTIONS else len(_SECTIONS)
        objective = OBJECTIVES.index(self.alignment) if self.alignment in OBJECTIVES else len(OBJECTIVES)
        n, both = min(self.nature.n, 2), self.nature.merges and self.nature.ensembles
        granularity = granularity_of(self.granularity).order, self.granularity
        default = self.options == "{}"
        return (section, objective, self.alignment, n, not both, self.method, granularity, not default,
                self.options, self.buffers, self.batch_size, self.protocol, self.split)  # fmt: skip


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def labels(made: Sequence[Variant]) -> list[str]:
    """The label of each variant of one table, with the batch size, protocol or split where those differ."""
    short = [(variant.section, variant.label) for variant in made]
    named = []
    for variant, own in zip(made, short, strict=True):
        same = [other for other, label in zip(made, short, strict=True) if label == own]
        extra = [f"batch {variant.batch_size}"] if len({x.batch_size for x in same}) > 1 else []
        extra += [name for name in ("protocol", "split") if len({getattr(x, name) for x in same}) > 1]
        words = [str(getattr(variant, word)) if word in ("protocol", "split") else word for word in extra]
        named.append(" ".join([variant.label, *words]))
    return named
