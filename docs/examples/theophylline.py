"""Fits a population model to theophylline in twelve subjects, and looks at what it predicts.

    python docs/examples/theophylline.py [--small] [--output FILE.png]

Twelve subjects swallowed theophylline, and its concentration in the plasma was measured eleven
times over a day. Each has an absorption rate, an elimination rate and a clearance of its own,
log-normal around those of the population. The table is read as pharmacometricians write it
(`sx.Patients.of_table`), all subjects are solved in one `vmap`, and everything is fitted at once by
variational inference: the population's means, their spread, the noise, and for each subject a
normal distribution of its deviations, so that the bound on the likelihood is a mean over draws.

Prints the estimates, and writes a figure: a visual predictive check (the data, and the 5th, 50th
and 95th percentile of many simulated subjects), and three subjects. Needs the extra `plot`.

Data: A. J. Boeckmann, L. B. Sheiner and S. L. Beal, NONMEM Users Guide, part V (1994), as in
J. C. Pinheiro and D. M. Bates, Mixed-Effects Models in S and S-PLUS (2000).
"""

import argparse
import csv
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure

import stablax as sx

jax.config.update("jax_enable_x64", True)

DATA = Path(__file__).parent / "theophylline.csv"
NAMES = ("absorption [1/h]", "elimination [1/h]", "clearance [l/(h kg)]")
START = np.log([1.0, 0.2, 0.1])

FIELD = sx.ReactionField(
    ["gut -> plasma", "plasma -> 0"],
    [sx.MassAction("absorption"), sx.MassAction("elimination")],
    inputs=("absorption", "elimination"),
)
MODEL = sx.SimulatePhases(FIELD, controller=sx.StiffPID.preset(rtol=1e-6, atol=1e-8), max_steps=256)


def read() -> sx.Patients:
    """The table of events: a row for each dose and each measurement."""
    table = {name: [] for name in ("ID", "TIME", "AMT", "DV", "EVID")}
    with open(DATA, newline="") as file:
        for row in csv.DictReader(file):
            if row["subject"] not in table["ID"]:
                dose = dict(ID=row["subject"], TIME=0.0, AMT=row["dose_mg_per_kg"], DV=".", EVID=1)
                for name, value in dose.items():
                    table[name].append(value)
            seen = (row["subject"], row["time_h"], 0.0, row["concentration_mg_per_l"], 0)
            for name, value in zip(table, seen, strict=True):
                table[name].append(value)
    return sx.Patients.of_table(table)


def concentration(log_values: jax.Array, schedule: sx.Schedule, ts: jax.Array) -> jax.Array:
    """In the plasma of one subject [mg/l], whose doses are in mg/kg."""
    absorption, elimination, clearance = jnp.exp(log_values)
    y0, rates = FIELD.state({}), {"absorption": absorption, "elimination": elimination}
    phases = schedule.phases(FIELD, y0, end=25.0, args=rates)
    amounts = MODEL(y0, ts, phases, throw=False).ys[:, FIELD.index("plasma")]
    return amounts * elimination / clearance


class Population(eqx.Module):
    """What is estimated: of the population, and of each subject a normal distribution of its
    deviation from it."""

    means: jax.Array
    log_spreads: jax.Array
    log_noise: jax.Array
    deviations: jax.Array
    log_doubts: jax.Array

    def __init__(self, subjects: int):
        self.means = jnp.asarray(START)
        self.log_spreads = jnp.log(jnp.full(3, 0.3))
        self.log_noise = jnp.log(1.0)
        self.deviations = jnp.zeros((subjects, 3))
        self.log_doubts = jnp.log(jnp.full((subjects, 3), 0.1))


