"""L1 distance of sorted probabilities for a chunk: exactly, or with only the largest of each side sorted.

With s_(r) the r-th largest of the student's entries and t_(r) of the teacher's (the shorter list filled with zeros),
L = sum_r |s_(r) - t_(r)|, and d L / d s_i = sign(s_(r) - t_(r)) for the entry i of rank r.

The top-k form takes the k largest of either side, and puts the mass of all others into one bucket:
L_k = sum_{r <= k} |s_(r) - t_(r)| + |sum_{r > k} s_(r) - t_(r)|. By the triangle inequality L_k <= L; they are equal
when one side's tail lies above the other's throughout, and when k covers the longer list.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .fused_chunks import Buffer

GROUP = 8
"""Entries whose maximum is taken first: the k largest lie in the k groups with the largest maxima."""

COLUMNS = 16
"""Rows (positions) that are sorted together: one line of the processor's cache in each entry."""


@dataclass
class Rest:
    """The entries of one side that have no partner. probs: (V, rows), scaled by `scale` (rows,) where it counts.

    ids: (U,) ascending.   mass: (rows,) their sum, not scaled.
    """

    probs: Tensor
    ids: Tensor
    mass: Tensor
    maxima: Tensor

    @classmethod
    def of(cls, probs: Tensor, ids: Tensor, work: Buffer, block: int, maxima: bool) -> "Rest":
        """Walk once over the entries `ids` of probs, `block` at a time. maxima: those of the groups will be needed."""
        rows = probs.shape[1]
        block = max(GROUP, block // GROUP * GROUP)
        mass = probs.new_zeros(rows)
        largest = probs.new_empty(-(-len(ids) // GROUP) if maxima else 0, rows)
        for start in range(0, len(ids), block):
            stop = min(start + block, len(ids))
            taken = torch.index_select(probs, 0, ids[start:stop], out=work.view(stop - start, rows))
            mass += taken.sum(0)
            if maxima:
                whole = (stop - start) // GROUP * GROUP
                first = start // GROUP
                torch.amax(taken[:whole].view(-1, GROUP, rows), 1, out=largest[first : first + whole // GROUP])
                if whole < stop - start:
                    torch.amax(taken[whole:], 0, out=largest[-1])
        return cls(probs, ids, mass, largest)

    def largest(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest entries of each row, falling: values (k, rows), 0 beyond the last, and ids (k, rows)."""
        count, rows = len(self.ids), self.probs.shape[1]
        groups = min(k, len(self.maxima))
        chosen = self.maxima.t().contiguous().topk(groups, sorted=False).indices
        within = torch.arange(GROUP, device=self.ids.device)
        places = (chosen.unsqueeze(2) * GROUP + within).view(rows, groups * GROUP)
        ids = self.ids[places.clamp_max(count - 1)]
        column = torch.arange(rows, device=ids.device).unsqueeze(1)
        # A place beyond the last entry repeats it: it must not be chosen twice.
        values = self.probs.view(-1)[ids * rows + column].masked_fill_(places >= count, -1.0)
        top = values.topk(min(k, groups * GROUP))
        values, ids = top.values.clamp_min_(0.0).t(), ids.gather(1, top.indices).t()
        if len(values) < k:
            values = torch.cat([values, values.new_zeros(k - len(values), rows)])
            ids = torch.cat([ids, ids.new_zeros(k - len(ids), rows)])
        return values, ids


@dataclass
class TopK:
    """L_k (rows,), and its derivative by the student's scaled entries: `tail` (rows,) for all of them, plus `more`
    (k, rows) for the entries `ids` (k, rows). pull: (rows,) sum of derivative * scaled entry. probs: (k, rows) of ids.
    """

    loss: Tensor
    pull: Tensor
    tail: Tensor
    ids: Tensor
    probs: Tensor
    more: Tensor


def top_k_l1(student: Rest, scale: Tensor, teacher: Rest, k: int) -> TopK:
    """See the module. scale: (rows,) factor on the student's entries; the teacher's are scaled already."""
    if k < 1:
        raise ValueError(f"unmatched_top_k is {k}; it must be at least 1, or None for all")
    ours, ids = student.largest(k)
    theirs, _ = teacher.largest(k)
    scaled = ours * scale
    gap = scaled - theirs
    # Where nothing is left the difference of two sums would be noise, with a sign.
    our_tail = (student.mass - ours.sum(0)).clamp_min(0.0) * scale * (len(student.ids) > k)
    their_tail = (teacher.mass - theirs.sum(0)).clamp_min(0.0) * (len(teacher.ids) > k)
    tail, sign = torch.sign(our_tail - their_tail), torch.sign(gap)
    loss = gap.abs().sum(0) + (our_tail - their_tail).abs()
    return TopK(loss, (sign * scaled).sum(0) + tail * our_tail, tail, ids, ours, sign - tail)


@dataclass
class Exact:
    """L (rows,), pull (rows,) as in TopK, and signs (U, rows) int8, the derivative by each of the student's entries."""

    loss: Tensor
    pull: Tensor
    signs: Tensor


def exact_l1(student: Rest, scale: Tensor, teacher: Rest) -> Exact:
    """See the module. The rows are sorted a few at a time."""
    rows = student.probs.shape[1]
    signs = torch.empty(len(student.ids), rows, dtype=torch.int8, device=student.ids.device)
    loss, pull = torch.zeros_like(scale), torch.zeros_like(scale)
    width, other = len(student.ids), len(teacher.ids)
    taken = Buffer(COLUMNS * max(width, other), scale)
    mine, against = Buffer(COLUMNS * width, scale), Buffer(COLUMNS * other, scale)
    for start in range(0, rows, COLUMNS):
        part = slice(start, min(start + COLUMNS, rows))
        count = part.stop - part.start
        some = torch.index_select(student.probs[:, part], 0, student.ids, out=taken.view(width, count))
        ours = mine.view(count, width).copy_(some.mul_(scale[part]).t())
        some = torch.index_select(teacher.probs[:, part], 0, teacher.ids, out=taken.view(other, count))
        theirs = against.view(count, other).copy_(some.t())
        found = _signs_numpy(ours, theirs) if ours.device.type == "cpu" else _signs_torch(ours, theirs)
        loss[part], sign = found
        signs[:, part] = sign.t()
        pull[part] = ours.mul_(sign).sum(1)
    return Exact(loss, pull, signs)


def _signs_torch(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, U), (rows, W) -> L (rows,) and the sign of each of ours (rows, U)."""
    ranked, order = ours.sort(1, descending=True)
    against = theirs.sort(1, descending=True).values
    both = min(ours.shape[1], theirs.shape[1])
    gap = ranked.clone()
    gap[:, :both] -= against[:, :both]
    loss = gap.abs().sum(1) + against[:, both:].sum(1)
    return loss, torch.empty_like(ours).scatter_(1, order, torch.sign(gap))


def _signs_numpy(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The same on a CPU, where sorting values alone is several times cheaper than sorting with positions.

    The sign changes rarely from rank to rank. So the values at which it does tell the sign of every entry.
    """
    values, against = ours.numpy(), theirs.numpy()
    against.sort(axis=1)
    loss, signs = torch.empty(len(ours), dtype=ours.dtype), torch.empty_like(ours)
    width, other = values.shape[1], against.shape[1]
    for row, entries in enumerate(values):
        ranked = np.sort(entries)
        gap = ranked.copy()
        both = min(width, other)
        gap[width - both :] -= against[row, other - both :]
        loss[row] = float(np.abs(gap).sum(dtype=np.float64) + against[row, : other - both].sum(dtype=np.float64))
        sign = np.sign(gap)
        change = np.flatnonzero(sign[1:] != sign[:-1]) + 1
        by_rank = sign[np.concatenate([[0], change])]
        signs[row] = torch.from_numpy(by_rank[np.searchsorted(ranked[change], entries, side="right")])
    return loss, signs
