"""Fits the rate constants of a drug to plasma samples of patients with different schedules.

    python docs/examples/repeated_dosing.py [--small] [--output FILE.png]

A drug is swallowed, absorbed from the gut into the plasma, spreads into the tissue and back, and is
eliminated from the plasma. Three patients take it on schedules of their own: every 12 hours; every
24 hours, after a loading dose; and one who stops early. The schedules are padded to one shape and
solved in one `vmap` by `sx.SimulatePhases`. Samples are taken just before doses, too (troughs), so
save times on a boundary belong to the phase before it. The four rate constants and the volume of
the plasma are fitted on a logarithmic scale.

Prints the parameters before and after, and writes a figure: data, start and fit. Needs the extra
`plot`.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure

import stablax as sx

jax.config.update("jax_enable_x64", True)

NAMES = ("absorption", "elimination", "to the tissue", "back", "volume")  # [1/h], and [l]
TRUE = np.array([1.2, 0.15, 0.5, 0.1, 30.0])
START = np.array([0.4, 0.4, 0.15, 0.3, 60.0])
NOISE = 0.08  # standard deviation of the logarithm of a concentration

# When each phase ends [h], and the dose at its start [mg]. A patient with fewer doses has phases of
# length zero at the end, which do nothing.
ENDS = np.array(
    [
        [12.0, 24.0, 36.0, 48.0, 60.0, 96.0],
        [24.0, 48.0, 72.0, 96.0, 96.0, 96.0],
        [12.0, 24.0, 96.0, 96.0, 96.0, 96.0],
    ]
)
DOSES = np.array(
    [
        [100.0, 100.0, 100.0, 100.0, 100.0, 100.0],
        [300.0, 150.0, 150.0, 150.0, 0.0, 0.0],
        [200.0, 200.0, 200.0, 0.0, 0.0, 0.0],
    ]
)
SAMPLES = np.array(
    [1.0, 3.0, 8.0, 12.0, 14.0, 24.0, 27.0, 36.0, 48.0, 51.0, 60.0, 72.0, 78.0, 96.0]
)


class Drug(sx.GuardedField):
    """Amounts in the gut, the plasma and the tissue [mg]; `log_rates` [1/h]."""

    log_rates: jax.Array
    guard: sx.Guard = eqx.field(default=sx.Guard(lower=0.0), kw_only=True)

    def vector_field(self, t, y, args):
        absorb, eliminate, there, back = jnp.exp(self.log_rates)
        gut, plasma, tissue = y
        absorbed, spread = absorb * gut, there * plasma - back * tissue
        return jnp.stack([-absorbed, absorbed - eliminate * plasma - spread, spread])


class Patients(eqx.Module):
    """Concentrations in the plasma [mg/l]."""

    phases: sx.SimulatePhases
    log_volume: jax.Array

    def __init__(self, values):
        log_values = jnp.log(jnp.asarray(values))
        self.phases = sx.SimulatePhases(Drug(log_values[:4]), boundary="before")
        self.log_volume = log_values[4]

    def __call__(self, ts):
        """Of all patients, shape `(patients, times)`, and the simulations."""
        into_the_gut = jnp.array([1.0, 0.0, 0.0])

        def phase(end, milligrams):
            return sx.Phase(end, dose=milligrams * into_the_gut)

        def one(ends, doses):
            return self.phases(jnp.zeros(3), ts, jax.vmap(phase)(ends, doses), throw=False)

        simulations = jax.vmap(one)(ENDS, DOSES)
        return simulations.ys[..., 1] * jnp.exp(-self.log_volume), simulations

    @property
    def values(self) -> np.ndarray:
        return np.exp(np.append(self.phases.field.log_rates, self.log_volume))


def loss(patients: Patients, data: jax.Array) -> jax.Array:
    """The mean square in units of the noise: 1 is what noise alone gives."""
    concentrations, simulations = patients(SAMPLES)
    squares = jnp.square(jnp.log(concentrations / data) / NOISE)
    return sx.masked_mean(jnp.mean(squares, axis=1), simulations)


def fit(patients: Patients, data: jax.Array, steps: int) -> tuple[Patients, float, float]:
    """The fitted patients, and the loss before and after."""
    schedule = optax.cosine_decay_schedule(0.05, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @eqx.filter_jit
    def step(patients, state):
        value, gradient = eqx.filter_value_and_grad(loss)(patients, data)
        updates, state = optimiser.update(gradient, state, patients)
        return eqx.apply_updates(patients, updates), state, value

    state = optimiser.init(patients)  # the whole model is a parameter tree
    values = []
    for _ in range(steps):
        patients, state, value = step(patients, state)
        values.append(float(value))
    return patients, values[0], values[-1]


def draw(data: jax.Array, start: Patients, fitted: Patients, path: str) -> None:
    figure = Figure(figsize=(9.5, 3.1), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    ts = np.linspace(0.0, ENDS.max(), 385)
    lines = [
        ("start", start, {"color": "0.6", "ls": "--", "lw": 1.0}),
        ("fit", fitted, {"color": "tab:blue", "lw": 1.5}),
    ]
    titles = ("every 12 h", "loading dose, then every 24 h", "stopped after three doses")
    for i, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for name, patients, style in lines:
            axes.plot(ts, eqx.filter_jit(patients)(ts)[0][i], label=name, **style)
        axes.plot(SAMPLES, data[i], "ko", ms=4, label="data")
        given = np.append(0.0, ENDS[i, :-1])[DOSES[i] > 0]
        axes.plot(given, np.zeros_like(given), "^", color="tab:red", ms=6, label="dose")
        axes.set(xlabel="time [h]", title=title)
        axes.set_xticks(np.arange(0, 97, 24))
    panels[0].set_ylabel("concentration in plasma [mg/l]")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="repeated_dosing.png", metavar="FILE.png")
    arguments = parser.parse_args()

    exact, _ = eqx.filter_jit(Patients(TRUE))(SAMPLES)
    data = exact * jnp.exp(NOISE * jr.normal(jr.key(0), exact.shape))
    start = Patients(START)
    fitted, before, after = fit(start, data, 10 if arguments.small else 300)
    print(f"loss before {before:.1f}, after {after:.2f} (1 is noise alone)")
    for name, true, first, last in zip(NAMES, TRUE, START, fitted.values, strict=True):
        print(f"{name:14s} true {true:6.3g}   start {first:6.3g}   fit {last:6.3g}")
    draw(data, start, fitted, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
