"""Fits the insulin receptor model of Brännmark et al. (2010) from a wrong start.

    python docs/examples/insulin_signalling.py                 # measurements made by the script
    python docs/examples/insulin_signalling.py --data FILE     # measurements from a file
    python docs/examples/insulin_signalling.py --small         # a few steps, to see that it runs

Fat cells rest without insulin until nothing changes. Then insulin is added, at seven doses or in
two steps, and the phosphorylation of the insulin receptor (IR) and of its substrate (IRS1) is
measured in arbitrary units. The model has 9 states with 3 conserved totals, and 14 rate constants
between 1e-6 and 5e5. Equilibrating and simulating it, all conditions at once, is one
`sx.SteadyThenSimulate`; training it is optax as usual.

Prints the misfit before and after, and writes a figure: data, start and fit. Needs the extras
`plot` and `train`. The format of FILE is described in `_petab.py`.

Reference: C. Brännmark et al. (2010). Mass and information feedbacks through receptor endocytosis
govern insulin signaling as revealed using a parameter-free modeling framework. J. Biol. Chem.
285(26), 20171-20179.
"""

import argparse
import dataclasses
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from _petab import Formula, Observable, Problem, ProblemError, read
from matplotlib.figure import Figure
from tqdm import tqdm

import stablax as sx

jax.config.update("jax_enable_x64", True)

# --- the model --------------------------------------------------------------------------------

SPECIES = ("IR", "IRins", "IRp", "IRiP", "IRi", "IRS", "IRSiP", "X", "Xp")

# Rate constant with its published value, substrate -> product, and what drives the reaction: its
# rate is constant * substrate * driver. The constant of k22 is relative to k21.
REACTIONS = (
    ("k1a", 0.177, "IR", "IRins", "insulin"),
    ("k1aBasic", 3.93e-4, "IR", "IRins", "1"),
    ("k1b", 0.175, "IRins", "IR", "1"),
    ("k1c", 0.0509, "IRins", "IRp", "1"),
    ("k1d", 5e5, "IRp", "IRiP", "1"),
    ("k1e", 1e-6, "IRiP", "IRi", "1"),
    ("k1f", 5e5, "IRiP", "IRi", "Xp / (1 + Xp)"),
    ("k1g", 1730.0, "IRp", "IR", "1"),
    ("k1r", 0.0267, "IRi", "IR", "1"),
    ("k21", 2.10, "IRS", "IRSiP", "IRp"),
    ("k22", 667.0, "IRS", "IRSiP", "IRiP"),
    ("k3", 4.94e-5, "X", "Xp", "IRSiP"),
    ("km2", 1.16, "IRSiP", "IRS", "1"),
    ("km3", 0.416, "Xp", "X", "1"),
)
RATES, PUBLISHED, SUBSTRATES, PRODUCTS, DRIVERS = zip(*REACTIONS, strict=True)


def _select(names, among) -> np.ndarray:
    """The matrix that picks `names` out of a vector of values of `among`."""
    return np.array([[float(name == other) for other in among] for name in names])


SUBSTRATE = _select(SUBSTRATES, SPECIES)
DRIVER = _select(DRIVERS, (*SPECIES, "insulin", "Xp / (1 + Xp)", "1"))
STOICHIOMETRY = (_select(PRODUCTS, SPECIES) - SUBSTRATE).T
RELATIVE = np.eye(len(RATES))
RELATIVE[RATES.index("k22"), RATES.index("k21")] = 1.0

# Rows L with L dy/dt = 0: the totals of the receptor, of its substrate, and of the feedback X.
CONSERVED = np.array([[1, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0, 0], [0] * 7 + [1, 1]])


class InsulinField(sx.GuardedField):
    """dy/dt of the nine states [arbitrary units] with time in minutes.

    `log_k` is log10 of the rate constants, in the order of `RATES`; the condition `args` is
    `(doses, times)` of two steps of insulin [nM], [min].
    """

    log_k: jax.Array
    guard: sx.Guard = eqx.field(default=sx.Guard(lower=0.0), kw_only=True)

    def vector_field(self, t, y, args):
        doses, times = args
        insulin = jnp.sum(jnp.where(t >= times, doses, 0.0))
        xp = y[SPECIES.index("Xp")]
        drivers = jnp.append(y, jnp.stack([insulin, xp / (1 + xp), jnp.ones_like(xp)]))
        k = 10.0 ** (RELATIVE @ self.log_k)
        return STOICHIOMETRY @ (k * (SUBSTRATE @ y) * (DRIVER @ drivers))


