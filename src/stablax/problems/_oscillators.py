"""A relaxation oscillator, and a system that overflows."""

import jax.numpy as jnp
import numpy as np

from ._problem import Problem


def van_der_pol(t, y, mu):
    return jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1]) - y[0]])


VAN_DER_POL = Problem(
    name="van der Pol",
    field=van_der_pol,
    y0=np.array([2.0, 0.0]),
    args=np.array(1e3),
    t1=2e3,
    ts=np.linspace(0, 2e3, 9)[1:],  # none of them within a jump
    floor=1e-3,
    source="Test Set for IVP Solvers, problem VDPOL, mu = 1e3, one period",
)

K_BEFORE, K_AFTER = -2.2910986, -3.2617188


def issue_368(t, y, p):
    first = jnp.expm1(p[2] - y[0] - y[1]) * jnp.exp(p[0])
    return jnp.stack([first, jnp.expm1(K_AFTER - y[1]) * jnp.exp(p[1])])


ISSUE_368 = Problem(
    name="#368",
    field=issue_368,
    y0=np.array([2.29084657 - K_BEFORE, K_BEFORE]),
    args=np.array([10.02095681, 19.194259, 2.29084657]),
    t1=1e3,
    ts=np.geomspace(1e-9, 1e3, 13),
    floor=1e-3,
    spread=0.1,
    source="https://github.com/patrick-kidger/diffrax/issues/368, after its change of input",
)
