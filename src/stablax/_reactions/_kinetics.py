"""The rates of all reactions at once: laws of one kind in one `vmap`."""

from collections.abc import Sequence
from typing import Any, final

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, Float

from .._static import Frozen, Static
from .._words import clipped, closest, short
from ._constants import (
    Declared,
    Held,
    Named,
    Trained,
    is_constant,
    stack_constants,
    take_constant,
)
from ._rate_laws import AbstractRateLaw
from ._reaction import Reaction


class _Alike(eqx.Module):
    """Reactions with one kind of law."""

    law: AbstractRateLaw  # its arrays and constants have an axis: one entry for each reaction
    reads: Any = eqx.field(static=True)  # the structure of what the law reads
    quantities: Frozen  # shape `(reads, reactions)`, indices into the species and inputs

    def rates(self, z: Float[Array, " quantities"]) -> Float[Array, " reactions"]:
        x = jtu.tree_unflatten(self.reads, list(z[self.quantities.value]))
        law = _map_constants(lambda c: c.values(z), self.law)
        return eqx.filter_vmap(lambda law, x: law.rate(x))(law, x)

    def take(self, i: int, names: Sequence[str]) -> AbstractRateLaw:
        constants = _map_constants(lambda c: take_constant(c, i, names), self.law)
        take = lambda x: x[i] if eqx.is_array(x) else x
        return jtu.tree_map(take, constants, is_leaf=is_constant)


def _map_constants(fn, law):
    return jtu.tree_map(lambda x: fn(x) if is_constant(x) else x, law, is_leaf=is_constant)


def _kind(law: AbstractRateLaw, reads) -> tuple:
    """Equal for laws that differ in nothing but numbers and names."""
    plain = {Trained: "trained", Declared: "declared", Held: "held", Named: "named"}
    constants = _map_constants(lambda c: plain[type(c)], law)
    arrays, rest = eqx.partition(constants, eqx.is_array)
    shapes = tuple((x.shape, str(x.dtype)) for x in jtu.tree_leaves(arrays))
    dtypes = tuple(
        str(c.log.dtype)
        for c in jtu.tree_leaves(law, is_leaf=is_constant)
        if isinstance(c, Trained)
    )
    return Static(rest, "rates"), shapes, dtypes, jtu.tree_structure(reads)


def _stack(laws: list[AbstractRateLaw], index) -> AbstractRateLaw:
    def leaf(*xs):
        if is_constant(xs[0]):
            return stack_constants(xs, index)
        return jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0]

    return jtu.tree_map(leaf, *laws, is_leaf=is_constant)


@final
class RateLaws(eqx.Module):
    """The rates of reactions, `(reactions,)`, from their laws: one gather and one `vmap` for each
    kind of law."""

    alike: tuple[_Alike, ...]
    order: Frozen  # for each reaction, where its rate is among those of all groups

    def __init__(
        self, reactions: Sequence[Reaction], laws: Sequence[AbstractRateLaw], names: Sequence[str]
    ):
        groups: dict[tuple, list[int]] = {}
        reads = []
        for i, (reaction, law) in enumerate(zip(reactions, laws, strict=True)):
            reads.append(
                _names_read(law, reaction, names, f"Reaction {i + 1}, `{clipped(str(reaction))}`")
            )
            groups.setdefault(_kind(law, reads[-1]), []).append(i)
        index = {name: i for i, name in enumerate(names)}
        self.alike = tuple(
            _Alike(
                _stack([laws[i] for i in members], index.__getitem__),
                kind[-1],
                Frozen(
                    np.array(
                        [[index[name] for name in jtu.tree_leaves(reads[i])] for i in members], int
                    ).T.reshape(kind[-1].num_leaves, len(members))
                ),
            )
            for kind, members in groups.items()
        )
        self.order = Frozen(np.argsort([i for members in groups.values() for i in members]))

    def __call__(self, z: Float[Array, " quantities"]) -> Float[Array, " reactions"]:
        rates = [group.rates(z) for group in self.alike]
        return rates[0] if len(rates) == 1 else jnp.concatenate(rates)[self.order.value]

    def laws(self, names: Sequence[str]) -> tuple[AbstractRateLaw, ...]:
        """The law of each reaction."""
        flat = [
            group.take(i, names) for group in self.alike for i in range(group.quantities.shape[1])
        ]
        return tuple(flat[i] for i in self.order.value)


def _names_read(law: AbstractRateLaw, reaction: Reaction, names: Sequence[str], where: str) -> Any:
    try:
        reads = law.reads(reaction)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    constants = [c for c in jtu.tree_leaves(law, is_leaf=is_constant) if isinstance(c, Named)]
    for name in (*jtu.tree_leaves(reads), *(c.name for c in constants)):
        if not isinstance(name, str):
            raise TypeError(f"{where}: `reads` must return names, got {short(name)}.")
        if name not in names:
            raise ValueError(
                f"{where}: {type(law).__name__} needs `{clipped(name)}`, which is neither a "
                f"species nor an input. {closest(name, names)}"
            )
    return reads
