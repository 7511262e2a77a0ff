"""The laws that control the step size, per solver family: attempted steps at equal error.

    python benchmarks/presets.py [--solvers Rodas5P,kvaerno5] [--output presets.json]

For each solver and problem, the number of attempted steps (accepted and rejected) over a range of
tolerances, brought to the same error by a straight line in log-log. Steps and not seconds: they do
not depend on the machine, and a step costs the same with every law. A law that does not reach the
error on a problem has failed there. Laws are listed by their geometric mean, those that fail
nowhere first; a preset is the best of its family, or a simpler one within 2 % of it.
"""

import argparse
import dataclasses
import json
import sys
from typing import Any

import diffrax
import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import numpy as np
import references
from problems import PROBLEMS, Problem
from scipy.integrate import solve_ivp

import stablax as sx

STIFF = ["Robertson", "van der Pol", "OREGO", "HIRES", "E5", "POLLU", "#368", "insulin", "neural"]
# What explicit methods, whose steps stability limits, can still solve.
MILD = {
    "Prothero-Robinson 1e3": Problem(
        name="Prothero-Robinson 1e3",
        field=lambda t, y, rate: -rate * (y - jnp.cos(t)),
        y0=np.array([0.0]),
        args=np.array(1e3),
        t1=2.0,
        ts=np.linspace(0, 2, 9)[1:],
        floor=1e-3,
        source="Prothero and Robinson 1974, Math. Comp. 28, 145",
    ),
    "van der Pol 20": dataclasses.replace(
        PROBLEMS["van der Pol"], args=np.array(20.0), t1=40.0, ts=np.linspace(0, 40, 9)[1:]
    ),
    "Brusselator": Problem(
        name="Brusselator",
        field=lambda t, y, b: jnp.stack(
            [1 + y[0] ** 2 * y[1] - (b + 1) * y[0], b * y[0] - y[0] ** 2 * y[1]]
        ),
        y0=np.array([1.5, 3.0]),
        args=np.array(3.0),
        t1=20.0,
        ts=np.linspace(0, 20, 9)[1:],
        floor=1e-3,
        source="Hairer, Norsett and Wanner 1993, Solving ODEs I, section I.16",
    ),
}
FAMILIES = {
    "rosenbrock": {
        "Rodas5P": sx.Rodas5P(),
        "Rodas4": sx.Rodas4(),
        "Rosenbrock23": sx.Rosenbrock23(),
    },
    "esdirk": {"kvaerno5": sx.kvaerno5(), "kvaerno3": sx.kvaerno3()},
    "explicit": {"Tsit5": diffrax.Tsit5(), "Dopri5": diffrax.Dopri5()},
}
# Gains (p, i, d) as in `diffrax.PIDController`, and the limits of growth.
LAWS = {
    "I": dict(gains=(0.0, 1.0, 0.0)),
    "I, no growth after a rejection": dict(gains=(0.0, 1.0, 0.0), after=1.0),
    "I, growth <= 5": dict(gains=(0.0, 1.0, 0.0), most=5.0),
    "PI 0.4/0.3": dict(gains=(0.4, 0.3, 0.0)),
    "PI 0.4/0.3, no growth after a rejection": dict(gains=(0.4, 0.3, 0.0), after=1.0),
    "PI 0.2/0.6": dict(gains=(0.2, 0.6, 0.0)),
    "PI 0.1/0.8": dict(gains=(0.1, 0.8, 0.0)),
    "PI 0.25/0.5": dict(gains=(0.25, 0.5, 0.0)),
    "PID 1/9, 1/18, 1/18": dict(gains=(1 / 9, 1 / 18, 1 / 18)),
}
ERROR = 1e-5
# A method of second order is for fewer digits.
ERRORS = {"Rosenbrock23": 1e-3}
RTOLS = 10.0 ** np.arange(-2.0, -8.6, -0.5)


class LimitedGrowth(diffrax.AbstractAdaptiveStepSizeController):
    """Limits the growth in the step after a rejected one: `factormax_after_rejection` of
    `StiffPID`, with its limit as data."""

    controller: diffrax.PIDController
    limit: Any

    @property
    def rtol(self):
        return self.controller.rtol

    @property
    def atol(self):
        return self.controller.atol

    @property
    def norm(self):
        return self.controller.norm

    def wrap(self, direction):
        return LimitedGrowth(self.controller.wrap(direction), self.limit)

    def init(self, *args, **kwargs):
        tnext, state = self.controller.init(*args, **kwargs)
        return tnext, (state, jnp.array(False))

    def adapt_step_size(self, t0, t1, y0, y1, args, y_error, error_order, controller_state):
        inner, rejected = controller_state
        keep, next0, next1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1, args, y_error, error_order, inner
        )
        most = jnp.minimum(next1, next0 + self.limit * (t1 - t0))
        return keep, next0, jnp.where(keep & rejected, most, next1), jump, (inner, ~keep), result


