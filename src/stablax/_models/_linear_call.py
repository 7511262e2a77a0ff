"""A linear function that brings its transpose.

`jax.custom_derivatives.linear_call` has neither a batching rule nor a derivative in what the
function depends on, and `jax.custom_vjp` has no forward mode.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from ._forward_only import untransposable

# (residuals, linear inputs) to linear outputs, or cotangents of the outputs to those of the inputs.
_Flat = Callable[[list[Array], list[Array]], list[Array]]


def linear_call(
    forward: Callable[[PyTree, PyTree], PyTree],
    transpose: Callable[[PyTree, PyTree], PyTree],
    residuals: PyTree,
    inputs: PyTree[Array],
    like: PyTree[Array],
    once: str,
) -> PyTree[Array]:
    """`forward(residuals, inputs)`, linear in `inputs`, of the structure of `like`.

    In reverse mode it is `transpose(residuals, cotangents)`. Only that of the two which is asked
    for is traced. Both can be differentiated again in forward mode; reverse mode is a `TypeError`
    with the message `once`."""
    arrays, static = eqx.partition(residuals, eqx.is_array)
    arrays, tree = jtu.tree_flatten(arrays)
    linear, linear_tree = jtu.tree_flatten(inputs)
    outputs, outputs_tree = jtu.tree_flatten(like)

    def flat(fn: Callable, tree_in, tree_out) -> _Flat:
        def call(arrays, linear):
            residuals = eqx.combine(jtu.tree_unflatten(tree, arrays), static)
            out = fn(residuals, jtu.tree_unflatten(tree_in, linear))
            leaves, out_tree = jtu.tree_flatten(out)
            assert out_tree == tree_out, (out_tree, tree_out)
            return leaves

        return call

    out = _linear_call.bind(
        *arrays,
        *linear,
        forward=flat(forward, linear_tree, outputs_tree),
        transpose=flat(transpose, outputs_tree, linear_tree),
        count=len(arrays),
        outputs=tuple(jax.typeof(x).to_tangent_aval() for x in outputs),
        once=once,
    )
    return jtu.tree_unflatten(outputs_tree, out)


_linear_call = Primitive("linear_call")
_linear_call.multiple_results = True


@_linear_call.def_impl
def _evaluate(*operands, forward: _Flat, count: int, **_):
    return forward(list(operands[:count]), list(operands[count:]))


@_linear_call.def_abstract_eval
def _outputs(*_, outputs, **__):
    return list(outputs)


def _jvp(operands, tangents, *, forward: _Flat, transpose: _Flat, count: int, outputs, once):
    settings = dict(transpose=transpose, count=count, outputs=outputs, once=once)
    out = _linear_call.bind(*operands, forward=forward, **settings)
    arrays, linear = operands[:count], operands[count:]
    zero = lambda x: isinstance(x, ad.Zero)
    d_out = [ad.Zero(aval) for aval in outputs]
    if not all(map(zero, tangents[count:])):
        d_linear = [ad.instantiate_zeros(x) for x in tangents[count:]]
        d_out = _linear_call.bind(*arrays, *d_linear, forward=forward, **settings)
    if not all(map(zero, tangents[:count])):
        moving = {i: x for i, x in enumerate(tangents[:count]) if not zero(x)}

        def along(moved):
            return forward([moved.get(i, x) for i, x in enumerate(arrays)], list(linear))

        _, more = jax.jvp(along, ({i: arrays[i] for i in moving},), (moving,))
        more = untransposable(more, once)
        d_out = [m if zero(d) else d + m for d, m in zip(d_out, more, strict=True)]
    return out, d_out


def _transpose(cotangents, *operands, forward: _Flat, transpose: _Flat, count: int, outputs, once):
    assert not any(map(ad.is_undefined_primal, operands[:count]))
    inputs = tuple(x.aval for x in operands[count:])
    given = [ad.instantiate_zeros(x) for x in cotangents]
    out = _linear_call.bind(
        *operands[:count],
        *given,
        forward=transpose,
        transpose=forward,
        count=count,
        outputs=inputs,
        once=once,
    )
    return [None] * count + out


def _batch(operands, axes, *, forward: _Flat, transpose: _Flat, count: int, outputs, once):
    residual_axes, linear_axes = list(axes[:count]), list(axes[count:])
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    # The transpose has a cotangent for each lane of every input and output.
    linear = [
        jnp.moveaxis(x, a, 0) if a is not None else jnp.broadcast_to(x, (size, *jnp.shape(x)))
        for x, a in zip(operands[count:], linear_axes, strict=True)
    ]
    lanes: Any = dict(in_axes=(residual_axes, 0), axis_size=size)
    batched = lambda aval: aval.update(shape=(size, *aval.shape))
    out = _linear_call.bind(
        *operands[:count],
        *linear,
        forward=jax.vmap(forward, **lanes),
        transpose=jax.vmap(transpose, **lanes),
        count=count,
        outputs=tuple(map(batched, outputs)),
        once=once,
    )
    return out, [0] * len(out)


ad.primitive_jvps[_linear_call] = _jvp
ad.primitive_transposes[_linear_call] = _transpose
batching.primitive_batchers[_linear_call] = _batch
mlir.register_lowering(_linear_call, mlir.lower_fun(_evaluate, multiple_results=True))
