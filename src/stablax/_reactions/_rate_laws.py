"""Rate laws: how fast one reaction goes."""

import abc
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray, PyTree

from .._static import Frozen, Split
from .._types import Explained, typechecked
from .._words import clipped, short
from ._constants import ConstantLike, Named, rate_constant
from ._reaction import Reaction, decimal
from ._saturation import arcsinh, power, share


class AbstractRateLaw(eqx.Module):
    """The rate of one reaction as a function of species and inputs. Abstract: subclass it and
    write `reads` and `rate`. Multiplied, two laws are a law.

    ```python
    class Inhibited(sx.AbstractRateLaw):
        vmax: Any = eqx.field(converter=sx.rate_constant)
        km: Any = eqx.field(converter=sx.rate_constant)
        ki: Any = eqx.field(converter=sx.rate_constant)
        inhibitor: Any = eqx.field(converter=sx.rate_constant)  # a name

        def reads(self, reaction):
            (substrate,) = reaction.names
            return substrate

        def rate(self, x):
            return self.vmax * x / (self.km * (1 + self.inhibitor / self.ki) + x)

    law = Inhibited(2.0, 0.5, 0.1, "drug")
    ```

    Laws of one kind are evaluated together, in one `vmap` over the reactions that have them.
    """

    @abc.abstractmethod
    def reads(self, reaction: Reaction) -> Any:
        """The names of the species and inputs that the rate depends on, in any PyTree (a tuple, a
        dict).

        **Arguments:**

        - `reaction`: the [`Reaction`][] that has this law.
        """

    @abc.abstractmethod
    def rate(self, x: PyTree) -> Any:
        """The rate [amount/time], a scalar.

        **Arguments:**

        - `x`: the values of what `reads` names, in the same PyTree. Constants made by
            [`rate_constant`][] are numbers here.
        """

    def __mul__(self, other: "AbstractRateLaw") -> "ProductRate":
        if not isinstance(other, AbstractRateLaw):
            raise TypeError(f"A rate law can be multiplied by a rate law, not by {short(other)}.")
        return ProductRate((self, other))

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if f.repr and getattr(self, f.name) is not None and getattr(self, f.name) is not False
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@final
class ProductRate(AbstractRateLaw):
    """The product of rate laws, which `*` makes: `MassAction(k) * Hill(...)`.

    **Arguments:**

    - `factors`: the rate laws.
    """

    factors: tuple[AbstractRateLaw, ...]

    def reads(self, reaction):
        return tuple(law.reads(reaction) for law in self.factors)

    def rate(self, x):
        rates = [law.rate(values) for law, values in zip(self.factors, x, strict=True)]
        return functools.reduce(operator.mul, rates)

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors))


_HIGHEST_ORDER = 100  # more molecules do not meet: a larger coefficient is of a lumped reaction


@final
class MassAction(AbstractRateLaw):
    """k times the product of all reactants, each as often as its coefficient says: `A + 2 B -> C`
    goes at k A B^2, and `MassAction(k, orders={"A": 0.5, "B": 1})` at k A^0.5 B. Without a
    combinatorial factor.

    Exact, with finite derivatives of all orders, at zero too. An order n that is not whole has
    an infinite slope at zero for n < 1, as [`Hill`][] has; below zero the power is what it is at
    zero.

    Coefficients say the orders only where they count the molecules that meet. A matrix that was
    divided by volumes, or a lumped reaction, has others: without `orders`, all coefficients of
    the reaction must be whole. (A text whose reactants have no coefficients, as
    `A -> 0.7 B + 0.3 C`, is first order in each: what it yields may be any number.)

    **Arguments:**

    - `k`: the rate constant; see [`rate_constant`][]. In units of rate/state^order, with the
        sum of all orders: of amount/time/concentration^order with `volumes`.
    - `orders`: the order of the rate in each reactant, and in what else it depends on (an input,
        a catalyst that a matrix does not show), by name: numbers from 0 to 100, not trained.
        By default the coefficients of the reactants.

    **Raises:** `ValueError` for an order out of range; from the [`ReactionField`][] for `orders`
    without one of the reactants, and for coefficients that are no orders.
    """

    k: Any
    _bases: tuple[Named, ...] | None
    _exponents: tuple[float, ...] = eqx.field(static=True)

    @typechecked
    def __init__(self, k: Explained[ConstantLike], *, orders: Mapping[str, Any] | None = None):
        for name, n in (orders or {}).items():
            if not (isinstance(n, Real) and 0 <= float(n) <= _HIGHEST_ORDER):
                raise ValueError(
                    f"`orders[{short(name)}]` must be a number from 0 to {_HIGHEST_ORDER}, got "
                    f"{short(n)}."
                )
        self.k = rate_constant(k)
        self._bases = None if orders is None else tuple(map(Named, orders))
        self._exponents = tuple(map(float, (orders or {}).values()))

    @property
    def orders(self) -> dict[str, float] | None:
        """The orders that were given, by name."""
        if self._bases is None:
            return None
        return dict(zip([base.name for base in self._bases], self._exponents, strict=True))

    def reads(self, reaction):
        orders = self.orders
        if orders is None:
            _check_orders(reaction)
            return tuple(name for name, n in reaction.reactants for _ in range(int(n)))
        for name in reaction.names:
            if name not in orders:
                raise ValueError(
                    f"`orders` must name every reactant, and lacks `{clipped(name)}`: 0 where the "
                    "rate does not depend on it."
                )
        return ()

    def rate(self, x):
        if self._bases is not None:
            # Inside `rate` names are values.
            x = map(_power, self._bases, self._exponents)
        return functools.reduce(operator.mul, x, self.k)

    def __repr__(self) -> str:
        if self._bases is None:
            return f"MassAction(k={self.k!r})"
        each = zip(self._bases, self._exponents, strict=True)
        orders = ", ".join(f"{short(base)}: {n:.6g}" for base, n in each)
        return f"MassAction(k={self.k!r}, orders={{{orders}}})"