def build_model(problem: Problem, log_k, **options) -> sx.SteadyThenSimulate:
    """The model with these rate constants. The controller is told when insulin is added."""
    doses, times = problem.insulin
    jumps = np.unique(times[(doses != 0) & (times > 0)])
    controller = sx.StiffPID.preset(jump_ts=jumps if jumps.size else None)
    options = {"controller": controller, "max_steps": 1024, **options}
    return sx.SteadyThenSimulate(InsulinField(jnp.asarray(log_k)), **options)


@eqx.filter_jit
def simulate(model: sx.SteadyThenSimulate, y0, ts, insulin, steady) -> sx.Simulation:
    """Equilibrates under `steady`, then follows all conditions in one `vmap`.

    The arguments are those of `Problem`. The result is a batch: `ys` has the shape
    `(conditions, times, 9)`. The equilibrium is common to all conditions, and computed once.
    """

    def follow(insulin):
        return model(y0, ts, args=insulin, steady_args=steady, conserved=CONSERVED, throw=False)

    return jax.vmap(follow)(insulin)


# --- the misfit -------------------------------------------------------------------------------


def observe(problem: Problem, index: int, states, ts):
    """Observable `index` of `states`, shape `(rows, 9)`, at times `ts`: `(offset, slope)`, which
    stand for the prediction offset + scaling factor * slope."""
    offset, slope = problem.observables[index](
        {**dict(zip(SPECIES, states.T, strict=True)), "t": ts}
    )
    return jnp.broadcast_to(offset, len(ts)), jnp.broadcast_to(slope, len(ts))


def predict(problem: Problem, states, used: Any = True):
    """The prediction for each row of the data, and the scaling factors.

    The factors are linear, so for given states the best ones are known: weighted linear
    regression, within their bounds. Rows count where they are `used`.
    """
    rows, ts = np.arange(len(problem.time)), problem.ts[problem.time]
    each = [observe(problem, i, states, ts) for i in range(len(problem.observables))]
    offset, slope = (jnp.stack(x)[problem.observable, rows] for x in zip(*each, strict=True))
    total = partial(
        jax.ops.segment_sum,
        segment_ids=problem.scale,
        num_segments=len(problem.scale_bounds),
    )
    weight = jnp.where(used, 1 / problem.sigma**2, 0.0)
    best = total(weight * slope * (problem.measured - offset))
    best = best / (total(weight * slope**2) + np.finfo(float).tiny)
    # At its minimum the misfit has no derivative in the factors.
    factors = jax.lax.stop_gradient(jnp.clip(best, *problem.scale_bounds.T))
    return offset + factors[problem.scale] * slope, factors


def misfit(problem: Problem, simulations: sx.Simulation, weights):
    """Mean squared deviation in units of the standard deviation, with `weights` for the rows: 1
    is what noise alone gives. Conditions that failed do not count."""
    used = sx.is_successful(simulations)[problem.condition]
    predicted, _ = predict(problem, simulations.ys[problem.condition, problem.time], used)
    squares = weights * ((predicted - problem.measured) / problem.sigma) ** 2
    conditions = len(problem.insulin[0])
    losses = jax.ops.segment_sum(squares, problem.condition, conditions)
    return sx.masked_mean(losses * (conditions / len(squares)), simulations)


# --- the data ---------------------------------------------------------------------------------

DOSES = (0.0, 0.01, 0.1, 0.3, 1.0, 10.0, 100.0)
COURSE = (0.0, 0.5, 0.9, 1.3, 1.8, 2.3, 3.3, 5.3, 7.0, 10.0, 15.0, 20.0, 30.0)
TWO_STEPS = (0.0, 0.35, 0.6, 0.9, 1.2, 1.5, 2.5, 4.0, 4.35, 4.6, 4.9, 5.2, 5.5, 7.0, 10.0)
NOISE = 4.0  # standard deviation, where the largest value of a series is 100


