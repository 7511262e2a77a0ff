"""What a batch of samples of different cost costs: one `vmap`, chunks, and sorted chunks.

    python benchmarks/batches_order.py [--samples 512] [--output batches_order.json]

Robertson's problem with rate constants spread over three orders of magnitude (log-normal), to
t = 1e4, rtol 1e-6. Sorted by the numbers of steps of a solve at rates that are 10 % off, as in a
fit the last call's. Medians of 5 warm runs, interleaved.
"""

import argparse
import json
import platform
import statistics
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import stablax as sx

jax.config.update("jax_enable_x64", True)

TS = jnp.array([1e4])
START = jnp.array([1.0, 0.0, 0.0])


def robertson(t, y, k):
    a, b, c = k[0] * y[0], k[1] * y[1] * y[2], k[2] * y[1] ** 2
    return jnp.stack([-a + b, a - b - c, c])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--output", help="also write the table as JSON")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    spread = np.exp(1.5 * generator.normal(size=(options.samples, 3)))
    rates = jnp.asarray(np.array([0.04, 1e4, 3e7]) * spread)
    before = jnp.asarray(rates * np.exp(0.1 * generator.normal(size=rates.shape)))
    model = sx.Simulate(robertson)
    shared = dict(y0=START, ts=TS)
    cost = sx.simulate_batch(model, dict(args=before), shared=shared).stats["num_steps"]

    def wide(rates):
        return jax.vmap(lambda k: model(START, TS, args=k, throw=False).ys)(rates)

    def chunks(size, order):
        return lambda rates: (
            sx.simulate_batch(
                model, dict(args=rates), shared=shared, batch_size=size, order_by=order, throw=False
            ).ys
        )

    ways = {"one vmap": wide}
    for size in (16, 32, 64, 128):
        ways[f"chunks of {size}"] = chunks(size, None)
        ways[f"sorted, {size}"] = chunks(size, cost)
    forward = {name: eqx.filter_jit(way) for name, way in ways.items()}
    gradient = {
        name: jax.jit(jax.grad(lambda k, way=ways[name]: way(k).sum()))
        for name in ("one vmap", "chunks of 64", "sorted, 64")
    }
    steps = np.asarray(cost)
    print(
        f"{options.samples} samples of {steps.min()} to {steps.max()} steps, "
        f"on average {steps.mean():.0f}"
    )
    rows = []
    print("| | way | ms | ratio |\n|---|---|---|---|")
    for what, programs in (("forward", forward), ("gradient", gradient)):
        times = {name: [] for name in programs}
        for run in range(6):
            for name, program in programs.items():
                began = time.perf_counter()
                jax.block_until_ready(program(rates))
                if run:
                    times[name].append(time.perf_counter() - began)
        medians = {name: 1e3 * statistics.median(t) for name, t in times.items()}
        for name, ms in medians.items():
            ratio = medians["one vmap"] / ms
            print(f"| {what} | {name} | {ms:.1f} | {ratio:.2f} |", flush=True)
            rows.append(dict(what=what, way=name, ms=ms, ratio=ratio))
    if options.output:
        versions = dict(python=platform.python_version(), jax=jax.__version__)
        with open(options.output, "w") as file:
            json.dump(dict(samples=options.samples, versions=versions, rows=rows), file, indent=1)


if __name__ == "__main__":
    main()
