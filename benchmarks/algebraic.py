"""Algebraic equations: what a mass matrix costs.

    python benchmarks/algebraic.py [--small]

Robertson's problem as an ODE and with its conservation as the third equation; and the problems of
`stablax.problems.DAES` at several tolerances: steps, error, what a solve and its gradient in all
parameters and the start take, and to compile.

CPU seconds on one core, the least of several runs; of a gradient with its value.
"""

import argparse

import harness
import jax
import jax.numpy as jnp

import stablax as sx
from stablax.problems import DAES, ROBERTSON, Problem

jax.config.update("jax_enable_x64", True)


def report(problem: Problem, rtol: float, repeats: int) -> None:
    model = sx.Simulate(
        problem.field,
        solver=sx.Rodas5P(mass=problem.mass),
        controller=sx.StiffPID.preset(rtol=rtol, atol=rtol * problem.floor),
        max_steps=2**14,
    )

    def solve(y0, args):
        simulation = model(y0, problem.ts, args=args, throw=False)
        return jnp.sum(simulation.ys[-1]), simulation

    at = (jnp.asarray(problem.y0), jnp.asarray(problem.args))
    value, of_value = harness.compiled(solve, *at)
    of_solve = jax.value_and_grad(lambda *at: solve(*at)[0], argnums=(0, 1))
    gradient, of_gradient = harness.compiled(of_solve, *at)
    simulation = value(*at)[1]
    forward, both = (
        harness.least(lambda: value(*at), repeats),
        harness.least(lambda: gradient(*at), repeats),
    )
    print(
        f"{problem.name:22s} {rtol:6.0e}  {int(simulation.stats['num_steps']):5d} steps   error "
        f"{problem.error(simulation.ys):8.1e}   solve {forward:8.3f} ms   gradient {both:8.3f} ms "
        f"({both / forward:3.1f})   to compile {of_value:4.1f} s, {of_gradient:4.1f} s"
    )


if __name__ == "__main__":
    harness.on_one_core()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one tolerance, few runs")
    small = parser.parse_args().small
    for problem in (ROBERTSON, *DAES.values()):
        for rtol in (1e-4,) if small else (1e-4, 1e-6, 1e-8):
            report(problem, rtol, 1 if small else 20)
