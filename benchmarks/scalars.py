"""One field written in three ways: each rate a scalar, all rates as vectors, and a `ReactionField`.

    python benchmarks/scalars.py

The MAPK cascade of `problems.py`: ten rate laws of Michaelis and Menten, 8 species. `Rodas5P` at
rtol 1e-6, so that all take the same steps. Kernels of the whole program; seconds of processor time
to compile it; microseconds a step, minima of interleaved warm runs on one core.
"""

import time

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import numpy as np
from compile import kernels
from problems import MAPK
from report import number, table

import stablax as sx

jax.config.update("jax_enable_x64", True)
ROUNDS = 30

# Of each reaction: its text, the index of its substrate, and which of the parameters is its km.
REACTIONS = (
    ("KKK -> KKKp", 0, 2),
    ("KKKp -> KKK", 1, 4),
    ("KK -> KKp", 2, 6),
    ("KKp -> KKpp", 3, 6),
    ("KKpp -> KKp", 4, 8),
    ("KKp -> KK", 3, 8),
    ("K -> Kp", 5, 6),
    ("Kp -> Kpp", 6, 6),
    ("Kpp -> Kp", 7, 8),
    ("Kp -> K", 6, 8),
)
SPECIES = ["KKK", "KKKp", "KK", "KKp", "KKpp", "K", "Kp", "Kpp"]
SUBSTRATES, HALVES = (np.array([row[i] for row in REACTIONS]) for i in (1, 2))
CHANGE = np.zeros((8, len(REACTIONS)))
for j, (text, *_) in enumerate(REACTIONS):
    before, after = text.split(" -> ")
    CHANGE[SPECIES.index(before), j], CHANGE[SPECIES.index(after), j] = -1, 1


def of_vectors(t, y, k):
    first = k[0] / (1 + y[7] / k[1])
    largest = [first, k[3], *[k[5] * y[1]] * 2, k[7], k[7], *[k[5] * y[4]] * 2, k[9], k[9]]
    substrates = y[SUBSTRATES]
    rates = jnp.stack(largest) * substrates / (k[HALVES] + substrates)
    return jnp.asarray(CHANGE, y.dtype) @ rates


def of_reactions() -> sx.ReactionField:
    k, one = MAPK.args, sx.Frozen(1.0)
    law = sx.MichaelisMenten
    slowed = sx.Hill(one, k[1], one, of="Kpp", represses=True)
    turned = [law(k[5], k[6], enzyme=enzyme) for enzyme in ("KKKp", "KKpp")]
    laws = [law(k[0], k[2]) * slowed, law(k[3], k[4]), turned[0], turned[0], law(k[7], k[8])]
    laws += [law(k[7], k[8]), turned[1], turned[1], law(k[9], k[8]), law(k[9], k[8])]
    return sx.ReactionField([text for text, *_ in REACTIONS], laws, species=SPECIES)


def simulate(field, args):
    controller = sx.StiffPID.preset(rtol=1e-6, atol=1e-6 * MAPK.floor)
    model = sx.Simulate(field, controller=controller)
    simulation = model(jnp.asarray(MAPK.y0), MAPK.ts, args=args, throw=False)
    return simulation.ys[-1, 0], simulation.stats["num_steps"]


def main():
    harness.on_one_core()
    args = jnp.asarray(MAPK.args)
    moving, static = sx.partition(of_reactions())
    ways = {
        "each rate a scalar": (lambda k: simulate(MAPK.field, k), args),
        "rates as vectors": (lambda k: simulate(of_vectors, k), args),
        "`ReactionField`": (lambda p: simulate(eqx.combine(p, static), None), moving),
    }
    rows = {name: [name] for name in ways}
    for differentiate in (False, True):
        made, least, found = {}, dict.fromkeys(ways, np.inf), {}
        for name, (fn, given) in ways.items():
            fn = jax.value_and_grad(fn, has_aux=True) if differentiate else fn
            start = time.process_time()
            compiled = jax.jit(fn).lower(given).compile()
            made[name] = compiled, given, time.process_time() - start
        for _ in range(ROUNDS):
            for name, (compiled, given, _) in made.items():
                start = time.process_time()
                out = jax.block_until_ready(compiled(given))
                least[name] = min(least[name], time.process_time() - start)
                found[name] = out[0] if differentiate else out
        values, steps = zip(*((float(y), int(n)) for y, n in found.values()), strict=True)
        assert max(steps) - min(steps) <= 2 and np.ptp(values) < 1e-3 * max(values)
        for (name, (compiled, _, seconds)), count in zip(made.items(), steps, strict=True):
            rows[name] += [kernels(compiled.as_text()), number(seconds)]
            rows[name].append(number(1e6 * least[name] / count))
    each = ("kernels", "s to compile", "us a step")
    header = ["", *(f"{kind}: {what}" for kind in ("solve", "gradient") for what in each)]
    print(table(header, list(rows.values())))


if __name__ == "__main__":
    main()
