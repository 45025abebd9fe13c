"""Labels: which atoms a tensor's indices belong to, and what is learnt of them.

Every index of every dimension of every parameter and buffer is an *atom*, a dense integer. A tensor's *layout* says,
dimension by dimension, which atom each index belongs to:

    weight of a convolution (8, 3, 3, 3)     dim 0: atoms 0..7    dim 1: atoms 8..10    kernel: atoms of their own
    its output (N, 8, H, W)                  dim 0: nothing       dim 1: atoms 0..7     dims 2, 3: nothing

A dimension without a track can't shrink (the batch, a map's height).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.graph.capture import Place

Atoms = NDArray[np.int64]

FIXED = -1  # an index that can't be removed: it belongs to no atom
FREE = -2  # an index of a tensor filled on the fly (zeros, noise): it follows whatever it meets


@dataclass(eq=False, slots=True)
class Track:
    """The atoms of one dimension.

    Attributes:
        atoms: int64, one per index; FIXED or FREE where there is none. Views share this array, so that writing into a
            view shows.
        own_zero: what `zero` is, as far as it does not hang on what this is a view of.
        parent: the track that this one is a view of.
    """

    atoms: Atoms
    own_zero: bool = False
    parent: Track | None = None
    _whole: bool | None = None

    @property
    def whole(self) -> bool:
        """Every index belongs to an atom. Then writing changes nothing, and the array may be shared by all tensors."""
        if self._whole is None:
            self._whole = self.atoms.size > 0 and bool(self.atoms.min() >= 0)
        return self._whole

    @property
    def zero(self) -> bool:
        """In the silenced network, the elements of removed atoms are zero here. Lets sums over channels stay exact."""
        track: Track | None = self
        while track is not None:
            if not track.own_zero:
                return False
            track = track.parent
        return True

    @property
    def live(self) -> bool:
        return self.whole or bool((self.atoms >= 0).any())

    @property
    def all_free(self) -> bool:
        return not self.whole and bool((self.atoms == FREE).all())

    def live_atoms(self) -> Atoms:
        return self.atoms if self.whole else self.atoms[self.atoms >= 0]

    def copy(self, zero: bool | None = None) -> Track:
        """The same labels for a new tensor: writing into one does not show in the other."""
        return Track(
            self.atoms if self.whole else self.atoms.copy(), self.zero if zero is None else zero, None, self._whole
        )

    def view(self, atoms: Atoms) -> Track:
        return Track(atoms, self.zero, self, True if self._whole and atoms.size else None)

    def lose_zero(self) -> None:
        """Written into: neither this nor anything that shares its memory is known to be zero any more."""
        track: Track | None = self
        while track is not None:
            track.own_zero = False
            track = track.parent


Dim = tuple[Track, ...]  # several tracks where several dimensions were merged into one
Layout = list[Dim]


@dataclass(frozen=True, slots=True)
class Pin:
    """Atoms that can't be removed, and why; the operator that forbids it, where one does."""

    atoms: Atoms
    reason: str
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Equality:
    """a[i] and b[i] go together: what the operator of node number `node` says."""

    a: Atoms
    b: Atoms
    reason: str
    node: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A reshape that can be kept exact in several ways (which of its factors shrinks), and the atoms concerned."""

    node: int
    options: int
    taken: int
    atoms: Atoms
    kind: tuple[str, tuple[int, ...]]  # the module and the factors: queries, keys and values choose alike


def change_alike(a: Track, b: Track) -> bool:
    """Two tracks of one length have equal atoms at the same pairs of places."""
    (_, first), (_, second) = (np.unique(t.atoms, return_inverse=True) for t in (a, b))
    pairs = len(np.unique(first * (second.max(initial=0) + 1) + second))
    return bool(pairs == first.max(initial=-1) + 1 == second.max(initial=-1) + 1)


def finesse(track: Track) -> int:
    return len(np.unique(track.atoms[track.atoms >= 0]))


def copied(layout: Layout, zero: bool | None = None) -> Layout:
    """The same labels for a new tensor: no shared arrays, so that writing into one does not show in the other."""
    return [tuple([track.copy(zero) for track in dim]) if dim else dim for dim in layout]
