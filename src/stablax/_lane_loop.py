"""A loop over the steps of many lanes, of which few step at once.

JAX's `while_loop` under `vmap` goes on until the slowest lane is done, and all others wait. Here a
lane that is done makes room for the next.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Bool, Int, PyTree

from ._lanes import any_lane, spread

# An exchange costs as much as several steps, so it waits until this part of the lanes is done.
_SPARE = 8


class Buffer(eqx.Module):
    """An array with a leading axis, the places, that a loop reads or writes at one place a step;
    with a `lane`, that of all lanes, behind another axis. So it is not moved when lanes change."""

    array: Array
    lane: Int[Array, ""] | None = None
    on: Bool[Array, ""] | None = None  # whether what is put is kept

    @property
    def size(self) -> int:
        return self.array.shape[0 if self.lane is None else 1]

    def take(self, place: Int[Array, "..."]) -> Array:
        return self.array[place] if self.lane is None else self.array[self.lane, place]

    def put(self, place: Int[Array, "..."], value: Array) -> "Buffer":
        """With `value` at `place`, or places; behind its end, nowhere."""
        if self.on is not None:
            place = jnp.where(self.on, place, self.size)
        if self.lane is None:
            array = self.array.at[place].set(value, mode="drop")
        else:
            array = _put.bind(self.array, self.lane, place, value)
        return Buffer(array, self.lane, self.on)


def take(buffers: PyTree[Buffer], place: Int[Array, "..."]) -> PyTree[Array]:
    return jtu.tree_map(lambda b: b.take(place), buffers, is_leaf=_is_buffer)


def put(buffers: PyTree[Buffer], place: Int[Array, "..."], values: PyTree[Array]) -> PyTree[Buffer]:
    return jtu.tree_map(lambda b, x: b.put(place, x), buffers, values, is_leaf=_is_buffer)


def _is_buffer(x: object) -> bool:
    return isinstance(x, Buffer)


def lane_loop(
    goes_on: Callable[[PyTree, PyTree], Bool[Array, ""]],
    body: Callable[[PyTree, PyTree, PyTree[Buffer], PyTree[Buffer]], tuple[PyTree, PyTree]],
    carry: PyTree[Array],
    consts: PyTree,
    reads: PyTree[Array],
    writes: PyTree[Array],
    width: int | None,
    keeps: bool = False,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """`carry, writes = body(consts, carry, reads, writes)` while `goes_on(consts, carry)`.

    `reads` and `writes` are arrays with a leading axis, the places, of which `body` sees
    [`Buffer`][]s. Neither function may close over what is traced, and of `consts` what is no array
    is the same in all lanes.

    With a `width`, at most so many lanes of a batch step at once. Without one all do, until the
    last is done; and so they do, in chunks, where the loop itself is differentiated.

    `keeps`: whether `body` leaves as it is what a lane has for which it does not go on. (A place
    that nobody is left to take steps on with the last lane, and nothing of it is kept.)"""
    carry, writes = spread((carry, writes), consts, reads)
    arrays, static = eqx.partition(consts, eqx.is_array)
    moving, treedef = jtu.tree_flatten((arrays, reads))
    carried, carry_tree = jtu.tree_flatten((carry, writes))
    loop = _Loop(goes_on, body, static, treedef, carry_tree, len(moving), keeps)
    operands = [*moving, *carried]
    if width is None:
        out = loop.one(operands)
    else:
        no_lanes = (False,) * len(moving)
        out = _lane_loop.bind(*operands, loop=loop, width=width, lanes=None, batched=no_lanes)
    return jtu.tree_unflatten(carry_tree, out)


class _Loop:
    """What one loop does, on flat operands: what is read only, and what it carries."""

    def __init__(self, goes_on, body, static, treedef, carry_tree, count: int, keeps: bool):
        self.goes_on, self.body, self.keeps = goes_on, body, keeps
        self.static, self.treedef, self.carry_tree = static, treedef, carry_tree
        self.count = count

    def given(self, moving: list[Array]) -> tuple[PyTree, PyTree]:
        consts, reads = jtu.tree_unflatten(self.treedef, moving)
        return eqx.combine(consts, self.static), reads

    def one(self, operands: list[Array]) -> list[Array]:
        """One lane, or (under `vmap`) all of them in step."""
        consts, reads = self.given(operands[: self.count])
        reads = as_buffers(reads)
        carry, writes = jtu.tree_unflatten(self.carry_tree, operands[self.count :])

        def condition(state):
            on = self.goes_on(consts, state[0])
            return any_lane(on) if self.keeps else on

        def step(state):
            carry, writes = self.body(consts, state[0], reads, as_buffers(state[1]))
            return carry, _arrays(writes)

        return jtu.tree_leaves(lax.while_loop(condition, step, (carry, writes)))

    def in_step(self, operands: list[Array], batched: tuple[bool, ...]) -> list[Array]:
        axes = [0 if b else None for b in batched] + [0] * (len(operands) - self.count)
        return jax.vmap(lambda *xs: self.one(list(xs)), in_axes=axes)(*operands)

    def in_chunks(
        self, operands: list[Array], batched: tuple[bool, ...], lanes: int, width: int
    ) -> list[Array]:
        """`width` lanes in step, then the next."""
        chunks = -(-lanes // width)
        if chunks == 1:
            return self.in_step(operands, batched)
        size = -(-lanes // chunks)
        places = jnp.minimum(jnp.arange(chunks * size), lanes - 1).reshape(chunks, size)
        is_batched = [*batched, *[True] * (len(operands) - self.count)]

        def chunk(places):
            own = [x[places] if b else x for x, b in zip(operands, is_batched, strict=True)]
            return self.in_step(own, batched)

        out = lax.map(chunk, places)
        return [x.reshape(chunks * size, *x.shape[2:])[:lanes] for x in out]

    def in_turn(
        self, operands: list[Array], batched: tuple[bool, ...], lanes: int, width: int
    ) -> list[Array]:
        """`width` lanes; one that is done makes room for the next."""
        if lanes <= width:
            return self.in_step(operands, batched)
        moving = operands[: self.count]
        consts, reads = jtu.tree_unflatten(self.treedef, moving)
        static = self.static
        of_lane, read_lane = jtu.tree_unflatten(self.treedef, batched)
        carry, writes = jtu.tree_unflatten(self.carry_tree, operands[self.count :])
        axes = jtu.tree_map(lambda b: 0 if b else None, of_lane)
        spare = max(width // _SPARE, 1)

        def goes_on(consts, carry):
            return self.goes_on(eqx.combine(consts, static), carry)

        def step_of(consts, carry, lane, on, writes):
            shown = jtu.tree_map(lambda x, b: Buffer(x, lane if b else None), reads, read_lane)
            kept = jtu.tree_map(lambda x: Buffer(x, lane, None if self.keeps else on), writes)
            new, kept = self.body(eqx.combine(consts, static), carry, shown, kept)
            new = new if self.keeps else optax.tree.where(on, new, carry)
            return new, goes_on(consts, new), _arrays(kept)

        step_of = jax.vmap(step_of, in_axes=(axes, 0, 0, 0, None), out_axes=(0, 0, None))
        get = lambda x, ids: x.at[ids].get(mode="clip")
        put_back = lambda x, ids, new: x.at[ids].set(new, mode="drop")

        on = jax.vmap(goes_on, in_axes=(axes, 0))(consts, carry)
        queue, total = jnp.argsort(~on, stable=True), jnp.sum(on)

        def take_turns(state):
            ids, on, first, carry, writes = state
            # The places of those that are done, one after the other, are for the next.
            place = first + jnp.cumsum(~on) - 1
            fresh = ~on & (place < total)
            ids = jnp.where(on, ids, jnp.where(fresh, get(queue, place), lanes))
            on, first = on | fresh, first + jnp.sum(fresh)
            here = jtu.tree_map(lambda x: get(x, ids), carry)
            own = jtu.tree_map(lambda x, b: get(x, ids) if b else x, consts, of_lane)
            least = jnp.where(first < total, width - spare, 0)

            def step(state):
                _, on, here, writes = state
                here, still, writes = step_of(own, here, ids, on, writes)
                on = on & still
                return jnp.sum(on) > least, on, here, writes

            start = (jnp.sum(on) > least, on, here, writes)
            _, on, here, writes = lax.while_loop(lambda state: state[0], step, start)
            carry = jtu.tree_map(lambda x, new: put_back(x, ids, new), carry, here)
            return ids, on, first, carry, writes

        nobody = jnp.full(width, lanes), jnp.zeros(width, bool), jnp.zeros((), int)
        is_left = lambda state: (state[2] < total) | jnp.any(state[1])
        start = spread((*nobody, carry, writes))
        *_, carry, writes = lax.while_loop(is_left, take_turns, start)
        return jtu.tree_leaves((carry, writes))


def as_buffers(tree: PyTree) -> PyTree[Buffer]:
    return jtu.tree_map(Buffer, tree)


def _arrays(tree: PyTree[Buffer]) -> PyTree[Array]:
    return jtu.tree_map(lambda b: b.array, tree, is_leaf=_is_buffer)


_lane_loop = Primitive("lane_loop")
_lane_loop.multiple_results = True


def _evaluate(*operands, loop: _Loop, width: int, lanes: int | None, batched, turns: bool = True):
    if lanes is None:
        return loop.one(list(operands))
    run = loop.in_turn if turns else loop.in_chunks
    return run(list(operands), batched, lanes, width)


_lane_loop.def_impl(_evaluate)


@_lane_loop.def_abstract_eval
def _outputs(*operands, loop: _Loop, **_):
    return list(operands[loop.count :])


def _jvp(primals, tangents, **settings):
    moving = {i: d for i, d in enumerate(tangents) if not isinstance(d, ad.Zero)}

    def run(moved):
        return _evaluate(*(moved.get(i, x) for i, x in enumerate(primals)), **settings, turns=False)

    out, d_out = jax.jvp(run, ({i: primals[i] for i in moving},), (moving,))
    zero = lambda x, d: d.dtype == jax.dtypes.float0
    d_out = [
        ad.Zero(jax.typeof(x).to_tangent_aval()) if zero(x, d) else d
        for x, d in zip(out, d_out, strict=True)
    ]
    return out, d_out


def _batch(operands, axes, *, loop: _Loop, width: int, lanes: int | None, batched):
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    has_lanes = [*batched, *[lanes is not None] * (len(operands) - loop.count)]
    joint = []
    for i, (x, axis, has) in enumerate(zip(operands, axes, has_lanes, strict=True)):
        if axis is not None:
            x = jnp.moveaxis(x, axis, 0)
        elif has or i >= loop.count:
            x = jnp.broadcast_to(x, (size, *jnp.shape(x)))
        else:  # the same in all lanes
            joint.append((x, False))
            continue
        if lanes is not None:  # lanes of lanes are lanes
            if not has and i < loop.count:
                x = jnp.broadcast_to(x[:, None], (size, lanes, *x.shape[1:]))
            x = x.reshape(size * lanes, *x.shape[2:])
        joint.append((x, True))
    total = size if lanes is None else size * lanes
    flags = tuple(b for _, b in joint[: loop.count])
    out = _lane_loop.bind(
        *(x for x, _ in joint), loop=loop, width=width, lanes=total, batched=flags
    )
    if lanes is not None:
        out = [x.reshape(size, lanes, *x.shape[1:]) for x in out]
    return out, [0] * len(out)


ad.primitive_jvps[_lane_loop] = _jvp
batching.primitive_batchers[_lane_loop] = _batch
mlir.register_lowering(_lane_loop, mlir.lower_fun(_evaluate, multiple_results=True))


_put = Primitive("put")


def _put_all(buffer, lane, place, value):
    lane = lane.reshape(*lane.shape, *[1] * (place.ndim - lane.ndim))
    return buffer.at[lane, place].set(value, mode="drop")


_put.def_impl(_put_all)
_put.def_abstract_eval(lambda buffer, lane, place, value: buffer)


def _batch_put(operands, axes):
    buffer, *rest = operands
    assert axes[0] is None  # that of all lanes
    size = next(x.shape[a] for x, a in zip(rest, axes[1:], strict=True) if a is not None)
    rest = [
        jnp.broadcast_to(x, (size, *jnp.shape(x))) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(rest, axes[1:], strict=True)
    ]
    return _put.bind(buffer, *rest), None


batching.primitive_batchers[_put] = _batch_put
mlir.register_lowering(_put, mlir.lower_fun(_put_all, multiple_results=False))
