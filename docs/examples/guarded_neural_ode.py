"""Trains a neural field with a stiff linear part, from a start whose first steps overflow.

    python docs/examples/guarded_neural_ode.py [--small] [--output FILE.png]

In the state (a, b, c), a and b spiral, and c follows a at a rate of 1e4. The linear part is known,
a network learns the rest. Its hidden units are hyperbolic sines, as in electrode kinetics, so that
a step which is too long overflows. It is rejected, and the solution is fine; but diffrax alone
carries the overflow into the gradient, and fails there. Here the gradient is that of the steps
that count, so the whole model can be handed to optax.

Prints the loss before and after, and writes a figure: data, start and fit. Needs the extra `plot`.
"""

import argparse

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import stablax as sx

jax.config.update("jax_enable_x64", True)

RATE = 1e4  # at which c follows a [1/time]
TIMES = np.concatenate([np.logspace(-5, -2, 12), np.linspace(0.05, 2.5, 30)])
STARTS = jnp.array([[1.5, 0.0, -2.0], [0.0, 1.2, 2.0], [-1.0, -1.0, 1.0], [-1.4, 0.4, 0.0]])
NOISE = 0.03


class NeuralField(sx.GuardedField):
    """dy/dt = L y + network(y): L is known and stiff."""

    network: sx.MLPField
    linear: sx.Frozen  # never trained

    def vector_field(self, t, y, args):
        return self.linear @ y + self.network.vector_field(t, y, args)


def make_model(key) -> sx.Simulate:
    network = sx.MLPField(
        size=3, width=16, depth=2, key=key, activation=jnp.sinh, initial_scale=1.0
    )
    linear = sx.Frozen([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [RATE, 0.0, -RATE]])
    field = NeuralField(network, linear, guard=sx.Guard(lower=-20.0, upper=20.0))
    return sx.Simulate(field, controller=sx.StiffPID.preset("fast"))


def make_data(key) -> jax.Array:
    """The cubic spiral of Chen et al. (2018), Neural ordinary differential equations, and c, which
    follows it (to 1e-3, far below the noise)."""

    def spiral(t, y, args):
        a, b = y
        return jnp.stack([-0.1 * a**3 + 2 * b**3, -2 * a**3 - 0.1 * b**3])

    model = sx.Simulate(spiral, solver=diffrax.Tsit5())
    a, b = jnp.moveaxis(jax.vmap(lambda y0: model(y0, TIMES).ys)(STARTS[:, :2]), 2, 0)
    c = a + (STARTS[:, 2:] - STARTS[:, :1]) * jnp.exp(-RATE * TIMES)[None]
    return jnp.stack([a, b, c], axis=2) + NOISE * jr.normal(key, (*a.shape, 3))


def loss(model: sx.Simulate, data: jax.Array) -> tuple[jax.Array, sx.Simulation]:
    simulations = jax.vmap(lambda y0: model(y0, TIMES, throw=False))(STARTS)
    losses = jnp.mean((simulations.ys - data) ** 2, axis=(1, 2))
    return sx.masked_mean(losses, simulations), simulations


def gradient_of_diffrax(model: sx.Simulate) -> str:
    """The gradient for the first start with the same field, solver and tolerances."""

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(field):
        term, saveat = diffrax.ODETerm(field.vector_field), diffrax.SaveAt(ts=jnp.asarray(TIMES))
        tolerances = diffrax.PIDController(rtol=1e-3, atol=1e-6)
        times = (0.0, TIMES[-1], None)
        solution = diffrax.diffeqsolve(
            term, sx.kvaerno5(), *times, STARTS[0], saveat=saveat, stepsize_controller=tolerances
        )
        return jnp.mean(jnp.square(solution.ys))

    try:
        leaves = jax.tree.leaves(gradient(model.field))
    except RuntimeError:
        return "raises an error"
    return "is finite" if all(jnp.all(jnp.isfinite(x)) for x in leaves) else "is NaN"


def train(model: sx.Simulate, data: jax.Array, steps: int):
    """The losses and the simulations before and after `steps` steps of Adam."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    )

    @eqx.filter_jit
    def step(model, state):
        (value, simulations), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(model, data)
        updates, state = optimiser.update(gradient, state, model)
        return eqx.apply_updates(model, updates), state, value, simulations

    state = optimiser.init(model)  # the whole model is a parameter tree
    history = []
    for i in range(steps + 1):
        model, state, value, simulations = step(model, state)
        history.append((value, simulations))
        if i % 100 == 0:
            overflows = int(simulations.guard.rejected_not_finite.sum())
            print(f"step {i}: loss {value:.4f}, {overflows} steps overflowed and were rejected")
    return history[0], history[-1]


def draw(data: jax.Array, start: sx.Simulation, fit: sx.Simulation, path: str) -> None:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for j, (axes, name) in enumerate(zip(panels, "abc", strict=True)):
        for i in range(len(STARTS)):
            axes.plot(TIMES, start.ys[i, :, j], "--", color=f"C{i}", lw=1, alpha=0.6)
            axes.plot(TIMES, fit.ys[i, :, j], color=f"C{i}", lw=1.5)
            axes.plot(TIMES, data[i, :, j], "o", color=f"C{i}", ms=2.5)
        axes.set(xlabel="time", ylabel=name)
    panels[2].set(xscale="log", xlim=(8e-6, 0.1))  # c, while it catches up with a
    styles = {"data": {"marker": "o", "ls": ""}, "start": {"ls": "--"}, "fit": {}}
    lines = [Line2D([], [], color="0.3", ms=3, label=k, **v) for k, v in styles.items()]
    figure.legend(handles=lines, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a neural field with a stiff linear part.")
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="guarded_neural_ode.png", metavar="FILE.png")
    arguments = parser.parse_args()

    data = make_data(jr.key(0))
    model = make_model(jr.key(4))
    if not arguments.small:
        print(f"the gradient of diffrax alone {gradient_of_diffrax(model)}")
    (before, start), (after, fit) = train(model, data, 10 if arguments.small else 500)
    print(f"loss before {before:.4f}, after {after:.4f} (variance of the noise: {NOISE**2:.4f})")
    draw(data, start, fit, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
