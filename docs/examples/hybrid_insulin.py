"""A hybrid model of insulin signalling, in which a network replaces the feedback.

    python docs/examples/hybrid_insulin.py [--small] [--output FILE.png]

The model of Brännmark et al. (2010), and the measurements, are those of `insulin_signalling.py`.
There, the internalised receptor loses its phosphate at a rate IRiP k1f Xp / (1 + Xp): the feedback.
Here, that law is unknown. The rate is IRiP g(Xp), and a network g is found from the measurements of
IR and IRS1. The rest of the mechanism is kept, and whatever the network says, the rate is positive,
needs a receptor to act on, and conserves the three totals.

Prints the misfit before and after, and writes a figure: measurements, start and fit, and the
learned feedback beside the true one. Needs the extras `plot` and `train`.
"""

import argparse
import time
from pathlib import Path

import equinox as eqx
import insulin_signalling as insulin
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from tqdm import tqdm

import stablax as sx

K = dict(zip(insulin.RATES, insulin.PUBLISHED, strict=True))
FEEDBACK = insulin.RATES.index("k1f")


def make_field(key) -> sx.ReactionField:
    """The network of reactions, with a rate law that is learned in place of the feedback."""

    def law(name, driver) -> sx.AbstractRateLaw:
        if name == "k1f":
            # At the start 1000 / min, whatever Xp is.
            scale, size = 1e3, 1e-3
            network = sx.NeuralRate(("Xp",), scale=scale, size=size, width=8, depth=2, key=key)
            return sx.MassAction(sx.Frozen(1.0)) * network
        k = K[name] * (K["k21"] if name == "k22" else 1.0)
        return sx.MassAction(sx.Frozen(k))

    def text(substrate, product, driver) -> str:
        if driver in insulin.SPECIES:
            return f"{substrate} + {driver} -> {product} + {driver}"
        return f"{substrate}{' + insulin' if driver == 'insulin' else ''} -> {product}"

    def given(t, y, args):
        doses, times = args
        return jnp.sum(jnp.where(t >= times, doses, 0.0))

    return sx.ReactionField(
        [text(*names) for _, _, *names in insulin.REACTIONS],
        [law(name, driver) for name, _, _, _, driver in insulin.REACTIONS],
        species=insulin.SPECIES,
        inputs={"insulin": given},
    )


def feedback(field: sx.ReactionField, xp) -> jax.Array:
    """g(Xp): the rate of the reaction for one receptor."""
    y = jnp.ones((len(xp), len(insulin.SPECIES))).at[:, field.index("Xp")].set(xp)
    args = (jnp.zeros(2), jnp.zeros(2))
    return jax.vmap(lambda y: field.rates(0.0, y, args)[FEEDBACK])(y)


def train(problem, model: sx.SteadyThenSimulate, steps: int):
    """The model after `steps` steps of Adam, and the misfits before and after."""
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.1, steps, 0.1))
    )
    weights = np.ones(len(problem.measured))

    def loss(model):
        simulations = insulin.simulate(
            model, problem.y0, problem.ts, problem.insulin, problem.steady
        )
        return insulin.misfit(problem, simulations, weights)

    @eqx.filter_jit
    def step(model, state):
        value, gradient = jax.value_and_grad(loss)(model)
        updates, state = optimiser.update(gradient, state, model)
        return eqx.apply_updates(model, updates), state, value

    state = optimiser.init(model)  # the whole model is a parameter tree
    misfits, following = [], model
    for _ in tqdm(range(steps + 1), desc="fit"):  # after the last update, one look
        model = following
        following, state, value = step(model, state)
        misfits.append(float(value))
    return model, misfits[0], misfits[-1]


def draw(problem, start, fit, path: Path) -> None:
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    *panels, panel = figure.subplot_mosaic([[0, 1, 2], [3, 4, 4]]).values()
    insulin.draw_series(problem, {"start": start, "fit": fit}, panels)
    _, states = insulin.curves(problem, fit)
    visited = states[..., insulin.SPECIES.index("Xp")]
    xp = np.geomspace(visited.min(), visited.max(), 200)
    panel.plot(xp, K["k1f"] * xp / (1 + xp), color="k", label="true")
    for (name, model), style in zip((("start", start), ("fit", fit)), insulin.STYLES, strict=True):
        panel.plot(xp, feedback(model.field, xp), label=name, **style)
    panel.set(xscale="log", yscale="log", xlabel="Xp", ylabel="feedback g(Xp) [1/min]")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_title("the feedback, learned from the other panels")
    panel.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("hybrid_insulin.png"))
    arguments = parser.parse_args()

    began = time.perf_counter()
    data_key, network_key = jr.split(jr.key(0))
    problem = insulin.make_problem(data_key)
    field = make_field(network_key)
    print(field)
    start = sx.SteadyThenSimulate(
        field,
        method=sx.PseudoTransient(),
        controller=sx.StiffPID.preset(jump_ts=(4.0,)),  # when insulin is added
        max_steps=1024,
    )
    fit, before, after = train(problem, start, 4 if arguments.small else 100)
    print(f"misfit before: {before:.4g}\nmisfit after:  {after:.4g}   (1 is noise alone)")
    draw(problem, start, fit, arguments.output)
    print(f"figure: {arguments.output}\ntime: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
