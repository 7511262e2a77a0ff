"""Repeated dosing of a two-compartment drug: 1 dose and 100, to compile, to solve, and in error.

    python benchmarks/phases.py

The time to compile is the median of `REPEATS` programs, each for a function not seen before, with
1 and 100 doses in turn. The error is against the closed form, relative to the largest amount.
"""

import time

import harness
import jax
import jax.numpy as jnp
import numpy as np

import stablax as sx

REPEATS = 5
PERIOD = 2.0  # h
RATES = np.array([0.4, 0.7, 0.2])  # elimination, to the tissue, and back [1/h]
AMOUNT = np.array([10.0, 0.0])  # mg into the plasma


def closed_form(ts: np.ndarray, doses: int) -> np.ndarray:
    """A sum of decaying doses, by the eigenvalues of the linear system."""
    out, there, back = RATES
    values, vectors = np.linalg.eig(np.array([[-out - there, back], [there, -back]]))
    weights = vectors * np.linalg.solve(vectors, AMOUNT)
    since = ts[:, None, None] - PERIOD * np.arange(doses)[:, None]
    decays = np.exp(values * np.maximum(since, 0)) * (since >= 0)
    return decays.sum(axis=1) @ weights.T


def measure(doses: int, gradient: bool) -> tuple[float, float, float]:
    """Seconds to trace and compile, seconds to solve, and the error."""

    def drug(t, y, k):  # a new function is a new program
        plasma, tissue = y
        flux = k[1] * plasma - k[2] * tissue
        return jnp.stack([-k[0] * plasma - flux, flux])

    model = sx.SimulatePhases(drug, controller=sx.StiffPID.preset("precise"))
    ts = np.linspace(0.0, PERIOD * doses, 101)

    def solve(period, k, amount):
        phases = sx.Phase.repeat(doses, period, args=k, dose=amount)
        return model(jnp.zeros(2), ts, phases, throw=False).ys

    def loss(*inputs):
        return jnp.mean(solve(*inputs) ** 2)

    inputs = (jnp.array(PERIOD), jnp.asarray(RATES), jnp.asarray(AMOUNT))
    began = time.perf_counter()
    fn = jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if gradient else solve)
    compiled = fn.lower(*inputs).compile()
    compiling = time.perf_counter() - began
    jax.block_until_ready(compiled(*inputs))
    began = time.perf_counter()
    out = jax.block_until_ready(compiled(*inputs))
    solving = time.perf_counter() - began
    if gradient:
        return compiling, solving, np.nan
    exact = closed_form(ts, doses)
    return compiling, solving, float(np.max(np.abs(out - exact)) / np.max(exact))


def main():
    harness.on_one_core()
    jax.config.update("jax_enable_x64", True)
    print("| | doses | to compile [s] | ratio | to solve [ms] | error |\n|---|---|---|---|---|---|")
    for gradient in (False, True):
        measure(1, gradient)  # warms up Python
        runs = np.array([[measure(n, gradient) for n in (1, 100)] for _ in range(REPEATS)])
        one, hundred = np.median(runs, axis=0)
        what = "gradient" if gradient else "forward"
        for doses, row in ((1, one), (100, hundred)):
            error = "" if gradient else f"{row[2]:.1e}"
            print(
                f"| {what} | {doses} | {row[0]:.2f} | {row[0] / one[0]:.2f} | {1e3 * row[1]:.2f} "
                f"| {error} |",
                flush=True,
            )
    print(f"\n{harness.machine()}")


if __name__ == "__main__":
    main()
