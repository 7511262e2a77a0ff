"""ESDIRK methods: steps taken by stablax beside steps taken by diffrax.

    python benchmarks/esdirk.py

The same solvers, controller and tolerances (rtol 1e-6, atol 1e-9), and so the same steps and the
same error: a model with the default adjoint beside plain `diffeqsolve`, Robertson's problem to
t = 1e4 and HIRES to 100. Processor time: to trace and compile once, and minima of interleaved warm
runs; ratios to diffrax.
"""

import time

import diffrax
import harness
import jax
import jax.numpy as jnp
import numpy as np
from report import number, table

import stablax as sx

jax.config.update("jax_enable_x64", True)
SOLVERS = {"kvaerno3()": sx.kvaerno3, "kvaerno5()": sx.kvaerno5, "kencarp4()": sx.kencarp4}
PROBLEMS = {"Robertson": (sx.problems.ROBERTSON, 1e4), "HIRES": (sx.problems.HIRES, 100.0)}
ROUNDS = 30


def by_diffrax(field, solver, controller, y0, t1, args):
    term = diffrax.ODETerm(field)
    if isinstance(solver, diffrax.KenCarp4):
        term = diffrax.MultiTerm(diffrax.ODETerm(lambda t, y, args: jnp.zeros_like(y)), term)
    options = dict(stepsize_controller=controller, throw=False)
    solution = diffrax.diffeqsolve(term, solver, 0.0, t1, None, y0, args, **options)
    return solution.ys[-1], solution.stats["num_steps"]


def by_stablax(field, solver, controller, y0, t1, args):
    model = sx.Simulate(field, solver=solver, controller=controller)
    simulation = model(y0, [t1], args=args, throw=False)
    return simulation.ys[-1], simulation.stats["num_steps"]


def program(by, problem, solver, t1, gradient: bool, lanes: int):
    """The compiled program, its input, and the seconds that it took."""
    controller = sx.StiffPID.preset(solver=solver)
    y0, args = jnp.asarray(problem.y0), jnp.asarray(problem.args)

    def first(args):
        y, steps = by(problem.field, solver, controller, y0, t1, args)
        return y[0], steps

    fn = jax.value_and_grad(first, has_aux=True) if gradient else first
    if lanes > 1:
        spread = np.random.default_rng(0).normal(size=(lanes, args.size))
        fn, args = jax.vmap(fn), args * jnp.exp(0.1 * spread)
    start = time.process_time()
    compiled = jax.jit(fn).lower(args).compile()
    return compiled, args, time.process_time() - start


def seconds(compiled, args) -> float:
    start = time.process_time()
    jax.block_until_ready(compiled(args))
    return time.process_time() - start


def steps_of(out) -> np.ndarray:
    return np.asarray(out[0][1] if isinstance(out[0], tuple) else out[1])


def main():
    harness.on_one_core()
    rows = []
    for name, (problem, t1) in PROBLEMS.items():
        for label, make in SOLVERS.items():
            for lanes in (1, 64):
                for gradient in (False, True):
                    given = problem, make(), t1, gradient, lanes
                    made = [program(by, *given) for by in (by_diffrax, by_stablax)]
                    steps = [steps_of(compiled(args)) for compiled, args, _ in made]
                    assert np.all(np.abs(steps[0] - steps[1]) <= 0.02 * steps[0] + 1), steps
                    least = [np.inf, np.inf]
                    for _ in range(ROUNDS if lanes == 1 else ROUNDS // 5):
                        for side, (compiled, args, _) in enumerate(made):
                            least[side] = min(least[side], seconds(compiled, args))
                    kind = "gradient" if gradient else "solve"
                    rows.append(
                        [
                            name,
                            label,
                            f"{kind}, {lanes} lanes" if lanes > 1 else kind,
                            number(1e3 * least[0]),
                            number(1e3 * least[1]),
                            number(least[1] / least[0], 2),
                            number(made[0][2]),
                            number(made[1][2]),
                            number(made[1][2] / made[0][2], 2),
                        ]
                    )
                    print(*rows[-1], flush=True)
    header = ["problem", "solver", "", "diffrax: ms", "stablax: ms", "ratio"]
    print(table([*header, "diffrax: s to compile", "stablax: s", "ratio"], rows))


if __name__ == "__main__":
    main()
