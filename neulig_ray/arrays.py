"""numpy arrays that several processes share, seen as tensors."""

import warnings

import numpy as np
import torch


def shared_tensor(array: np.ndarray) -> torch.Tensor:
    """The array's own memory as a tensor, never to be written to.

    Arrays from an object store are read-only. torch has no read-only tensors and warns about each; nothing
    in the ligands, the merging and the evaluation writes to its inputs (tests see to it).
    """
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
