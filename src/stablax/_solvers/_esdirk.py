"""diffrax's ESDIRK solvers with a root finder that does not reject good steps."""

import functools
import re
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from ._patient_chord import PatientChord

# Part of the tolerance to which KenCarp's stages are solved, and iterations for it: see `kencarp4`.
_KAPPA_KENCARP, _STEPS_KENCARP = 1e-4, 20

# The newest release whose own root finder is known to fail; later ones are put to the test.
_NEWEST_KNOWN = (0, 7, 2)


def _finder(**options: Any) -> optx.AbstractRootFinder:
    return diffrax.with_stepsize_controller_tols(PatientChord)(**options)


def kvaerno3() -> diffrax.Kvaerno3:
    """`diffrax.Kvaerno3` (Kvaerno 2004, an A-L-stable ESDIRK of order 3/2) with a root finder
    that does not reject good steps: [`PatientChord`][]. For low accuracy.

    As [`kvaerno5`][] in all else.

    **Returns:** a `diffrax.Kvaerno3`.
    """
    if default_is_cured():
        return diffrax.Kvaerno3()
    return diffrax.Kvaerno3(root_finder=_finder())


def kvaerno5() -> diffrax.Kvaerno5:
    """`diffrax.Kvaerno5` (Kvaerno 2004, an A-L-stable ESDIRK of order 5/4) with a root finder
    that does not reject good steps: [`PatientChord`][].

    Its tolerances are those of the step size controller, as in diffrax. In plain
    `diffrax.diffeqsolve` its gradient is protected by a guarded field ([`Guarded`][]). In a model
    with the default adjoint, or `ForwardMode`, stablax takes its steps: the same ones. With a
    release of diffrax whose own root finder solves what ours does, it is diffrax's solver as it
    is.

    **Returns:** a `diffrax.Kvaerno5`.
    """
    if default_is_cured():
        return diffrax.Kvaerno5()
    return diffrax.Kvaerno5(root_finder=_finder())


def kencarp4() -> diffrax.KenCarp4:
    """`diffrax.KenCarp4` (Kennedy and Carpenter 2003, the IMEX method ARK4(3)6L[2]SA) with a root
    finder that does not reject good steps: [`PatientChord`][]. A model treats the whole field
    implicitly; plain `diffrax.diffeqsolve` takes `MultiTerm(explicit, implicit)`.

    As diffrax comes, KenCarp4 fails on most stiff problems at some tolerance, for two reasons.
    Its first stage is explicit and not the last one of the step before, and is still sent to the
    root finder, as the equation k = h f(y0) that a single iteration solves: all further changes
    are rounding, do not shrink, and are reported as divergence however small the step. And its
    linear predictors seldom let a later stage converge in the two iterations that there are.

    What remains: because h f(y0) is evaluated anew, an error in y0 enters multiplied by h times
    the stiffest rate. The stages are therefore solved to 1e-4 of the tolerance (Kvaerno's, which
    hand f on, to 1e-2), and where h times the stiffest rate exceeds about 1e11 even rounding is
    too much: conserved quantities with such rates want [`kvaerno5`][].

    **Returns:** a `diffrax.KenCarp4`.
    """
    if default_is_cured():
        return diffrax.KenCarp4()
    return diffrax.KenCarp4(
        root_finder=_finder(kappa=_KAPPA_KENCARP), root_find_max_steps=_STEPS_KENCARP
    )


@functools.cache
def default_is_cured() -> bool:
    """Whether diffrax's own root finder needs no replacement."""
    numbers = re.findall(r"\d+", diffrax.__version__)[:3]
    if tuple(int(n) for n in numbers) <= _NEWEST_KNOWN:
        return False
    try:
        with jax.ensure_compile_time_eval():
            return solves_a_hard_stage(diffrax.Kvaerno5().root_finder)
    except Exception:  # It has changed so much that it cannot be asked.
        return False


def solves_a_hard_stage(root_finder: optx.AbstractRootFinder) -> bool:
    """Whether a root finder, given as to a diffrax solver, solves one stage of a stiff reaction
    network next to its steady state: it takes more than two iterations, and f cannot be computed
    as precisely as the tolerance asks of y."""
    rtol, atol = 1e-3, 1e-6
    root_finder = eqx.tree_at(
        lambda f: (f.rtol, f.atol, f.norm), root_finder, (rtol, atol, optx.max_norm)
    )
    rate = 1e9  # In float32: f is the difference of numbers of about 1e9, and off by 1e2.

    def vf(t, y, args):
        flux = jnp.stack([y[0] - 0.3 * y[1], 2 * y[1] * y[2] - 0.5 * y[2], 1e-3 * y[2]])
        return rate * jnp.stack([flux[2] - flux[0], flux[0] - flux[1], flux[1] - flux[2]])

    def prod(f, control):
        return f * control

    def equation(f, args):
        _, diagonal, vf, prod, t, partial, args, control = args
        return f - vf(t, partial + diagonal * prod(f, control), args)

    # At rest but for rounding, and guessed to be far from it.
    partial = jnp.array([0.07645, 0.2505, 1.3], jnp.float32)
    guess = jnp.array([300.0, 300.0, -600.0], jnp.float32)
    one = jnp.ones((), jnp.float32)
    args = (jnp.array(1), 0.26 * one, vf, prod, one, partial, None, 1e-3 * one)
    found = optx.root_find(equation, root_finder, guess, args, max_steps=10, throw=False)
    return bool(found.result == optx.RESULTS.successful)
