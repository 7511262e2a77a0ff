"""diffrax's ESDIRK solvers with a root finder that does not reject good steps."""

from collections.abc import Callable
from typing import Any, final

import diffrax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree


@final
class PatientChord(optx.AbstractRootFinder):
    """`diffrax.VeryChord` that reports a failure only when it gives up.

    With diffrax 0.7.2 and optimistix 0.1.0, `VeryChord.terminate` returns "diverged" whenever it
    has not converged by its second iteration, though it wants to go on, and the iteration stops
    on any failure: half of Kvaerno5's attempts are rejected for it. (Known upstream: optimistix
    issues 221 and 230, diffrax pull request 754.)

    **Arguments:** as `diffrax.VeryChord`: `rtol`, `atol`, `norm` of the scaled iterate
    difference, and `kappa`, the fraction of the tolerance to converge to.
    """

    rtol: float
    atol: float
    norm: Callable[[PyTree], Any] = optx.max_norm
    kappa: float = 1e-2

    @property
    def _chord(self) -> diffrax.VeryChord:
        return diffrax.VeryChord(rtol=self.rtol, atol=self.atol, norm=self.norm, kappa=self.kappa)

    def init(self, *args, **kwargs):
        return self._chord.init(*args, **kwargs)

    def step(self, *args, **kwargs):
        return self._chord.step(*args, **kwargs)

    def terminate(self, fn, y, args, options, state, tags):
        done, result = self._chord.terminate(fn, y, args, options, state, tags)
        # An iterate difference far below the tolerance is convergence, whatever its rate: at the
        # level of rounding the rate is noise, and would pass for divergence.
        converged = (state.step >= 2) & (state.diffsize < self.kappa)
        good = converged | jnp.invert(done)
        return done | converged, optx.RESULTS.where(good, optx.RESULTS.successful, result)

    def postprocess(self, *args, **kwargs):
        return self._chord.postprocess(*args, **kwargs)


def kvaerno5() -> diffrax.Kvaerno5:
    """`diffrax.Kvaerno5` (Kvaerno 2004, an A-L-stable ESDIRK of order 5/4) with a root finder
    that does not reject good steps.

    Its tolerances are those of the step size controller, as in diffrax. In plain
    `diffrax.diffeqsolve` its gradient is protected by a guarded field ([`Guarded`][]).

    **Returns:** a `diffrax.Kvaerno5`.
    """
    return diffrax.Kvaerno5(
        root_finder=diffrax.with_stepsize_controller_tols(PatientChord)(),
        root_find_max_steps=10,
    )