def _check_orders(reaction: Reaction) -> None:
    """Raises a `ValueError` where the coefficients of a reaction do not say its orders."""
    counted = not reaction.from_matrix and all(n == 1 for _, n in reaction.reactants)
    sides = () if counted else (*reaction.reactants, *reaction.products)
    wrong = [(name, n) for name, n in sides if n % 1]
    wrong += [(name, n) for name, n in reaction.reactants if n > _HIGHEST_ORDER]
    if wrong and reaction.reactants:
        (name, n), *_ = wrong
        orders = ", ".join(f'"{reactant}": ...' for reactant in reaction.names)
        raise ValueError(
            "mass action takes its orders from whole coefficients, as many as molecules can meet, "
            f"and {clipped(f'{decimal(n)} {name}')} is none. If the coefficients were divided by "
            "the volumes of compartments, give them undivided, with `volumes=`; if not, say the "
            f"orders: `MassAction(k, orders={{{clipped(orders)}}})`."
        )


def _power(x, n: float):
    """x^n for a static n >= 0, of x below zero what it is at zero unless n is whole."""
    if n % 1 == 0:
        return x ** int(n)
    above = x > 1
    small = power(jnp.where(above, 1, jnp.where(x < 0, 0, x)), 1.0, n)
    return jnp.where(above, jnp.where(above, x, 1) ** n, small)


def _named(name: str | Named | None) -> Named | None:
    if name is None or isinstance(name, Named):
        return name
    if not isinstance(name, str):
        raise TypeError(f"Expected the name of a species or an input, got {short(name)}.")
    return Named(name)


def _saturating(of: Named | None, reaction: Reaction, enzyme: Named | None = None) -> str:
    """The quantity that a saturable law depends on: the one named, or the only reactant."""
    if of is not None:
        return of.name
    names = [name for name in reaction.names if enzyme is None or name != enzyme.name]
    if len(names) != 1:
        raise ValueError(
            f"this law needs one reactant, and there are {len(names)}: say which quantity it "
            'depends on with `of="..."`.'
        )
    return names[0]


@final
class MichaelisMenten(AbstractRateLaw):
    """vmax S / (km + S), and times E if there is an `enzyme` (`vmax` is then k_cat).

    With exact derivatives, far above km too. Michaelis and Menten (1913), Biochem. Z. 49, 333.

    **Arguments:**

    - `vmax`: the largest rate; see [`rate_constant`][].
    - `km`: S at half of it.
    - `of`: the name of S; by default the reaction's only reactant other than the enzyme.
    - `enzyme`: the name of E.
    """

    vmax: Any = eqx.field(converter=rate_constant)
    km: Any = eqx.field(converter=rate_constant)
    of: Any = eqx.field(converter=_named, default=None, kw_only=True)
    enzyme: Any = eqx.field(converter=_named, default=None, kw_only=True)

    def reads(self, reaction):
        substrate = _saturating(self.of, reaction, self.enzyme)
        return (substrate,) if self.enzyme is None else (substrate, self.enzyme.name)

    def rate(self, x):
        substrate, *enzyme = x
        return functools.reduce(operator.mul, enzyme, self.vmax) * share(substrate, self.km)


