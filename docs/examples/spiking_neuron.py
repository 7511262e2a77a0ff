"""Fits a neuron to the times at which it fires.

    python docs/examples/spiking_neuron.py [--small] [--output FILE.png]

A leaky integrate-and-fire neuron: a current charges a membrane, and at a threshold of 15 mV the
neuron fires and its voltage is set back. Resistance and time constant of the membrane, and the
voltage to which it is set back, are unknown; all that was measured are the times of the first
spikes, under three currents. They are events of the model (`sx.Event`), so their times have
derivatives in the parameters, through every spike before them, and least squares fits them in a few
steps.

Prints the parameters before and after, and writes a figure: voltages and spikes. Needs the extra
`plot`.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

import stablax as sx

jax.config.update("jax_enable_x64", True)

CURRENTS = np.array([1.4, 2.0, 3.0])  # [nA], each with a slow wave on it
SPIKES = 12  # that are fitted, of each
END = 400.0  # [ms]
THRESHOLD = 15.0  # [mV], above rest
NAMES = ("resistance [MOhm]", "time constant [ms]", "set back to [-mV]")
TRUE = np.array([13.0, 14.0, 5.0])
START = np.array([18.0, 25.0, 1.0])
NOISE = 0.3  # standard deviation of a time [ms]


class Membrane(eqx.Module):
    """Its voltage above rest [mV]: tau dV/dt = R I(t) - V."""

    def __call__(self, t, voltage, args):
        (resistance, tau, _), current = args
        wave = 1 + 0.2 * jnp.sin(2 * jnp.pi * t / 90.0)
        return (resistance * current * wave - voltage) / tau


def set_back(t, voltage, args):
    (_, _, below_rest), _ = args
    return -below_rest


FIRES = sx.Event(lambda t, voltage, args: voltage - THRESHOLD, direction=True, change=set_back)
NEURON = sx.Simulate(Membrane(), event=FIRES)


def simulate(values, ts):
    one = lambda current: NEURON(0.0, ts, args=(values, current))
    return jax.vmap(one)(jnp.asarray(CURRENTS))


def spikes(log_values):
    """Times of the first spikes [ms], of each current."""
    return simulate(jnp.exp(log_values), jnp.array([END])).events.t[:, :SPIKES]


def picture(path, ts, start, fit, measured):
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(len(CURRENTS), 1, sharex=True)
    for voltages, label, color in ((start, "start", "0.7"), (fit, "fit", "C0")):
        for axis, voltage in zip(axes, voltages, strict=True):
            axis.plot(ts, voltage, color=color, label=label)
    for axis, times, current in zip(axes, measured, CURRENTS, strict=True):
        axis.eventplot(times[times < 150.0], lineoffsets=17.0, linelengths=3.0, colors="C3")
        axis.set_ylabel(f"{current:g} nA\n[mV]")
    axes[0].plot([], [], color="C3", label="measured spikes")
    axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[-1].set_xlabel("time [ms]")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="spiking_neuron.png", help="where the figure goes")
    options = parser.parse_args()

    ts = jnp.append(jnp.linspace(0.0, 150.0, 1501), END)
    solve = jax.jit(simulate)
    exact = solve(jnp.asarray(TRUE), ts).events.t[:, :SPIKES]
    measured = np.asarray(exact + NOISE * jr.normal(jr.key(0), exact.shape))

    residuals = lambda log_values: jnp.ravel(spikes(log_values) - measured) / NOISE
    both = jax.jit(lambda log_values: (residuals(log_values), jax.jacfwd(residuals)(log_values)))
    found = least_squares(
        lambda x: both(x)[0],
        np.log(START),
        lambda x: both(x)[1],
        max_nfev=5 if options.small else 50,
    )
    fitted = np.exp(found.x)
    print(f"{'':20} {'start':>8} {'fit':>8} {'true':>8}")
    for name, *numbers in zip(NAMES, START, fitted, TRUE, strict=True):
        print(f"{name:20} " + " ".join(f"{x:8.3f}" for x in numbers))
    rms = np.sqrt(np.mean(found.fun**2))
    print(f"{found.nfev} steps; what is left is {rms:.2f} of the noise")
    start, fit = (solve(jnp.asarray(values), ts).ys[:, :-1] for values in (START, fitted))
    picture(options.output, ts[:-1], start, fit, measured)


if __name__ == "__main__":
    main()