def load_problem(path: str | Path, rows: str = "measurements") -> Problem:
    """Measurements (or, with `rows="simulated"`, the published simulation) from a file.

    **Raises:** `ProblemError` with one line that says what is wrong with the file.
    """
    field = lambda log_k, *args: InsulinField(jnp.asarray(log_k)).vector_field(*args)
    return read(path, SPECIES, RATES, field, rows)


def make_problem(key) -> Problem:
    """Measurements made with the published rate constants, plus noise: IR and IRS1 after 100 nM,
    IRS1 after 1.2 nM and 8.8 nM more at 4 min, and IRS1 at 10 min for all doses."""
    most, two = len(DOSES) - 1, len(DOSES)
    series = [(0, [most], COURSE), (1, [most], COURSE), (1, [two], TWO_STEPS)]
    series += [(1, range(len(DOSES)), [10.0])]
    rows = [
        (condition, t, observable, scale)
        for scale, (observable, conditions, times) in enumerate(series)
        for condition in conditions
        for t in times
    ]
    condition, t, observable, scale = map(np.array, zip(*rows, strict=True))
    ts, index = np.unique(t, return_inverse=True)
    doses = np.array([(dose, 0.0) for dose in DOSES] + [(1.2, 8.8)])
    problem = Problem(
        y0=np.array([10.0, 0, 0, 0, 0, 10.0, 0, 10.0, 0]),
        insulin=(doses, np.where(doses == 8.8, 4.0, 0.0)),
        steady=(np.zeros(2), np.zeros(2)),
        ts=ts,
        measured=np.ones(len(t)),
        sigma=np.full(len(t), NOISE),
        condition=condition,
        time=index,
        observable=observable,
        scale=scale,
        observables=tuple(
            Observable(name, Formula(f"factor * ({formula})", name), "factor")
            for name, formula in (("IR1_P", "IRp + IRiP"), ("IRS1_P", "IRSiP"))
        ),
        scale_bounds=np.array([(0.0, np.inf)] * len(series)),
        log_k=np.log10(PUBLISHED),
        bounds=np.array([(-6.0, np.log10(5e5))] * len(RATES)),
    )
    fine_ts, states = curves(problem, build_model(problem, problem.log_k))
    signal, _ = predict(problem, states[condition, np.searchsorted(fine_ts, t)])
    largest = np.array([np.max(signal, where=scale == s, initial=0) for s in range(len(series))])
    noise = NOISE * jr.normal(key, signal.shape)
    return dataclasses.replace(problem, measured=np.asarray(100 * signal / largest[scale] + noise))


# --- training ---------------------------------------------------------------------------------

BATCHES = 2


