"""How a field goes on outside of its guard's box: as it is, constant, or along its tangent.

    python benchmarks/clipped.py                  # a chain that clips, and problems that do not
    pip install canterax cantera; python benchmarks/clipped.py --gri    # GRI-Mech 3.0

*Clipped chain*: `stablax.problems.CLIPPED`. *Smooth*: problems of the literature with
`Guard(lower=0.0)`, constant against tangent: nothing should change. *GRI-Mech 3.0*: methane and air
at 1400 K and constant pressure, 54 states, with canterax's right-hand side, which clips
concentrations; beside canterax's own solver and Cantera's CVODE, against Cantera at rtol 1e-11. CPU
seconds on one core, minima of warm interleaved runs; a solve that spends its budget has no error.
"""

import argparse
import functools
import time

import diffrax
import harness
import jax
import jax.numpy as jnp
import numpy as np
from report import number, table

import stablax as sx
from stablax.problems import CLIPPED, PROBLEMS

jax.config.update("jax_enable_x64", True)
SOLVERS = {"Rodas5P": sx.Rodas5P(), "kvaerno5()": sx.kvaerno5()}
SMOOTH = ("Robertson", "HIRES", "POLLU", "E5", "OREGO")


def ways(field, lower) -> dict:
    constant = sx.Guard(lower, outside="constant")
    return {
        "bare": field,
        "constant": sx.Guarded(field, constant),
        "tangent": sx.Guarded(field, sx.Guard(lower)),
    }


def solver_of(field, solver, y0, ts, args, floor, budget=10_000):
    """A compiled solve for any `rtol`: the rows, how many steps were tried, and success."""
    model = sx.Simulate(field, solver=solver, max_steps=budget)

    def solve(rtol):
        stepping = sx.Stepping(rtol=rtol, atol=rtol * floor)
        simulation = model(y0, ts, args=args, stepping=stepping, throw=False)
        return simulation.ys, simulation.stats["num_steps"], sx.is_successful(simulation)

    return jax.jit(solve).lower(jnp.asarray(1e-6)).compile()


def seconds(fns: dict, repeats: int) -> tuple[dict, dict]:
    """The least time of each, and what it returned last."""
    best, out = dict.fromkeys(fns, np.inf), {}
    for _ in range(repeats):
        for name, fn in fns.items():
            start = time.process_time()
            out[name] = jax.block_until_ready(fn())
            best[name] = min(best[name], time.process_time() - start)
    return best, out


def compare(solves: dict, rtols, error, repeats):
    """A row for each tolerance and solve: steps, ms, error."""
    rows = []
    for rtol in rtols:
        tolerance = jnp.asarray(rtol)
        runs = {name: functools.partial(solve, tolerance) for name, solve in solves.items()}
        times, out = seconds(runs, repeats)
        for name, (ys, steps, ok) in out.items():
            shown = number(error(np.asarray(ys)), 2) if ok else "budget spent"
            rows.append([f"{rtol:g}", name, int(steps), number(1e3 * times[name]), shown])
    print(table(["rtol", "", "steps tried", "ms", "error"], rows), flush=True)


def clipped():
    print(f"Clipped chain, {CLIPPED.size} states, to t = {CLIPPED.t1:g}\n")
    solves = {
        f"{name}, {way}": solver_of(
            field, solver, CLIPPED.y0, CLIPPED.ts, CLIPPED.args, CLIPPED.floor
        )
        for name, solver in SOLVERS.items()
        for way, field in ways(CLIPPED.field, 0.0).items()
    }
    compare(solves, (1e-3, 1e-4, 1e-6, 1e-8), CLIPPED.error, 3)


