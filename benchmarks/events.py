"""What events cost, and what a loop of solves costs, each to an event of diffrax.

    python benchmarks/events.py

*Robertson*: the same solve without an event, with one that is never met, with one that is recorded.
*Neuron*: leaky integrate-and-fire, 20 spikes: `stablax.Event` in one solve, and a scan of
`diffrax.diffeqsolve`, each to the next spike, by the event and the root finder of diffrax; errors
and gradients of the time of the last spike by its closed form. CPU seconds of all threads, minima
of warm interleaved runs.
"""

import time

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from report import number, table

import stablax as sx
from stablax.problems import PROBLEMS

jax.config.update("jax_enable_x64", True)
SPIKES = 20
AT = dict(theta=1.0, current=1.5, tau=2.0)


def keep(t, y, args):
    return y


def seconds(fns: dict, repeats: int = 20) -> dict:
    best = dict.fromkeys(fns, np.inf)
    for _ in range(repeats):
        for name, (fn, x) in fns.items():
            start = time.process_time()
            for _ in range(10):
                jax.block_until_ready(fn(x))
            best[name] = min(best[name], (time.process_time() - start) / 10)
    return best


def compiled(fn, x):
    start = time.process_time()
    program = jax.jit(fn).lower(x).compile()
    return program, time.process_time() - start


def robertson() -> str:
    problem = PROBLEMS["Robertson"]
    y0 = jnp.asarray(problem.y0)
    events = {
        "none": None,
        "`diffrax.Event`, never met": diffrax.Event(lambda t, y, args, **kwargs: y[0] + 0.5),
        "never met": sx.Event(lambda t, y, args: y[0] + 0.5, change=keep),
        "recorded once": sx.Event(lambda t, y, args: y[0] - 0.5, change=keep),
        "recorded once, `max_count=8`": sx.Event(
            lambda t, y, args: y[0] - 0.5, change=keep, max_count=8
        ),
    }
    fns, compiling = {}, {}
    for name, event in events.items():
        model = sx.Simulate(problem.field, event=event)

        def last(y0, model=model):
            simulation = model(y0, problem.ts, args=problem.args, throw=False)
            log = simulation.events
            first = 0.0 if log is None else jnp.where(log.happened[0], log.t[0], 0.0)
            return jnp.sum(simulation.ys[-1] ** 2) + 1e-9 * first

        for kind, fn in (("value", last), ("gradient", jax.grad(last))):
            program, took = compiled(fn, y0)
            fns[name, kind], compiling[name, kind] = (program, y0), took
    took = seconds(fns)
    rows = []
    for name in events:
        row = [name]
        for kind in ("value", "gradient"):
            row += [number(1e3 * took[name, kind]), number(compiling[name, kind])]
        rows.append(row)
    return table(
        ["event", "value [ms]", "compiled in [s]", "gradient [ms]", "compiled in [s]"], rows
    )


def exact(p):
    return -SPIKES * p["tau"] * jnp.log(1 - p["theta"] / p["current"])


def in_one_solve(solver, rtol):
    fires = sx.Event(
        lambda t, v, p: v - p["theta"], direction=True, change=sx.SetDose(0.0), max_count=SPIKES + 5
    )
    controller = sx.StiffPID.preset(rtol=rtol, atol=rtol * 1e-2)
    field = lambda t, v, p: (p["current"] - v) / p["tau"]
    model = sx.Simulate(field, solver=solver, controller=controller, event=fires)
    return lambda p: model(0.0, [45.0], args=p, throw=False).events.t[SPIKES - 1]


def in_a_scan(solver, rtol):
    finder = optx.Newton(1e-10, 1e-10)
    fires = diffrax.Event(lambda t, y, args, **kwargs: y - args["theta"], finder, True)
    term = diffrax.ODETerm(lambda t, v, p: (p["current"] - v) / p["tau"])
    controller = diffrax.PIDController(rtol=rtol, atol=rtol * 1e-2)

    def last(p):
        def to_next(t, _):
            solution = diffrax.diffeqsolve(
                term,
                solver,
                t,
                t + 10.0,
                0.01,
                jnp.zeros(()),
                p,
                stepsize_controller=controller,
                event=fires,
                max_steps=256,
            )
            return solution.ts[-1], None

        return lax.scan(to_next, jnp.zeros(()), None, length=SPIKES)[0]

    return last


def neuron() -> str:
    p = jax.tree.map(jnp.asarray, AT)
    ways = {
        "`Event`, `Rodas5P`": lambda rtol: in_one_solve(sx.Rodas5P(), rtol),
        "scan of diffrax, `Kvaerno5`": lambda rtol: in_a_scan(diffrax.Kvaerno5(), rtol),
        "`Event`, `Tsit5`": lambda rtol: in_one_solve(diffrax.Tsit5(), rtol),
        "scan of diffrax, `Tsit5`": lambda rtol: in_a_scan(diffrax.Tsit5(), rtol),
    }
    right, slopes = jax.value_and_grad(exact)(p)
    rows, fns, facts = [], {}, {}
    for rtol in (1e-5, 1e-8):
        for name, way in ways.items():
            fn = way(rtol)
            value, first = compiled(fn, p)
            gradient, took = compiled(jax.grad(fn), p)
            off = jax.tree.map(lambda a, b: abs(a / b - 1), gradient(p), slopes)
            facts[name, rtol] = abs(value(p) / right - 1), max(jax.tree.leaves(off)), first, took
            fns[name, rtol, "value"], fns[name, rtol, "gradient"] = (value, p), (gradient, p)
    took = seconds(fns, 5)
    for name, rtol in facts:
        error, off, *compiling = facts[name, rtol]
        times = [1e3 * took[name, rtol, kind] for kind in ("value", "gradient")]
        rows.append([name, f"{rtol:g}", *map(number, (error, off, *times, *compiling))])
    header = ["", "rtol", "error of the 20th", "of its gradient", "value [ms]", "gradient [ms]"]
    return table([*header, "value compiled in [s]", "gradient compiled in [s]"], rows)


if __name__ == "__main__":
    print(robertson())
    print(neuron())