@final
class Hill(AbstractRateLaw):
    """vmax S^n / (k^n + S^n), or, if it `represses`, vmax k^n / (k^n + S^n).

    For any n > 0 without overflow, with exact derivatives of all orders, at S = 0 too. Those that
    are infinite there (in S, of an order above n, unless n is whole), or have an infinite square,
    are those at S = sqrt(eps) k instead. Below zero it is what it is at zero. A. V. Hill (1910),
    J. Physiol. 40, iv.

    **Arguments:**

    - `vmax`: the largest rate; see [`rate_constant`][]. `Frozen(1.0)` where it is a factor of a
        product.
    - `k`: S at half of it.
    - `n`: the Hill coefficient.
    - `of`: the name of S; by default the reaction's only reactant.
    - `represses`: whether S represses the reaction.
    """

    vmax: Any = eqx.field(converter=rate_constant)
    k: Any = eqx.field(converter=rate_constant)
    n: Any = eqx.field(converter=rate_constant)
    of: Any = eqx.field(converter=_named, default=None, kw_only=True)
    represses: bool = eqx.field(static=True, default=False, kw_only=True)

    def reads(self, reaction):
        return _saturating(self.of, reaction)

    def rate(self, x):
        x = jnp.where(x < 0, 0, x)
        above = x > self.k
        # (S / k)^n or its reciprocal: in [0, 1], it cannot overflow.
        small = power(x, self.k, jnp.where(above, -self.n, self.n))
        full = above != self.represses
        return self.vmax * share(jnp.where(full, 1, small), jnp.where(full, small, 1))


@final
class NeuralRate(AbstractRateLaw):
    """A rate that is learned: scale softplus(MLP(arcsinh(x / size))), which is positive.

    Most useful as a factor: `MassAction(k) * NeuralRate(("X",), key=key)` goes at k A g(X), is
    zero where there is no A, and so cannot make a concentration negative. arcsinh is linear below
    `size` and logarithmic above. At the start g is close to `scale`: the last layer's
    weights are a tenth of the usual size.

    **Arguments:**

    - `of`: the names of what it depends on.
    - `scale`: the rate that the network is relative to; see [`rate_constant`][]. By default 1,
        held.
    - `size`: > 0, what counts as large, in the units of `of`. By default 1.
    - `width`, `depth`: of the network; by default one hidden layer of 8.
    - `activation`: smooth, elementwise; by default `tanh`.
    - `key`: a PRNG key for the initial weights.
    - `dtype`: of the weights; by default jax's default floating-point type.
    """

    scale: Any
    network: Split = eqx.field(repr=False)
    of: tuple[Named, ...]
    size: float = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        of: Sequence[str],
        *,
        key: PRNGKeyArray,
        scale: Explained[ConstantLike] = Frozen(1.0),
        size: float = 1.0,
        width: int = 8,
        depth: int = 1,
        activation: Callable = jnp.tanh,
        dtype: Explained[DTypeLike | None] = None,
    ):
        if isinstance(of, str) or not of:
            raise ValueError(
                f'`of` must name one or more quantities, as `("A",)`, got {short(of)}.'
            )
        if not 0 < size < jnp.inf:
            raise ValueError(f"`size` must be finite and above 0, got {size}.")
        network = eqx.nn.MLP(len(of), "scalar", width, depth, activation, dtype=dtype, key=key)
        last = network.layers[-1]
        assert last.bias is not None
        bias = jnp.full_like(last.bias, jnp.log(jnp.expm1(1.0)))  # softplus of it is 1
        network = eqx.tree_at(
            lambda m: (m.layers[-1].weight, m.layers[-1].bias), network, (last.weight / 10, bias)
        )
        self.scale = rate_constant(scale)
        self.network = Split(network, "network")
        self.of = tuple(Named(name) for name in of)
        self.size = float(size)

    def reads(self, reaction):
        return tuple(name.name for name in self.of)

    def rate(self, x):
        features = arcsinh(jnp.stack(x) / self.size)
        return self.scale * jax.nn.softplus(self.network.tree(features))