def make_optimiser(problem: Problem, steps: int) -> optax.GradientTransformation:
    """Adam on mini-batches. `MultiSteps` averages the gradients of the `BATCHES` parts of the
    data into one update, `apply_if_finite` skips a gradient that is not finite, and the last link
    keeps the rate constants within their bounds."""
    schedule = optax.cosine_decay_schedule(0.1, max(1, steps // BATCHES), alpha=0.05)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    accumulated = optax.MultiSteps(adam, BATCHES).gradient_transformation()
    lower, upper = problem.bounds.T

    def within_bounds(updates, params):
        return jax.tree.map(lambda u, p: jnp.clip(p + u, lower, upper) - p, updates, params)

    return optax.chain(
        optax.apply_if_finite(accumulated, max_consecutive_errors=10),
        optax.stateless(within_bounds),
    )


def fit(problem: Problem, log_k, *, steps: int):
    """Fits all rate constants from the start `log_k`.

    **Returns:** the best `log_k`, and the misfit before and after.
    """
    model = build_model(problem, log_k)
    params: Any
    params, static = sx.partition(model)
    optimiser = make_optimiser(problem, steps)
    state = optimiser.init(params)
    rows = np.arange(len(problem.measured))

    def loss(params, weights):
        model = eqx.combine(params, static)
        simulations = simulate(model, problem.y0, problem.ts, problem.insulin, problem.steady)
        whole = misfit(problem, simulations, np.ones(len(rows)))
        return misfit(problem, simulations, weights), (whole, sx.is_successful(simulations))

    @jax.jit
    def step(params, state, weights):
        gradient, report = jax.grad(loss, has_aux=True)(params, weights)
        updates, state = optimiser.update(gradient, state, params)
        return eqx.apply_updates(params, updates), state, report

    best, before, after = params, None, math.inf
    with tqdm(range(steps + 1), desc="fit") as bar:  # after the last update, one look
        for i in bar:
            # The mean over the batches is the misfit of all rows.
            weights = np.where(rows % BATCHES == i % BATCHES, float(BATCHES), 0.0)
            following, state, (value, successful) = step(params, state, weights)
            before = float(value) if before is None else before
            if successful.all() and value < after:
                after, best = float(value), params
            params = following
            bar.set_postfix(misfit=f"{after:.3g}", refresh=False)
    if math.isinf(after):
        raise RuntimeError("The model could not be solved in all conditions at any step.")
    return np.asarray(eqx.combine(best, static).field.log_k), before, after


# --- the figure -------------------------------------------------------------------------------


def fine_doses(problem: Problem) -> np.ndarray:
    """0, and doses from a quarter of the smallest to the largest of the problem [nM]."""
    given = problem.insulin[0][problem.insulin[0] > 0]
    least, most = (given.min(), given.max()) if given.size else (1.0, 1.0)
    return np.append(0.0, np.geomspace(least / 4, most, 40))


def curves(problem: Problem, model: sx.SteadyThenSimulate):
    """The states of a model at finely spaced times, in the problem's conditions and then at
    `fine_doses`: `(times, states)`, of shapes `(times,)` and `(conditions, times, 9)`."""
    ts = np.union1d(problem.ts, problem.ts[-1] * np.linspace(0, 1, 201) ** 2)
    fine = fine_doses(problem)[:, None] * [1.0, 0.0]
    doses, times = problem.insulin
    insulin = np.concatenate([doses, fine]), np.concatenate([times, np.zeros_like(fine)])
    simulations = simulate(model, problem.y0, ts, insulin, problem.steady)
    if not sx.is_successful(simulations).all():
        print(sx.explain(simulations))
    return ts, np.asarray(simulations.ys)


STYLES = ({"color": "0.6", "ls": "--"}, {"color": "tab:blue", "lw": 2})


def draw(problem: Problem, fits: dict[str, sx.SteadyThenSimulate], path: Path) -> None:
    """Measurements and the curves of models, by name, in a figure."""
    count = len(_series(problem))
    height = math.ceil(count / 2)
    figure = Figure(figsize=(9.5, 3.4 * height), layout="constrained")
    panels = figure.subplots(height, min(2, count), squeeze=False).ravel()
    draw_series(problem, fits, panels)
    for panel in panels[count:]:
        panel.set_axis_off()
    figure.savefig(path, dpi=110)


def draw_series(problem: Problem, fits: dict[str, sx.SteadyThenSimulate], panels) -> None:
    """One panel for each series of data: measurements, and the curves of models, by name."""
    for (name, model), style in zip(fits.items(), STYLES, strict=True):
        ts, states = curves(problem, model)
        at_data = states[problem.condition, np.searchsorted(ts, problem.ts[problem.time])]
        factors = np.asarray(predict(problem, at_data)[1])
        for panel, (scale, index) in zip(panels, _series(problem), strict=False):
            rows = (problem.scale == scale) & (problem.observable == index)
            for x, times, followed in _lines(problem, rows, ts, states):
                offset, slope = observe(problem, index, followed, times)
                panel.plot(x, offset + factors[scale] * slope, label=name, **style)
                name = f"_{name}"  # one entry in the legend
    for panel, (scale, index) in zip(panels, _series(problem), strict=False):
        _draw_data(problem, (problem.scale == scale) & (problem.observable == index), panel)
        panel.set_ylabel(f"{problem.observables[index].name} [arbitrary units]")
        # The peak between the first measurements can be far above them.
        measured = problem.measured[problem.scale == scale]
        top = min(1.4 * measured.max(), panel.get_ylim()[1])
        panel.set_ylim(min(0.0, measured.min()) - 0.08 * top, top)
    panels[0].legend(frameon=False)


def _series(problem: Problem) -> np.ndarray:
    """The scaling factor and the observable of each series."""
    return np.unique(np.stack([problem.scale, problem.observable], axis=1), axis=0)


def _is_dose_response(problem: Problem, rows) -> bool:
    return len(set(problem.time[rows])) == 1


def _lines(problem: Problem, rows, ts, states):
    """The curves to draw through some rows of the data: x, times and states of each."""
    if _is_dose_response(problem, rows):
        when = np.searchsorted(ts, problem.ts[problem.time[rows][0]])
        doses = fine_doses(problem)
        yield doses, np.full(len(doses), ts[when]), states[-len(doses) :, when]
    else:
        shown = ts <= problem.ts[problem.time[rows]].max()
        for condition in np.unique(problem.condition[rows]):
            yield ts[shown], ts[shown], states[condition, shown]


def _draw_data(problem: Problem, rows, panel) -> None:
    doses, times = (x[problem.condition[rows]] for x in problem.insulin)
    x = problem.ts[problem.time[rows]]
    if _is_dose_response(problem, rows):
        least, most = fine_doses(problem)[[1, -1]]
        panel.set_title(f"{x[0]:g} min after insulin")
        panel.set_xlabel("insulin [nM]")
        panel.set_xscale("symlog", linthresh=4 * least, linscale=0.4)
        panel.set_xticks([0, *10.0 ** np.arange(np.ceil(np.log10(4 * least)), np.log10(most) + 1)])
        panel.set_xlim(-least, 1.6 * most)
        x = doses.sum(axis=1)
    else:
        given = [f"{d:g} nM at {t:g} min" for d, t in zip(doses[0], times[0], strict=True) if d]
        panel.set_title("insulin: " + ", ".join(given) if np.ptp(doses, axis=0).max() == 0 else "")
        panel.set_xlabel("time [min]")
        for t in np.unique(times[(doses > 0) & (times > 0)]):
            panel.axvline(t, color="0.85", zorder=0)
    measured, sigma = problem.measured[rows], problem.sigma[rows]
    panel.errorbar(x, measured, sigma, fmt="ko", ms=4, capsize=2, label="data")


# --- the command ------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", metavar="FILE", help="measurements to fit, as JSON")
    parser.add_argument("--steps", type=int, help="gradients to compute (default: 240)")
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and of the start")
    parser.add_argument("--output", type=Path, default=Path("insulin_signalling.png"))
    args = parser.parse_args(argv)
    steps = (6 if args.small else 240) if args.steps is None else args.steps
    if steps < 1:
        parser.error(f"--steps must be at least 1, got {steps}")
    if abs(args.seed) >= 2**63:
        parser.error("--seed must fit into 64 bits")
    if not args.output.parent.is_dir():
        parser.error(f"--output: there is no folder {args.output.parent}")

    began = time.perf_counter()
    noise_key, start_key = jr.split(jr.key(args.seed))
    try:
        problem = load_problem(args.data) if args.data else make_problem(noise_key)
    except ProblemError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    wrong_by = np.asarray(jr.uniform(start_key, problem.log_k.shape, minval=-1, maxval=1))
    start = np.clip(problem.log_k + wrong_by, *problem.bounds.T)

    rows, conditions = len(problem.measured), len(problem.insulin[0])
    print(f"{rows} measurements in {conditions} conditions; every rate constant up to 10x wrong")
    log_k, before, after = fit(problem, start, steps=steps)
    print(f"misfit before: {before:.4g}\nmisfit after:  {after:.4g}   (1 is noise alone)")
    fits = {name: build_model(problem, k) for name, k in (("start", start), ("fit", log_k))}
    draw(problem, fits, args.output)
    print(f"figure: {args.output}\ntime: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