def loss(population: Population, patients: sx.Patients, key: jax.Array) -> jax.Array:
    """Minus the bound on the log likelihood, with a draw of the deviations of each subject."""
    draws = jr.normal(key, (4, *population.deviations.shape))
    # Each draw and its opposite: their mean is exact for what is linear in them.
    draws = jnp.concatenate([draws, -draws])
    doubts = jnp.exp(population.log_doubts)
    deviations = population.deviations + doubts * draws
    of_all = jax.vmap(concentration)
    predicted = jax.vmap(lambda d: of_all(population.means + d, patients.schedule, patients.ts))
    residuals = (predicted(deviations) - patients.values) * jnp.exp(-population.log_noise)
    measured = jnp.where(patients.is_measured, 0.5 * residuals**2 + population.log_noise, 0.0)
    # How far the distribution of a subject is from that of the population (Kullback-Leibler).
    scaled = (population.deviations**2 + doubts**2) * jnp.exp(-2 * population.log_spreads)
    apart = 0.5 * (scaled - 1) + population.log_spreads - population.log_doubts
    return jnp.sum(measured) / len(draws) + jnp.sum(apart)


def fit(population: Population, patients: sx.Patients, steps: int) -> tuple[Population, float]:
    schedule = optax.cosine_decay_schedule(0.03, steps)
    optimiser = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(schedule))

    @eqx.filter_jit
    def step(population, state, key):
        value, gradient = eqx.filter_value_and_grad(loss)(population, patients, key)
        updates, state = optimiser.update(gradient, state, population)
        return eqx.apply_updates(population, updates), state, value

    state, values = optimiser.init(population), []
    for key in jr.split(jr.key(0), steps):
        population, state, value = step(population, state, key)
        values.append(float(value))
    return population, float(np.mean(values[-20:]))


def draw(population: Population, patients: sx.Patients, subjects: int, path: str) -> None:
    """The visual predictive check, and three subjects."""
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ts = jnp.linspace(0.0, 25.0, 101)
    of_one, of_noise = jr.split(jr.key(1))
    # The twelve as they are, and others, each with the dose of one of the twelve.
    others = jr.normal(of_one, (subjects, 3)) * jnp.exp(population.log_spreads)
    values = population.means + jnp.concatenate([population.deviations, others])
    doses = jax.tree.map(lambda x: jnp.resize(x, (len(values), *x.shape[1:])), patients.schedule)
    solve = eqx.filter_jit(jax.vmap(concentration, in_axes=(0, 0, None)))
    curves, simulated = jnp.split(solve(values, doses, ts), [len(patients.ids)])
    simulated += jnp.exp(population.log_noise) * jr.normal(of_noise, simulated.shape)
    low, middle, high = jnp.percentile(simulated, jnp.array([5.0, 50.0, 95.0]), axis=0)
    left.fill_between(ts, low, high, color="tab:blue", alpha=0.2, label="5 % to 95 % of subjects")
    left.plot(ts, middle, color="tab:blue", label="median")
    left.plot(patients.ts.ravel(), patients.values.ravel(), "ko", ms=3, label="measured")
    left.set(title="visual predictive check", ylabel="theophylline in plasma [mg/l]")
    for k, colour in zip((0, 4, 8), ("tab:orange", "tab:green", "tab:purple"), strict=True):
        right.plot(ts, curves[k], color=colour, label=f"subject {patients.ids[k]}")
        right.plot(patients.ts[k], patients.values[k], "o", color=colour, ms=4)
    right.set(title="three subjects")
    for axes in (left, right):
        axes.set(xlabel="time after the dose [h]")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", default="theophylline.png", metavar="FILE.png")
    arguments = parser.parse_args()

    patients = read()
    population, value = fit(Population(len(patients.ids)), patients, 5 if arguments.small else 800)
    print(f"minus the bound on the log likelihood: {value:.1f}")
    print("                       typical value   spread between subjects (of the logarithm)")
    for k, name in enumerate(NAMES):
        typical, spread = jnp.exp(population.means[k]), jnp.exp(population.log_spreads[k])
        print(f"{name:22s} {typical:9.4f}       {spread:9.3f}")
    print(f"noise {jnp.exp(population.log_noise):.3f} mg/l")
    draw(population, patients, 60 if arguments.small else 1000, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
