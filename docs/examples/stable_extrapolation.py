"""A plain neural field and three that are stable by construction, far beyond their data.

    python docs/examples/stable_extrapolation.py [--small] [--output FILE.png]

The truth is a damped pendulum with a spring. Each field is fitted to the same short, noisy
trajectories, which stay within its well and end long before it rests. Then each is followed for 40
times as long, from a start of the data and from one outside. There none is right, without data; but
the plain network runs away, as its weights happen to be, and the others come to rest, as they
must (LyapunovField, PortHamiltonianField), or stay bounded at least (DampedField).

Prints the misfit on the data and the largest state of each field beyond them, and writes a
figure. Needs the extra `plot`.
"""

import argparse
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure

import stablax as sx

jax.config.update("jax_enable_x64", True)

TIMES = jnp.linspace(0.25, 3.0, 12)
LATER = jnp.linspace(0.0, 120.0, 481)
NOISE = 0.03
SOLVER = diffrax.Tsit5()
CONTROLLER = sx.StiffPID.preset("fast", solver=SOLVER)

FIELDS: dict[str, Callable] = {
    "MLPField": lambda **options: sx.MLPField(2, 16, 2, **options),
    "DampedField": lambda **options: sx.DampedField(2, 16, 2, rate=0.5, bound=3.0, **options),
    "PortHamiltonianField": lambda **options: sx.PortHamiltonianField(2, 16, 2, **options),
    "LyapunovField": lambda **options: sx.LyapunovField(2, 16, 2, rate=0.02, **options),
}
COLOURS = dict(zip(FIELDS, ("C3", "C0", "C2", "C1"), strict=True))


def pendulum(t, y, args):
    angle, velocity = y
    return jnp.stack([velocity, -jnp.sin(2 * angle) - 0.3 * angle - 0.12 * velocity])


def simulate(field, starts, ts) -> sx.Simulation:
    model = sx.Simulate(field, solver=SOLVER, controller=CONTROLLER)
    return jax.vmap(lambda y0: model(y0, ts, throw=False))(starts)


def fit(field, starts, data, steps: int):
    """The field after `steps` steps of Adam, and the mean square error."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    )

    def loss(field):
        simulations = simulate(field, starts, TIMES)
        errors = jnp.mean((simulations.ys - data) ** 2, axis=(1, 2))
        return sx.masked_mean(errors, simulations)

    @eqx.filter_jit
    def train(field):
        def step(carry, _):
            field, state = carry
            value, gradient = jax.value_and_grad(loss)(field)
            updates, state = optimiser.update(gradient, state, field)
            return (optax.apply_updates(field, updates), state), value

        return jax.lax.scan(step, (field, optimiser.init(field)), length=steps)

    (field, _), values = train(field)
    return field, float(values[-1])


def draw(truth, later: dict[str, sx.Simulation], data, path: str) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex="row", sharey="row")
    for i, title in enumerate(("from a start of the data", "from a start outside")):
        for axes in panels[:, i]:
            axes.plot(LATER, truth.ys[i, :, 0], color="0.6", lw=4, label="truth")
            for name, simulations in later.items():
                reached = simulations.reached[i]
                angle = simulations.ys[i, reached, 0]
                axes.plot(LATER[reached], angle, color=COLOURS[name], lw=1.2, label=name)
            axes.axvspan(0, TIMES[-1], color="0.92", zorder=0)
        panels[0, i].set(title=title, xlim=(0, 20), ylim=(-4, 4))
        panels[1, i].set(xlabel="time", xlim=(0, LATER[-1]), yscale="symlog")
    for axes in panels[:, 0]:
        axes.set_ylabel("angle")
    panels[0, 0].plot(TIMES, data[0, :, 0], "ko", ms=3, label="data (shaded: their time)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stable fields beyond their data.")
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="stable_extrapolation.png", metavar="FILE.png")
    arguments = parser.parse_args()

    starts = jr.uniform(jr.key(0), (8, 2), minval=-1.5, maxval=1.5)
    exact = simulate(pendulum, starts, TIMES)
    data = exact.ys + NOISE * jr.normal(jr.key(1), exact.ys.shape)
    beyond = jnp.stack([starts[0], jnp.array([2.5, 2.5])])
    truth = simulate(pendulum, beyond, LATER)

    later, steps = {}, 3 if arguments.small else 400
    for name, make in FIELDS.items():
        field, error = fit(make(key=jr.key(2), activation=jax.nn.gelu), starts, data, steps)
        later[name] = jax.jit(lambda field=field: simulate(field, beyond, LATER))()
        ys, ok = later[name].ys, sx.is_successful(later[name])
        largest = np.max(np.abs(ys), axis=(1, 2))
        last = np.max(np.abs(ys[:, -1]), axis=1)
        print(
            f"{name:20s} mean square error {error:.5f}; beyond the data: largest |y| "
            f"{largest[0]:.2g} and {largest[1]:.2g}, |y| at the end {last[0]:.2g} and {last[1]:.2g}"
            f"{'' if ok.all() else ' (the solve ended before)'}",
            flush=True,
        )
    print(f"variance of the noise: {NOISE**2:.5f}")
    draw(truth, later, data, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