def smooth():
    print("Smooth problems, Rodas5P: tangent relative to constant\n")
    rows = []
    for name in SMOOTH:
        problem = PROBLEMS[name]
        found = {}
        for way, field in ways(problem.field, 0.0).items():
            stepping = sx.StiffPID.preset(atol=1e-6 * problem.floor)
            model = sx.Simulate(field, controller=stepping)
            loss = lambda args, model=model, problem=problem: jnp.sum(
                model(problem.y0, problem.ts, args=args, throw=False).ys ** 2
            )
            steps = model(problem.y0, problem.ts, args=problem.args).stats["num_steps"]
            args = jnp.asarray(problem.args)
            start = time.process_time()
            compiled = jax.jit(jax.grad(loss)).lower(args).compile()
            took = time.process_time() - start
            forward = jax.jit(loss).lower(args).compile()
            found[way] = int(steps), forward, compiled, took, args
        value, gradient = (
            seconds({way: functools.partial(f[i], f[-1]) for way, f in found.items()}, 60)[0]
            for i in (1, 2)
        )
        of = lambda each: number(each["tangent"] / each["constant"], 3)
        steps, took = ({w: f[i] for w, f in found.items()} for i in (0, 3))
        rows.append([name, steps["constant"], *map(of, (steps, value, gradient, took))])
    header = [
        "problem",
        "steps tried",
        "steps",
        "time",
        "gradient's time",
        "gradient's compilation",
    ]
    print(table(header, rows), flush=True)


def gri():
    import cantera
    import canterax
    from canterax.reactor import reactor_rhs

    start, pressure, floor, budget = 1400.0, 101_325.0, 1e-3, 4000
    mixture = start, pressure, "CH4:1, O2:2, N2:7.52"
    ts = np.array([5e-4, 2e-3, 2.4e-3, 3e-3, 1e-2])
    mechanism = canterax.Solution("gri30.yaml").mech

    def cvode(rtol, atol):
        gas = cantera.Solution("gri30.yaml")
        gas.TPX = mixture
        reactor = cantera.IdealGasConstPressureReactor(gas, clone=False)
        net = cantera.ReactorNet([reactor])
        net.rtol, net.atol = rtol, atol
        y0, rows = np.r_[gas.T, gas.Y], []
        began = time.process_time()
        for t in ts:
            net.advance(t)
            rows.append(np.r_[gas.T, gas.Y])
        took = time.process_time() - began
        return y0, np.array(rows), net.solver_stats["steps"], took

    y0, reference, _, _ = cvode(1e-11, 1e-20)
    sizes = np.maximum(np.abs(reference).max(axis=0), 1e-6)
    error = lambda ys: float(np.max(np.abs(ys - reference) / sizes))
    lower = np.r_[-np.inf, np.zeros(len(y0) - 1)]
    print(f"GRI-Mech 3.0, {len(y0)} states, to t = {ts[-1]:g} s\n")

    y0, args = jnp.asarray(y0), (pressure, mechanism)
    solves = {
        f"{name}, {way}": solver_of(field, solver, y0, jnp.asarray(ts), args, floor, budget)
        for name, solver in SOLVERS.items()
        for way, field in ways(reactor_rhs, lower).items()
    }
    net = canterax.ReactorNet(mechanism)

    def theirs(rtol):
        saveat = diffrax.SaveAt(ts=jnp.asarray(ts))
        options = dict(rtol=rtol, atol=rtol * floor, saveat=saveat, max_steps=20_000)
        solution = net.advance(start, pressure, y0[1:], ts[-1], **options)
        return solution.ys, solution.stats["num_steps"], diffrax.is_successful(solution.result)

    theirs(jnp.asarray(1e-3))  # compiles
    solves["canterax, its Kvaerno5"] = theirs
    compare(solves, (1e-4, 1e-6, 1e-7), error, 1)
    rows = []
    for rtol in (1e-4, 1e-6, 1e-7, 1e-8):
        _, ys, steps, took = min((cvode(rtol, rtol * floor) for _ in range(3)), key=lambda x: x[-1])
        rows.append(
            [f"{rtol:g}", "Cantera, CVODE", steps, number(1e3 * took), number(error(ys), 2)]
        )
    print(table(["rtol", "", "steps", "ms", "error"], rows))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gri", action="store_true", help="GRI-Mech 3.0 alone; needs canterax")
    harness.on_one_core()
    print(f"jax {jax.__version__}\n")
    if parser.parse_args().gri:
        gri()
    else:
        clipped()
        smooth()


if __name__ == "__main__":
    main()
