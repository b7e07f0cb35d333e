"""Exact order statistics of numbers that come in pieces and are never held together."""

from threading import Lock

import torch

_LOW = 16  # bits of a float32 that the second pass looks at
_HIGH_BINS, _LOW_BINS = 1 << (31 - _LOW), 1 << _LOW


class Selection:
    """For each of n rows, the numbers of given ranks: a radix selection in two passes.

    Non-negative float32 numbers are ordered as the integers that their bits spell. The first pass counts
    their upper 15 bits, the second the lower 16 bits of those that share the upper bits of a wanted number;
    between them, `narrow`. Counts are integers: their order of addition does not matter.
    """

    def __init__(self, ranks: torch.Tensor) -> None:
        """ranks: int64 (n, r), counted from 0 for the smallest."""
        self._left = ranks.clone()
        self._high: torch.Tensor | None = None
        self._low: torch.Tensor | None = None
        self._counts = torch.zeros(len(ranks), 1, _HIGH_BINS, dtype=torch.int64)
        self._lock = Lock()

    def add(self, values: torch.Tensor) -> None:
        """Count values float32 (n, size), each at least 0; from any thread."""
        bits = values.contiguous().view(torch.int32)
        if self._high is None:
            for row, counts in zip(bits, self._counts, strict=True):
                counted = torch.bincount(row >> _LOW, minlength=_HIGH_BINS)
                with self._lock:
                    counts[0] += counted
            return
        for row, bins, counts in zip(bits.numpy(), self._high, self._counts, strict=True):
            upper = row >> _LOW
            for wanted, slot in zip(bins.tolist(), counts, strict=True):
                # numpy selects by a mask in a third of torch's time.
                inside = torch.from_numpy(row[upper == wanted] & (_LOW_BINS - 1))
                with self._lock:
                    slot.index_add_(0, inside, torch.ones_like(inside, dtype=torch.int64))

    def narrow(self) -> None:
        """End a pass: find the bin of every wanted number, and its rank therein."""
        cumulative = self._counts.cumsum(-1).expand(*self._left.shape, -1)
        bins = torch.searchsorted(cumulative.contiguous(), self._left[..., None], right=True)
        below = torch.where(bins > 0, cumulative.gather(-1, (bins - 1).clamp(min=0)), 0)
        self._left -= below[..., 0]
        if self._high is None:
            self._high = bins[..., 0]
            self._counts = torch.zeros(*self._high.shape, _LOW_BINS, dtype=torch.int64)
        else:
            self._low = bins[..., 0]

    def found(self) -> torch.Tensor:
        """The numbers, float32 (n, r); after both passes."""
        assert self._high is not None, "after two passes"
        assert self._low is not None, "after two passes"
        return ((self._high << _LOW) | self._low).to(torch.int32).view(torch.float32)
