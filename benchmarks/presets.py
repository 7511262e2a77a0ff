"""The gains of the presets: attempted steps at equal error, per solver family.

    python benchmarks/presets.py [--output presets.json]

For each solver and problem, the number of attempted steps (accepted and rejected) over a range of
tolerances, interpolated in log-log to the error 1e-5 (relative to 1e-6 + |y|), for the elementary
controller (I) and for PI control with gains 0.4 / 0.3. Steps and not seconds: they do not depend on
the machine, and a step costs the same with either controller.
"""

import argparse
import json
import platform

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import stablax as sx

jax.config.update("jax_enable_x64", True)


def robertson(t, y, args):
    a, b, c = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([-a + b, a - b - c, c])


def van_der_pol(mu):
    return lambda t, y, args: jnp.stack([y[1], mu * ((1 - y[0] ** 2) * y[1]) - y[0]])


def oregonator(t, y, args):
    first = 77.27 * (y[1] + y[0] * (1 - 8.375e-6 * y[0] - y[1]))
    return jnp.stack([first, (y[2] - (1 + y[0]) * y[1]) / 77.27, 0.161 * (y[0] - y[2])])


def issue_368(t, y, args):
    first = jnp.expm1(2.29 - y[0] - y[1]) * jnp.exp(10.02)
    return jnp.stack([first, jnp.expm1(-3.26 - y[1]) * jnp.exp(19.19)])


def decaying(rate):
    """Stiff for an explicit method: a fast decay onto a slow forcing (Prothero and Robinson)."""
    return lambda t, y, args: -rate * (y - jnp.cos(t))


def brusselator(t, y, args):
    return jnp.stack([1 + y[0] ** 2 * y[1] - 4 * y[0], 3 * y[0] - y[0] ** 2 * y[1]])


STIFF = {
    "Robertson": (robertson, jnp.array([1.0, 0.0, 0.0]), 1e4),
    "van der Pol 1e3": (van_der_pol(1e3), jnp.array([2.0, 0.0]), 2e3),
    "OREGO": (oregonator, jnp.array([1.0, 2.0, 3.0]), 360.0),
    "#368": (issue_368, jnp.array([4.58, -2.29]), 1e3),
}
MILD = {
    "Prothero-Robinson 1e3": (decaying(1e3), jnp.array([0.0]), 2.0),
    "van der Pol 20": (van_der_pol(20.0), jnp.array([2.0, 0.0]), 40.0),
    "Brusselator": (brusselator, jnp.array([1.5, 3.0]), 20.0),
}
FAMILIES = {
    "kvaerno5": (sx.kvaerno5(), STIFF),
    "Tsit5": (diffrax.Tsit5(), MILD),
    "Dopri5": (diffrax.Dopri5(), MILD),
}
GAINS = {"I": (0.0, 1.0), "PI 0.4/0.3": (0.4, 0.3)}
ERROR = 1e-5


@eqx.filter_jit
def solve(field, y0, t1, solver, rtol, pcoeff, icoeff):
    """The control law of `StiffPID`, with tolerance and gains as data: one compilation."""
    controller = diffrax.PIDController(rtol, rtol * 1e-3, pcoeff=pcoeff, icoeff=icoeff)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        t1,
        None,
        y0,
        saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, 9)[1:] * t1),
        stepsize_controller=controller,
        max_steps=30_000,
        throw=False,
    )


def reference_of(field, y0, t1):
    """By an independent code, at a tight tolerance."""
    rhs = jax.jit(lambda t, y: field(t, y, None))
    jacobian = jax.jit(jax.jacfwd(lambda y, t: field(t, y, None)))
    solution = solve_ivp(
        rhs,
        (0.0, t1),
        y0,
        method="Radau",
        t_eval=np.linspace(0, 1, 9)[1:] * t1,
        jac=lambda t, y: jacobian(y, t),
        rtol=1e-10,
        atol=1e-13,
    )
    return solution.y.T


def attempts_at_equal_error(problem, solver, reference, gains):
    errors, attempts = [], []
    for rtol in 10.0 ** np.arange(-4, -8.5, -0.5):
        solution = solve(*problem, solver, jnp.array(rtol), *map(jnp.array, gains))
        if solution.result != diffrax.RESULTS.successful:
            continue
        error = np.max(np.abs(solution.ys - reference) / (1e-6 + np.abs(reference)))
        errors.append(error)
        attempts.append(int(solution.stats["num_steps"]))
    order = np.argsort(errors)
    log = np.interp(
        np.log(ERROR), np.log(np.array(errors)[order]), np.log(np.array(attempts)[order])
    )
    return float(np.exp(log))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", help="also write the table as JSON")
    output = parser.parse_args().output
    rows = []
    print(f"| solver | problem | {' | '.join(GAINS)} | ratio |\n|---|---|---|---|---|")
    for family, (solver, problems) in FAMILIES.items():
        ratios = []
        for name, problem in problems.items():
            reference = reference_of(*problem)
            steps = [attempts_at_equal_error(problem, solver, reference, g) for g in GAINS.values()]
            ratios.append(steps[1] / steps[0])
            shown = " | ".join(f"{s:.0f}" for s in steps)
            print(f"| {family} | {name} | {shown} | {ratios[-1]:.2f} |", flush=True)
            rows.append(dict(solver=family, problem=name, **dict(zip(GAINS, steps, strict=True))))
        mean = float(np.exp(np.mean(np.log(ratios))))
        print(f"| {family} | **geometric mean** | | | **{mean:.2f}** |", flush=True)
    if output:
        machine = dict(
            python=platform.python_version(), jax=jax.__version__, diffrax=diffrax.__version__
        )
        with open(output, "w") as file:
            json.dump(dict(error=ERROR, versions=machine, rows=rows), file, indent=1)


if __name__ == "__main__":
    main()