@eqx.filter_jit
def solve(field, solver, y0, args, ts, rtol, atol, gains, most, after):
    """Tolerances and law are data: one compilation for each problem and solver."""
    pcoeff, icoeff, dcoeff = gains
    law = diffrax.PIDController(
        rtol, atol, pcoeff=pcoeff, icoeff=icoeff, dcoeff=dcoeff, factormax=most
    )
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        ts[-1],
        None,
        y0,
        args,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=LimitedGrowth(law, after),
        max_steps=20_000,
        throw=False,
    )


def attempts(problem, solver, reference, law: dict, target: float) -> float | None:
    errors, steps = [], []
    for rtol in RTOLS:
        solution = solve(
            problem.field,
            solver,
            jnp.asarray(problem.y0),
            jax.tree.map(jnp.asarray, problem.args),
            jnp.asarray(problem.ts),
            jnp.asarray(rtol),
            jnp.asarray(rtol * problem.floor),
            tuple(map(jnp.asarray, law["gains"])),
            jnp.asarray(law.get("most", 10.0)),
            jnp.asarray(law.get("after", 10.0)),
        )
        if solution.result == diffrax.RESULTS.successful:
            errors.append(problem.error(np.asarray(solution.ys), reference))
            steps.append(int(solution.stats["num_steps"]))
            if errors[-1] < target / 20:
                break
    return harness.at_error(errors, steps, target)


def reference_of(problem) -> np.ndarray:
    if problem is PROBLEMS.get(problem.name):
        return np.asarray(references.load(problem)["ys"])
    rhs = jax.jit(lambda t, y: problem.field(t, y, problem.args))
    solution = solve_ivp(
        rhs, (0.0, problem.t1), problem.y0, "Radau", problem.ts, rtol=1e-10, atol=1e-13
    )
    return solution.y.T


def ranking(table: dict[str, dict[str, float | None]]) -> list[tuple[str, float, int]]:
    """(law, geometric mean of its attempts relative to I, failures), best first."""
    out = []
    for law, row in table.items():
        ratios = [
            row[p] / table["I"][p] for p in row if row[p] is not None and table["I"][p] is not None
        ]
        failures = sum(value is None for value in row.values())
        out.append((law, float(np.exp(np.mean(np.log(ratios)))), failures))
    return sorted(out, key=lambda entry: (entry[2], entry[1]))


def main():
    harness.on_one_core()
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--solvers", help="names, separated by commas (default: all)")
    parser.add_argument("--problems", help="names, separated by commas (default: all)")
    parser.add_argument("--output", help="also write the tables as JSON")
    options = parser.parse_args()
    record = {"machine": harness.machine(), "solvers": {}}
    for family, solvers in FAMILIES.items():
        for name, solver in solvers.items():
            if options.solvers and name not in options.solvers.split(","):
                continue
            known = MILD if family == "explicit" else {n: PROBLEMS[n] for n in STIFF}
            names = list(known)
            if options.problems:
                names = [n for n in names if n in options.problems.split(",")]
            target = ERRORS.get(name, ERROR)
            table: dict[str, dict[str, float | None]] = {law: {} for law in LAWS}
            for problem_name in names:
                print(f"{name}: {problem_name}", file=sys.stderr, flush=True)
                problem = known[problem_name]
                reference = reference_of(problem)
                for law, settings in LAWS.items():
                    table[law][problem_name] = attempts(
                        problem, solver, reference, settings, target
                    )
            record["solvers"][name] = {"family": family, "error": target, "attempts": table}
            ranked = ranking(table)
            print(f"\n{name} ({family}), attempts at an error of {target:g}\n")
            print(f"| law | {' | '.join(names)} | mean to I |\n|{'---|' * (len(names) + 2)}")
            for law, mean, _ in ranked:
                cells = ["fails" if v is None else f"{v:.0f}" for v in table[law].values()]
                print(f"| {law} | {' | '.join(cells)} | {mean:.2f} |", flush=True)
    if options.output:
        with open(options.output, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
