"""Reaction networks with at most two reactants, as two gathers and one matrix product."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, eq=False)
class Network:
    """The field of a reaction network: called with `(k, y, *extras)`, it returns dy/dt.

    - `change`: stoichiometry, shape `(species, reactions)`.
    - `used`: the two factors of each rate, shape `(2, reactions)`: indices into (1, y, extras).
    """

    change: np.ndarray
    used: np.ndarray

    def __call__(self, k, y, *extras):
        z = jnp.concatenate([jnp.ones_like(y[:1]), y, *(extra[None] for extra in extras)])
        return jnp.asarray(self.change, y.dtype) @ (k * z[self.used[0]] * z[self.used[1]])


def network(reactions: str, size: int) -> Network:
    """Reads reactions such as `2+3>2+2+1`, separated by `;`, between species `1 ... size` (`0` is
    nothing). The rate is k times the product of at most two reactants. Letters `a`, `b` stand for
    quantities that drive a reaction and are not used up."""
    symbols = ["0", *(str(i + 1) for i in range(size)), "a", "b"]
    sides = [[side.split("+") for side in each.split(">")] for each in reactions.split(";")]
    change, used = np.zeros((size, len(sides))), np.zeros((2, len(sides)), int)
    for column, (reactants, products) in enumerate(sides):
        for sign, side in ((-1, reactants), (1, products)):
            for symbol in side:
                if symbol.isdigit() and symbol != "0":
                    change[int(symbol) - 1, column] += sign
        used[: len(reactants), column] = [symbols.index(symbol) for symbol in reactants]
    return Network(change, used)
