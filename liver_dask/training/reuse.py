"""Draw several patches from the same chunks, so that each chunk is decoded once for several patches.

Patches are drawn in groups. The patches of a group begin in the same chunk. Several groups are open at a time and take
turns, so that the patches of a group are far apart in the stream.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..core.geometry import Shape

MOST_GROUPS = 64
"""Maximum number of groups that are open at a time."""


class Turn(NamedTuple):
    """The place of a patch in its group.

    Attributes:
        group: Number of the group in the stream.
        turn: Number of the patch in the group.
    """

    group: int
    turn: int


@dataclass(frozen=True)
class Reuse:
    """Which patches are drawn from the same chunks.

    Attributes:
        times: Number of patches of a group.
        groups: Number of groups that are open at a time.
        chunk: Shape (z, y, x) of a chunk in voxels.
    """

    times: int
    groups: int
    chunk: Shape

    @classmethod
    def within(cls, times: int, patch: Shape, chunk: Shape, bytes_per_voxel: int, limit: int) -> "Reuse":
        """Return the groups whose chunks fit together into `limit` bytes; at least one."""
        touched = [(p + c - 2) // c + 1 for p, c in zip(patch, chunk, strict=True)]
        of_group = math.prod(touched) * math.prod(chunk) * bytes_per_voxel
        return cls(times, max(1, min(MOST_GROUPS, limit // of_group)), chunk)

    def turn_of(self, number: int) -> Turn:
        """Return the group of a patch, and its turn there. All groups of a pool have a turn before one has the next."""
        pool, inside = divmod(number, self.times * self.groups)
        turn, place = divmod(inside, self.groups)
        order = np.random.default_rng((pool, turn)).permutation(self.groups)
        return Turn(pool * self.groups + int(order[place]), turn)
