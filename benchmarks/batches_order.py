"""What a batch of samples of unlike cost costs: one `vmap`, chunks, lanes that take the next.

    python benchmarks/batches_order.py [--samples 512] [--output batches_order.json]
    python benchmarks/batches_order.py --samples 32768 --widths 1024,4096 --problems Robertson

Robertson's problem with rate constants spread over three orders of magnitude (log-normal), to
t = 1e4; and the system of diffrax issue #368, perturbed as `sx.problems` says. rtol 1e-6. The
order is that of the numbers of steps of a solve at parameters that are 10 % off, as in a fit the
last call's. Lane-steps are counted in the program: how often all lanes step together, times their
number, in those that the samples need. CPU seconds, minima of interleaved warm runs, in each row
in those of one `vmap`.
"""

import argparse
import json
import platform
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import stablax as sx

jax.config.update("jax_enable_x64", True)


def robertson(t, y, k):
    a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
    return jnp.stack([-a + b, a - b - c, c])


def problems(samples):
    """Of each: the field, start, end, parameters, and those of the call before."""
    generator = np.random.default_rng(0)
    spread = np.exp(1.5 * generator.normal(size=(samples, 3)))
    off = np.exp(0.1 * generator.normal(size=(samples, 3)))
    rates = np.array([0.04, 1e4, 3e7]) * spread
    yield "Robertson", robertson, jnp.array([1.0, 0.0, 0.0]), 1e4, rates, rates * off
    issue = sx.problems.ISSUE_368
    exponents = issue.args * np.exp(issue.spread * generator.normal(size=(samples, 3)))
    yield "#368", issue.field, issue.y0, issue.t1, exponents, exponents + np.log(off)


COUNTED = []


class Counter(diffrax.AbstractProgressMeter):
    """Counts the steps that all lanes take together."""

    def init(self):
        return jnp.array(0)

    def step(self, state, progress):
        jax.debug.callback(lambda: COUNTED.append(None))
        return state

    def close(self, state):
        pass


def ways(field, start, end, cost, widths, meter=None):
    """What solves a batch of parameters, and how many lanes step together."""
    model = sx.Simulate(field, progress_meter=meter)
    ts = jnp.array([end])
    solve = lambda p: model(start, ts, args=p, throw=False)
    samples = cost.size

    def wide(p):
        return jax.vmap(solve)(p)

    def chunks(size, order):
        def run(p):
            out = jax.lax.map(jax.vmap(solve), p[order].reshape(-1, size, p.shape[1]))
            return jax.tree.map(lambda x: x.reshape(samples, *x.shape[2:]), out)

        return run

    def lanes(size, cost):
        return lambda p: sx.simulate_batch(
            model,
            dict(args=p),
            shared=dict(y0=start, ts=ts),
            batch_size=size,
            order_by=cost,
            throw=False,
        )

    middle = widths[len(widths) // 2]
    found = {
        "one `vmap`": (wide, samples),
        f"chunks of {middle}, as they come": (chunks(middle, np.arange(samples)), middle),
        f"chunks of {middle}, sorted": (chunks(middle, np.argsort(cost)), middle),
    }
    for width in widths:
        found[f"`batch_size={width}`"] = lanes(width, None), width
        if width == middle:
            found[f"`batch_size={width}`, `order_by`"] = lanes(width, cost), width
    return found


def minima(programs, given, runs):
    seconds = {name: [] for name in programs}
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    for run in range(runs + 1):
        for name, program in programs.items():
            began = clock()
            jax.block_until_ready(program(given))
            if run:
                seconds[name].append(clock() - began)
    return {name: min(t) for name, t in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=512, help="a multiple of the middle width")
    parser.add_argument("--widths", default="32,64,128")
    parser.add_argument("--problems", default="Robertson,#368")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--output", help="also write the table as JSON")
    options = parser.parse_args()
    widths = [int(width) for width in options.widths.split(",")]
    rows = []
    print("| | | lane-steps | forward ms | ratio | gradient ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for problem, field, start, end, now, before in problems(options.samples):
        if problem not in options.problems.split(","):
            continue
        now = jnp.asarray(now)
        shared = dict(y0=start, ts=[end])
        model = sx.Simulate(field)
        cost = sx.simulate_batch(model, dict(args=jnp.asarray(before)), shared=shared)
        cost = np.asarray(cost.stats["num_steps"])
        taken = {}
        for name, (way, lanes) in ways(field, start, end, cost, widths, Counter()).items():
            COUNTED.clear()
            steps = np.asarray(jax.jit(way)(now).stats["num_steps"])
            jax.effects_barrier()
            taken[name] = lanes * len(COUNTED) / steps.sum()
        programs = ways(field, start, end, cost, widths)
        forward = minima({n: jax.jit(way) for n, (way, _) in programs.items()}, now, options.runs)
        gradient = minima(
            {
                name: jax.jit(jax.grad(lambda p, way=way: way(p).ys.sum()))
                for name, (way, _) in programs.items()
            },
            now,
            options.runs,
        )
        wide = next(iter(programs))
        for name in programs:
            there, back = forward[name], gradient[name]
            ratios = there / forward[wide], back / gradient[wide]
            print(
                f"| {problem} | {name} | {taken[name]:.2f} | {1e3 * there:.1f} | {ratios[0]:.2f} "
                f"| {1e3 * back:.0f} | {ratios[1]:.2f} |",
                flush=True,
            )
            measured = dict(lane_steps=taken[name], forward=there, gradient=back)
            rows.append(dict(problem=problem, way=name, **measured))
        print(f"{problem}: {steps.min()} to {steps.max()} steps, on average {steps.mean():.0f}")
    if options.output:
        device = jax.devices()[0].device_kind
        versions = dict(python=platform.python_version(), jax=jax.__version__, device=device)
        with open(options.output, "w") as file:
            json.dump(dict(samples=options.samples, versions=versions, rows=rows), file, indent=1)


if __name__ == "__main__":
    main()
