"""A known field with a learned part."""

from typing import Any, Literal, final

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._coordinates import AbstractCoordinates
from .._fields import Guard, GuardedField, bare, declared_conserved, declared_species
from .._linalg import JacobianLike, as_jacobian, row_projector
from .._reactions import ReactionField
from .._states import same_shape_and_dtype
from .._static import Frozen, Split, real_array
from .._types import VF, Explained, NumbersLike, ScalarLike, typechecked
from .._words import called, short, shown


@final
class HybridField(GuardedField):
    """A mechanistic field and a learned correction.

    ```python
    field = sx.HybridField(known, sx.MLPField(3, 16, 2, key=key), gate=0.0, conserve=True)
    ```

    With v and N the rates and the stoichiometry of `known`, and g the gate (1 without one),
    dy/dt is, by `mode`,

    - `"additive"`: known + g learned. Keeps what `conserve` says; can make a concentration
        negative.
    - `"additive_rates"`: N (v + g learned). Keeps all that N conserves; can make a concentration
        negative.
    - `"multiplicative_rates"`: N (v exp(g learned)). Keeps all that N conserves and the signs of
        the rates, and so keeps concentrations positive if `known` does. `learned` should be
        bounded.

    **Arguments:**

    - `known`: any field f(t, y, args), on any state; for the modes on rates, a
        [`ReactionField`][]. If it is guarded, its guard becomes that of the whole.
    - `learned`: any callable f(t, y, args), without a guard of its own. It returns the structure
        and shapes of the state; for the modes on rates, an array of shape `(reactions,)`.
    - `mode`: one of these.
    - `gate`: `None` (no gate), or the initial value of a trainable number g. At `0.0` the hybrid
        starts as the known field exactly, and the gate opens with the first step of training
        (Bachlechner et al. 2021, ReZero is all you need).
    - `conserve`: `True` projects the learned part orthogonally, so that the conserved quantities
        which `known` declares are kept to rounding, and hands them to the steady-state engine;
        rows L, shape `(quantities, components)`, do the same for these. `False` (the default)
        does neither. Without use for the modes on rates, which keep all that N conserves.
    - `guard`: a [`Guard`][]; by default that of `known`.
    - `jacobian`: as in [`GuardedField`][].

    **Raises:** `TypeError` or `ValueError` for parts that do not fit each other, `conserve=True`
    where `known` declares nothing, and a guarded `learned`.
    """

    _known: Split
    _learned: Split
    gate: Float[Array, ""] | None
    conserved: Frozen | None
    mode: str = eqx.field(static=True)

    @typechecked
    def __init__(
        self,
        known: VF,
        learned: VF,
        *,
        mode: Literal["additive", "additive_rates", "multiplicative_rates"] = "additive",
        gate: Explained[ScalarLike | None] = None,
        conserve: Explained[bool | NumbersLike] = False,
        guard: Guard | None = None,
        jacobian: Explained[JacobianLike] = None,
    ):
        if mode != "additive" and not isinstance(known, ReactionField):
            raise TypeError(
                f'`mode="{mode}"` changes the rates of a `ReactionField`, and `known` is a '
                f'{type(known).__name__}. Any field takes `mode="additive"`.'
            )
        if bare(learned)[0] != Guard():
            raise ValueError(
                f"`learned` has a guard of its own, {bare(learned)[0]}, which would not be used. "
                "Give `guard=` to the `HybridField`."
            )
        self._known = Split(known, "known")
        self._learned = Split(learned, "learned")
        self.mode = mode
        self.gate = None if gate is None else _number(gate)
        self.conserved = _rows(known, mode, conserve)
        self.guard = bare(known)[0] if guard is None else guard
        self.jacobian = as_jacobian(jacobian)

    def vector_field(self, t, y, args):
        correction = bare(self.learned)[1](t, y, args)
        if self.mode == "additive":
            known = bare(self.known)[1](t, y, args)
            same_shape_and_dtype(correction, y, "`learned`")
            change = self._gated(self._projected(correction))
            return jtu.tree_map(jnp.add, known, change)
        network = self.known
        rates = network.rates(t, y, args)
        same_shape_and_dtype(correction, rates, "`learned`, which must return rates,")
        change = self._gated(correction)
        multiplies = self.mode == "multiplicative_rates"
        rates = rates * jnp.exp(change) if multiplies else rates + change
        return jnp.asarray(network.stoichiometry.value, y.dtype) @ rates

    def __repr__(self) -> str:
        parts = [shown(self.known), shown(self.learned), f"mode={self.mode!r}"]
        parts += [] if self.gate is None else [f"gate={shown(self.gate)}"]
        parts += [] if self.conserved is None else [f"conserve={self.conserved}"]
        return called("HybridField", parts)

    @property
    def known(self) -> Any:
        """The known field, as it was given."""
        return self._known.tree

    @property
    def learned(self) -> Any:
        """The learned correction, as it was given."""
        return self._learned.tree

    @property
    def species(self) -> tuple[str, ...] | None:
        """The names of the components, if `known` has them."""
        return declared_species(self.known)

    def _gated(self, change: PyTree) -> PyTree:
        gate = self.gate
        return change if gate is None else jtu.tree_map(lambda x: gate * x, change)

    def _projected(self, change: PyTree) -> PyTree:
        if self.conserved is None or self.conserved.value.size == 0:
            return change
        flat, unravel = ravel_pytree(change)
        if self.conserved.shape[1] != flat.size:
            raise ValueError(
                f"`conserve` has shape {self.conserved.shape}: it needs one column for each of the "
                f"{flat.size} components of the state."
            )
        projector = row_projector(self.conserved.value.astype(float))
        return unravel(flat - jnp.asarray(projector, flat.dtype) @ flat)


def _number(gate: ScalarLike) -> Array:
    gate = jnp.asarray(gate)
    if not jnp.issubdtype(gate.dtype, jnp.floating):
        gate = gate.astype(float)
    if gate.shape != ():
        raise ValueError(f"`gate` must be None or one number, got shape {gate.shape}.")
    return jnp.asarray(gate, gate.dtype)  # a Python float is a weak type


def _rows(known: VF, mode: str, conserve: bool | NumbersLike) -> Frozen | None:
    declared = declared_conserved(known)
    if isinstance(conserve, bool):
        if conserve and isinstance(known, AbstractCoordinates):
            raise ValueError(
                f"`conserve=True` for a `{type(known).__name__}`: what its field conserves is not "
                "linear in its coordinates. Put the `HybridField` inside."
            )
        if conserve and declared is None:
            raise ValueError(
                "`conserve=True`, but `known` declares nothing that it conserves (an attribute "
                "`conserved` or `stoichiometry`). Give the rows, or what "
                "`conserved_quantities(known, y0)` returns."
            )
        return declared if conserve or mode != "additive" else None
    if mode != "additive":
        raise ValueError(
            f'`conserve` has no use with `mode="{mode}"`, which keeps what N conserves in any case.'
        )
    rows = np.atleast_2d(real_array(conserve, "conserve"))
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(
            f"`conserve` must be True, False or a finite matrix of rows, got {short(conserve)}."
        )
    return Frozen(rows)
