"""A neural ODE of Robertson's problem in scaled form, from data over ten decades of time.

    python docs/examples/robertson_neural_ode.py [--small] [--output FILE.png]

Robertson's reactions (1966) have rates from 0.04 to 3e7; the species are of sizes 1, 4e-5 and 1,
and the third one starts at 1e-11. Kim et al. (2021), Stiff neural ordinary differential equations,
Chaos 31, 093122, learned them from 50 times between 1e-5 and 1e5, with states, time and loss in
scaled form. Here the network is of production and degradation, and it sees logarithms and makes
logarithms of rates, so that it resolves the small numbers too. Nothing of the chemistry is given.

Three stages: the rates are matched to the slopes of splines through the data, which needs no
solve; Adam on the trajectory; L-BFGS. Prints the largest relative error of each species at the 50
times after each, and writes a figure. Needs the extra `plot`.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure
from scipy.interpolate import CubicSpline

import stablax as sx

jax.config.update("jax_enable_x64", True)

TIMES = np.logspace(-5, 5, 50)
Y0 = jnp.array([1.0, 0.0, 0.0])


def robertson(t, y, args):
    a, b, c = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return jnp.stack([-a + b, a - b - c, c])


def make_data() -> jax.Array:
    precise = sx.StiffPID.preset("precise", rtol=1e-9, atol=1e-16)
    return sx.Simulate(robertson, controller=precise)(Y0, TIMES).ys


def features(y):
    """About -1.3 to 1, for scaled states between 0 and 1."""
    return 1 + jnp.log(y + 1e-4) / 4


def rate(x):
    return jnp.exp(8 * x)


def make_model(key, scales: sx.Scales) -> sx.Simulate:
    network = sx.QuasiPositiveField(3, 16, 2, key=key, features=features, rate=rate)
    field = sx.ScaledNeuralField(network, scales)
    # The third species starts at 1e-11: what is below `atol` is not resolved.
    controller = sx.StiffPID.preset("balanced", rtol=1e-4, atol=1e-14)
    return sx.Simulate(field, controller=controller, max_steps=1000)


# --- the first stage


def slopes(data, scales: sx.Scales, points: int = 250):
    """States and their rates between the data, from splines of log y over log t; and before the
    first time, where these are straight. Scaled."""
    log_times = np.log(TIMES)
    log_t = np.linspace(np.log(1e-8), log_times[-1], points)
    within = np.maximum(log_t, log_times[0])
    y, dy = [], []
    for species in np.asarray(data).T:
        spline = CubicSpline(log_times, np.log(species))
        y.append(np.exp(spline(within) + spline(within, 1) * (log_t - within)))
        dy.append(spline(within, 1) * y[-1] / np.exp(log_t))
    y, dy = (np.stack(x, axis=1) / scales.yscale[None] for x in (y, dy))
    return y, dy * scales.tscale


def mismatch(network: sx.QuasiPositiveField, y, dy):
    """Of what rises and what falls, on a log scale: production + (-dy)+ = degradation + (dy)+."""
    production, degradation = jax.vmap(lambda y: network.rates(0.0, y, None))(y)
    rise, fall = jnp.maximum(dy, 0), jnp.maximum(-dy, 0)
    return jnp.mean(jnp.log((production + fall) / (degradation * y + rise)) ** 2)


def match_slopes(model: sx.Simulate, data, scales: sx.Scales, steps: int) -> sx.Simulate:
    y, dy = slopes(data, scales)
    optimiser = adam(1e-2, steps)

    @eqx.filter_jit
    def train(network):
        def step(carry, _):
            network, state = carry
            gradient = jax.grad(mismatch)(network, y, dy)
            updates, state = optimiser.update(gradient, state, network)
            return (optax.apply_updates(network, updates), state), None

        (network, _), _ = jax.lax.scan(step, (network, optimiser.init(network)), length=steps)
        return network

    matched = train(model.field.network)
    return eqx.tree_at(jax.tree.leaves, model, jax.tree.leaves(matched))


# --- the second and the third


def adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def loss(model: sx.Simulate, data) -> jax.Array:
    """The mean square relative error. A failed solve counts as a large one."""
    simulation = model(Y0, TIMES, throw=False)
    ys = jnp.maximum(simulation.ys, 1e-300)
    error = jnp.mean(jnp.log(ys / data) ** 2)
    return jnp.where(sx.is_successful(simulation), error, 1e3)


def with_adam(model: sx.Simulate, data, steps: int) -> sx.Simulate:
    optimiser = adam(3e-3, steps)

    @eqx.filter_jit
    def step(model, state):
        gradient = jax.grad(loss)(model, data)
        updates, state = optimiser.update(gradient, state, model)
        return optax.apply_updates(model, updates), state

    state = optimiser.init(model)
    for _ in range(steps):
        model, state = step(model, state)
    return model


def with_lbfgs(model: sx.Simulate, data, steps: int) -> sx.Simulate:
    optimiser = optax.lbfgs(memory_size=30)
    value_fn = lambda model: loss(model, data)

    @eqx.filter_jit
    def step(model, state):
        value, gradient = optax.value_and_grad_from_state(value_fn)(model, state=state)
        updates, state = optimiser.update(
            gradient, state, model, value=value, grad=gradient, value_fn=value_fn
        )
        return optax.apply_updates(model, updates), state

    state = optimiser.init(model)
    for _ in range(steps):
        model, state = step(model, state)
    return model


def report(stage: str, model: sx.Simulate, data, scales: sx.Scales, start: float) -> None:
    simulation = model(Y0, TIMES, throw=False)
    worst = np.max(np.abs(np.asarray(simulation.ys / data) - 1), axis=0)
    print(
        f"{stage}: largest relative error of y1, y2, y3: "
        f"{', '.join(f'{100 * x:.2f} %' for x in worst)}; "
        f"loss in scaled units {float(scales.loss(simulation.ys, data)):.1e} "
        f"({time.perf_counter() - start:.0f} s; {sx.explain(simulation)})",
        flush=True,
    )


def draw(data, before: sx.Simulate, after: sx.Simulate, path: str) -> None:
    fine = np.logspace(-5, 5, 400)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    styles = {"slopes matched": dict(color="0.6", ls="--"), "fitted": dict(color="C0")}
    curves = [model(Y0, fine, throw=False).ys for model in (before, after)]
    for i, axes in enumerate(panels):
        for ys, (label, style) in zip(curves, styles.items(), strict=True):
            axes.plot(fine, ys[:, i], lw=1.5, label=label, **style)
        axes.plot(TIMES, data[:, i], "o", color="C1", ms=3, label="data")
        axes.set(xscale="log", xlabel="time", title=f"y{i + 1}")
    panels[1].set(yscale="log")
    panels[2].set(yscale="log")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="A neural ODE of Robertson's problem.")
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="robertson_neural_ode.png", metavar="FILE.png")
    arguments = parser.parse_args()
    first, second, third = (300, 3, 1) if arguments.small else (3000, 1000, 400)

    start = time.perf_counter()
    data = make_data()
    scales = sx.Scales.fit(TIMES, data)
    print(f"scales of the species {scales.yscale}, of time {scales.tscale:.4g}")
    matched = match_slopes(make_model(jr.key(0), scales), data, scales, first)
    report("slopes matched", matched, data, scales, start)
    model = with_adam(matched, data, second)
    report("after Adam", model, data, scales, start)
    model = with_lbfgs(model, data, third)
    report("after L-BFGS", model, data, scales, start)
    draw(data, matched, model, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
