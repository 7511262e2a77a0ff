"""What the lanes of a `vmap`, and the devices of a `shard_map`, have in common."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, PyTree


def any_lane(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether `flag` is true in any lane; without `vmap`, `flag`.

    As the condition of a loop: JAX's own batched loop selects the whole carry, buffers too, in
    every iteration. With this one a lane that is done goes on, and the body keeps what is done."""
    return _any_lane.bind(flag)


def differing(*trees: PyTree) -> frozenset[str]:
    """The axes of a mesh along which an array of `trees` differs between the devices of a
    `shard_map`."""
    arrays = filter(eqx.is_array, jtu.tree_leaves(trees))
    return frozenset().union(*map(_axes_of, arrays))


def _axes_of(x: Array) -> frozenset[str]:
    kind: Any = jax.typeof(x)
    is_new = hasattr(kind, "manual_axis_type")  # from jax 0.10 on
    return kind.manual_axis_type.varying if is_new else kind.vma


def spread(tree: PyTree, *like: PyTree) -> PyTree:
    """`tree`, whose arrays differ between the devices of a `shard_map` along all axes along which
    one of it, or of `like`, does. What a loop carries must say so before the first iteration."""
    axes = differing(tree, like)

    def leaf(x):
        missing = axes - differing(x)
        if not eqx.is_array(x):
            return x
        return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x

    return jtu.tree_map(leaf, tree) if axes else tree


def only_where(flag: Bool[Array, ""], compute: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """`compute()` where `flag`, and `otherwise` elsewhere, of the same shapes and dtypes.

    A loop of at most one turn, where `lax.cond` under `vmap` computes both for every lane, and
    under `shard_map` besides refuses a branch in which a constant meets what differs between the
    devices. No reverse mode."""
    carry = spread((jnp.asarray(flag), otherwise))

    def turn(_):
        return spread((jnp.array(False), compute()), carry)

    return jax.lax.while_loop(lambda carry: carry[0], turn, carry)[1]


_any_lane = Primitive("any_lane")
_any_lane.def_impl(lambda flag: flag)
_any_lane.def_abstract_eval(lambda flag: flag)


def _jvp(primals, tangents):
    (flag,) = primals
    return _any_lane.bind(flag), ad.Zero(jax.typeof(flag).to_tangent_aval())


def _batch(operands, axes):
    (flag,), (axis,) = operands, axes
    return _any_lane.bind(jnp.any(flag, axis=axis)), None


ad.primitive_jvps[_any_lane] = _jvp
batching.primitive_batchers[_any_lane] = _batch
mlir.register_lowering(_any_lane, lambda ctx, flag: [flag])
