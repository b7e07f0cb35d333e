"""Random streams named by what they are for, so that nothing depends on what else was drawn before."""

import hashlib

import numpy as np


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the text of `parts`: the same in every process, unlike hash()."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stable_generator(*parts: object) -> np.random.Generator:
    """numpy's generator seeded by `stable_seed(*parts)`."""
    return np.random.Generator(np.random.PCG64(stable_seed(*parts)))
