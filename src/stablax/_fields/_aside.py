"""Where to take a derivative that is not finite: next to the state, with few components moved."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from .._lanes import spread

# How components are moved, the least first.
_AT_WALLS, _BY_OWN_SIZE, _BY_ONE = 1, 2, 3
# Of a large state with many components to move, some are moved without need.
_MAX_TRIES = 64


class _Numbers(NamedTuple):
    how: Any  # below 0: in the way that helped at another state
    hint: Any  # that way, 0 if there is none
    first: Any  # of the block that is put back, -1 before there is one
    width: Any
    tries: Any
    done: Any
    helps: Any  # whether the derivative was finite in the last try

    def packed(self) -> Array:
        return jnp.stack(spread([jnp.asarray(x).astype(jnp.int32) for x in self]))


class Aside(eqx.Module):
    """A search for the components that have to move off their bounds, or off zero, for a
    derivative to be finite. The others stay: moving them by any amount is wrong for a component of
    other units.

    Try the derivative at `y + shift(y, ...)`, give `after` the verdict, and repeat until `done`.
    The first try moves nothing. If that is not enough, the next ones move all that are at a bound
    or at zero, then all, then all by more; and those after that put back block after block of
    components that were moved without need. With d of n components at fault, about
    2 d log2(n) tries; at most 64.
    """

    needed: Bool[Array, " n"]  # what helps, as far as that is known
    numbers: Int[Array, "7"]  # in one array: each that a loop carries is a kernel to compile

    @staticmethod
    def start(y: PyTree, done: Bool[ArrayLike, ""] = False) -> "Aside":
        needed = jnp.full(sum(jnp.size(x) for x in jtu.tree_leaves(y)), True)
        return Aside(needed, _Numbers(0, 0, -1, 1, 0, done, done).packed())

    def again(self) -> "Aside":
        """For a state nearby, where what helped is tried first."""
        at = self._at
        hint = jnp.where(at.how == 0, at.hint, jnp.abs(at.how))
        hint = jnp.where(self.helps, hint, 0)
        return Aside(self.needed, _Numbers(0, hint, -1, 1, 0, False, False).packed())

    @property
    def _at(self) -> _Numbers:
        return _Numbers(*self.numbers)

    @property
    def moves(self) -> Bool[Array, ""]:
        return self._at.how != 0

    @property
    def done(self) -> Bool[Array, ""]:
        return self._at.done != 0

    @property
    def helps(self) -> Bool[Array, ""]:
        return self._at.helps != 0

    @property
    def tries(self) -> Int[Array, ""]:
        return self._at.tries

    def _moved(self, at: _Numbers) -> Bool[Array, " n"]:
        i = jnp.arange(self.needed.size, dtype=jnp.int32)
        in_block = (at.first >= 0) & (i >= at.first) & (i < at.first + at.width)
        return self.needed & (at.how != 0) & ~in_block

    def shift(self, y: PyTree, lower: PyTree, upper: PyTree) -> PyTree[Array]:
        """To the point of this try from `y`, which is in the box between `lower` and `upper`."""
        at = self._at
        moved, begin, shifts = self._moved(at), 0, []
        leaves, treedef = jtu.tree_flatten(y)
        for x, low, high in zip(
            leaves, jtu.tree_leaves(lower), jtu.tree_leaves(upper), strict=True
        ):
            here = moved[begin : begin + x.size].reshape(x.shape)
            shifts.append(jnp.where(here, _off_the_walls(x, low, high, jnp.abs(at.how)), 0))
            begin += x.size
        return treedef.unflatten(shifts)

    def is_last(self, finite: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether this try, whose derivative is, or is not, `finite`, is the one to take."""
        at = self._at
        found = finite & (at.how <= 0) | ~finite & (at.how == _BY_ONE)
        return jnp.where(at.first < 0, found, at.first >= self.needed.size)

    def after(self, finite: Bool[Array, ""]) -> "Aside":
        """What to do when the derivative is, or is not, `finite` in this try. Once over, it stays
        with that."""
        at, size = self._at, self.needed.size
        searching = at.first < 0
        helped = searching & finite & (at.how > 0)
        more = jnp.where(at.how == 0, jnp.where(at.hint > 0, -at.hint, 1), at.how + 1)
        more = jnp.minimum(jnp.where(at.how < 0, 1, more), _BY_ONE)
        how = jnp.where(searching & ~finite, more, at.how)
        # The next block is twice as wide as one that was free to go, and half as wide as one that
        # was not; of a single one that was not, the next begins behind it.
        first = at.first + jnp.where(finite | (at.width == 1), at.width, 0)
        width = jnp.where(finite, 2 * at.width, jnp.maximum(at.width // 2, 1))
        first = jnp.where(searching, jnp.where(helped, 0, -1), first)
        width = jnp.where(searching, (size + 1) // 2, width)
        enough = (size == 1) | (at.tries >= _MAX_TRIES)
        first = jnp.where((first >= 0) & enough, size, first)
        needed = self.needed | searching & (how > 0)
        needed = jnp.where(~searching & finite, self._moved(at), needed)
        over = self.is_last(finite)
        new = _Numbers(how, at.hint, first, width, at.tries + 1, over, finite)
        return Aside(needed, new.packed())


def _off_the_walls(y: Array, lower: Array, upper: Array, how: Int[Array, ""]) -> Array:
    """From each component of `y` to a point next to it, off the bounds and off zero (where roots
    and fractional powers lose their derivative)."""
    y = jnp.clip(jnp.where(jnp.isfinite(y), y, 0), lower, upper)
    at_wall = (y == 0) | (y <= lower) | (y >= upper)
    magnitude = jnp.where((y == 0) | (how == _BY_ONE), jnp.maximum(jnp.abs(y), 1), jnp.abs(y))
    step = jnp.minimum(jnp.finfo(y.dtype).eps ** 0.5 * magnitude, (upper - lower) / 4)
    step = jnp.where(at_wall | (how != _AT_WALLS), step, 0)
    outward = (y < 0) & (y - lower > step) | (upper - y <= step)
    return jnp.where(outward, -step, step)
