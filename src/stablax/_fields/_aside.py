"""Where to take a derivative that is not finite: next to the state, with few components moved."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

# How components are moved, the least first.
_AT_WALLS, _BY_OWN_SIZE, _BY_ONE = 1, 2, 3
# Of a large state with many components to move, some are moved without need.
_MAX_TRIES = 64


class Aside(eqx.Module):
    """A search for the components that have to move off their bounds, or off zero, for a
    derivative to be finite. The others stay: moving them by any amount is wrong for a component of
    other units.

    Try the derivative at `y + shift`, give `after` the verdict, and repeat until `done`. The first
    try moves nothing. If that is not enough, the next ones move all that are at a bound or at
    zero, then all, then all by more; and those after that put back block after block of
    components that were moved without need. With d of n components at fault, about
    2 d log2(n) tries; at most 64.
    """

    shift: PyTree[Array]
    moved: PyTree[Bool[Array, "..."]]  # by `shift`
    needed: PyTree[Bool[Array, "..."]]  # what helps, as far as that is known
    how: Int[Array, ""]  # below 0: in the way that helped at another state
    hint: Int[Array, ""]  # that way, 0 if there is none
    first: Int[Array, ""]  # of the block that is put back, -1 before there is one
    width: Int[Array, ""]
    tries: Int[Array, ""]
    done: Bool[Array, ""]
    helps: Bool[Array, ""]  # whether the derivative was finite in the last try

    @staticmethod
    def start(y: PyTree, done: Any = False) -> "Aside":
        needed = jtu.tree_map(lambda x: jnp.full(jnp.shape(x), True), y)
        return Aside._plain(y, needed, jnp.array(0, jnp.int32), jnp.asarray(done))

    @staticmethod
    def _plain(y, needed, hint, done) -> "Aside":
        zeros, none = jtu.tree_map(jnp.zeros_like, (y, needed))
        number = lambda value: jnp.array(value, jnp.int32)
        how, first, width, tries = number(0), number(-1), number(1), number(0)
        return Aside(zeros, none, needed, how, hint, first, width, tries, done, done)

    def again(self) -> "Aside":
        """For a state nearby, where what helped is tried first."""
        hint = jnp.where(self.how == 0, self.hint, jnp.abs(self.how))
        hint = jnp.where(self.helps, hint, 0)
        return Aside._plain(self.shift, self.needed, hint, jnp.array(False))

    def is_last(self, finite: Bool[Array, ""]) -> Bool[Array, ""]:
        """Whether this try, whose derivative is, or is not, `finite`, is the one to take."""
        size = sum(x.size for x in jtu.tree_leaves(self.moved))
        searching = self.first < 0
        found = finite & (self.how <= 0) | ~finite & (self.how == _BY_ONE)
        return jnp.where(searching, found, self.first >= size)

    def after(self, finite: Bool[Array, ""], y: PyTree, lower: PyTree, upper: PyTree) -> "Aside":
        """What to do when the derivative at `y + shift` is, or is not, `finite`; `y` is in the box
        between `lower` and `upper`."""
        index, size = _numbered(self.moved)
        searching = self.first < 0
        helped = searching & finite & (self.how > 0)
        over = self.is_last(finite)
        more = jnp.where(self.how == 0, jnp.where(self.hint > 0, -self.hint, 1), self.how + 1)
        more = jnp.where(self.how < 0, 1, more)
        how = jnp.where(searching & ~finite, more, self.how)
        kept = ~searching & finite
        needed = _where(kept, self.moved, self.needed)
        needed = jtu.tree_map(lambda x: x | searching & (how > 0), needed)
        # The next block is twice as wide as one that was free to go, and half as wide as one that
        # was not; of a single one that was not, the next begins behind it.
        first = self.first + jnp.where(finite | (self.width == 1), self.width, 0)
        width = jnp.where(finite, 2 * self.width, jnp.maximum(self.width // 2, 1))
        first = jnp.where(searching, jnp.where(helped, 0, -1), first)
        width = jnp.where(searching, (size + 1) // 2, width)
        enough = (size == 1) | (self.tries >= _MAX_TRIES)
        first = jnp.where((first >= 0) & enough, size, first)
        moved = jtu.tree_map(
            lambda needed, i: needed & ((first < 0) | (i < first) | (i >= first + width)),
            needed,
            index,
        )
        shift = jtu.tree_map(
            lambda moved, y, lower, upper: jnp.where(
                moved, _off_the_walls(y, lower, upper, jnp.abs(how)), 0
            ),
            moved,
            y,
            lower,
            upper,
        )
        # Once over, it stays with what was tried last.
        shift, moved, how = _where(
            over, (self.shift, self.moved, self.how), lax.stop_gradient((shift, moved, how))
        )
        tries = self.tries + 1
        return Aside(shift, moved, needed, how, self.hint, first, width, tries, over, finite)


def _where(pred, on_true: PyTree, on_false: PyTree) -> PyTree:
    return jtu.tree_map(lambda a, b: jnp.where(pred, a, b), on_true, on_false)


def _numbered(tree: PyTree) -> tuple[PyTree, int]:
    """The number of each component, and how many there are."""
    leaves, treedef = jtu.tree_flatten(tree)
    ends = np.cumsum([x.size for x in leaves], dtype=np.int32)
    numbers = [
        # Not a constant of numpy: as an input of a branch it fails under `vmap` in `shard_map`.
        jnp.arange(end - x.size, end, dtype=jnp.int32).reshape(x.shape)
        for x, end in zip(leaves, ends, strict=True)
    ]
    return treedef.unflatten(numbers), int(ends[-1])


def _off_the_walls(y: Array, lower: Array, upper: Array, how: Int[Array, ""]) -> Array:
    """From each component of `y` to a point next to it, off the bounds and off zero (where roots
    and fractional powers lose their derivative)."""
    y = jnp.clip(jnp.where(jnp.isfinite(y), y, 0), lower, upper)
    at_wall = (y == 0) | (y <= lower) | (y >= upper)
    size = jnp.where((y == 0) | (how == _BY_ONE), jnp.maximum(jnp.abs(y), 1), jnp.abs(y))
    step = jnp.minimum(jnp.finfo(y.dtype).eps ** 0.5 * size, (upper - lower) / 4)
    step = jnp.where(at_wall | (how != _AT_WALLS), step, 0)
    outward = (y < 0) & (y - lower > step) | (upper - y <= step)
    return jnp.where(outward, -step, step)
