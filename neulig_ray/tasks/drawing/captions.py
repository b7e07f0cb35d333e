"""Captions as the web would write them: one of a concept's wordings in one of many phrasings."""

from collections.abc import Sequence

import numpy as np

from neulig_ray.tasks.drawing.raster import Labels

# A caption has to fit the tiny text tower's 20 tokens.
GENERIC = ("{}", "{}.", "image: {}", "free stock art: {}", "{}, on a dark background", "{}, vector graphics")


def write(
    rng: np.random.Generator,
    labels: Labels,
    concepts: Sequence[Sequence[str]],
    phrasings: Sequence[str],
) -> list[str]:
    """A caption for each label. The first wording of a concept, its class name, is used most of the time."""
    forms = (*phrasings, *GENERIC)
    captions = []
    for label in labels:
        wordings = concepts[int(label)]
        wording = wordings[0] if rng.random() < 0.7 else wordings[int(rng.integers(len(wordings)))]
        # The task's own phrasings carry most of the stream, the generic ones the rest.
        pool = phrasings if rng.random() < 0.75 else forms
        captions.append(pool[int(rng.integers(len(pool)))].format(wording))
    return captions
