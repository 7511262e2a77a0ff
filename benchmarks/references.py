"""Reference solutions and gradients, each by two independent codes: writes the solutions of
`stablax.problems` to its `references.json`, and all else to the `references.json` beside this file.

    python benchmarks/references.py [--problems Robertson,POLLU]

Solutions: scipy's Radau at rtol 1e-12; compared with CVODE in C at 1e-13, or LSODA where there is
no C code of the problem, and with diffrax's Kvaerno5 (root finder fixed) at 1e-10.

Gradients: of the `loss` below, along fixed random directions in the logarithms of the parameters,
by extrapolated differences of CVODE; compared with forward mode through Kvaerno5 at 1e-10. Where
there is no C code, forward mode, compared in one direction with differences of Radau.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import diffrax
import harness
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from peers import PEERS, scipy_codes
from peers.cvode import flat_parameters
from problems import PROBLEMS

import stablax as sx
from stablax import problems

PATH = Path(__file__).parent / "references.json"
SHIPPED = Path(problems.__file__).parent / "references.json"
DIRECTIONS = 8


def load(problem) -> dict[str, np.ndarray]:
    """The reference of a problem: `ys` of shape `(times, n)`, `scale` of shape `(n,)`, and
    `slopes`: the derivatives of the loss along `directions`."""
    entry = json.loads(PATH.read_text())["problems"][problem.name]
    if not np.array_equal(entry["ts"], problem.ts):
        raise ValueError(f"references.json holds {problem.name} at other times: run references.py")
    if problem.reference is not None:
        entry["ys"] = problem.reference
    return {name: np.array(entry[name]) for name in ("ys", "scale", "slopes")}


def loss(ys, scale):
    """The mean square of the solution, in units of each component's largest value."""
    return jnp.mean((ys / jnp.asarray(scale, ys.dtype)) ** 2)


def directions(problem):
    """Directions in the space of `args`, with a leading axis: normal in the logarithms."""
    leaves, structure = jax.tree.flatten(problem.args)
    keys = jr.split(jr.key(0), len(leaves))
    return structure.unflatten(
        [
            leaf * np.asarray(jr.normal(key, (DIRECTIONS, *np.shape(leaf)), np.float64))
            for key, leaf in zip(keys, leaves, strict=True)
        ]
    )


def project(gradient, along):
    """The derivatives along `directions` that a gradient implies, shape `(DIRECTIONS,)`."""
    products = jax.tree.map(lambda g, v: jnp.sum(v * g, axis=range(1, v.ndim)), gradient, along)
    return sum(jax.tree.leaves(products))


def slopes_by_forward_mode(problem, peer, rtol, scale):
    # Without the guard, Kvaerno5's derivative raises on Robertson.
    guarded = dataclasses.replace(problem, field=sx.Guarded(problem.field))
    solve = peer.solve(guarded, exact=True, adjoint=diffrax.ForwardMode())

    @jax.jit
    def slopes(y0, args, along):
        value = lambda args: loss(solve(jnp.asarray(rtol), y0, args).ys, scale)
        return jax.vmap(lambda v: jax.jvp(value, (args,), (v,))[1])(along)

    return np.asarray(slopes(problem.y0, problem.args, directions(problem)))


def slopes_by_differences(problem, solve, scale, count):
    """Along the first `count` directions, by central differences extrapolated to step 0 (Ridders
    1982): the entry of the table that differs least from its neighbours. `solve` maps parameters
    to a solution."""
    along = directions(problem)

    def value(i, distance):
        args = jax.tree.map(lambda p, v: p + distance * v[i], problem.args, along)
        return float(loss(solve(args), scale))

    def slope(i):
        rows, best = [], (np.inf, np.nan)
        for level in range(8):
            h = 1e-2 * 2.0**-level
            row = [(value(i, h) - value(i, -h)) / (2 * h)]
            for k, above in enumerate(rows[-1] if rows else []):
                factor = 4.0 ** (k + 1)
                row.append((factor * row[-1] - above) / (factor - 1))
                gap = max(abs(row[-1] - row[-2]), abs(row[-1] - above))
                best = min(best, (gap, row[-1]))
            rows.append(row)
        return best[1]

    return np.array([slope(i) for i in range(count)])


def clipped_solution() -> dict:
    """Of the problem that Kvaerno5 cannot solve as it stands: by Radau, compared with BDF."""
    problem = problems.CLIPPED
    ys = PEERS["scipy Radau"].prepare(problem)(1e-12).ys
    gap = problem.error(PEERS["scipy BDF"].prepare(problem)(1e-10).ys, ys)
    print(f"| {problem.name} | | {gap:.1e} | |", flush=True)
    return {"ts": problem.ts.tolist(), "ys": ys.tolist()}


def reference_of(problem) -> dict:
    radau, fixed = PEERS["scipy Radau"], PEERS["Kvaerno5 fixed"]
    cvode = PEERS["CVODE in C" if problem.bands is None else "CVODE in C banded"]
    ys = radau.prepare(problem)(1e-12).ys
    scale = np.max(np.abs(ys), axis=0)
    kvaerno = jax.jit(fixed.solve(problem, exact=True))(1e-10, problem.y0, problem.args).ys
    agreement = {"Kvaerno5": problem.error(kvaerno, ys)}
    compiled = None if cvode.missing() else cvode.prepare(problem)
    if compiled is None:
        agreement["LSODA"] = problem.error(PEERS["scipy LSODA"].prepare(problem)(1e-13).ys, ys)
        solve = lambda args: radau.prepare(dataclasses.replace(problem, args=args))(1e-10).ys
    else:
        agreement["CVODE"] = problem.error(compiled(1e-13).ys, ys)
        solve = lambda args: compiled.solve(1e-13, compiled.y0, flat_parameters(problem, args)).ys
    slopes = slopes_by_forward_mode(problem, fixed, 1e-10, scale)
    count = 1 if compiled is None else DIRECTIONS
    differences = slopes_by_differences(problem, solve, scale, count)
    gap = np.max(np.abs(slopes[:count] - differences)) / np.max(np.abs(slopes))
    if count == DIRECTIONS:
        slopes = differences
    return {
        "ts": problem.ts.tolist(),
        "ys": ys.tolist(),
        "scale": scale.tolist(),
        "slopes": slopes.tolist(),
        "agreement": agreement,
        "agreement_of_slopes": float(gap),
    }


def main():
    harness.on_one_core()
    jax.config.update("jax_enable_x64", True)
    scipy_codes.LIMIT = 3600.0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", help="names, separated by commas (default: all)")
    chosen = parser.parse_args().problems
    stored = json.loads(PATH.read_text()) if PATH.exists() else {"problems": {}}
    shipped = json.loads(SHIPPED.read_text())
    known = {**PROBLEMS, **problems.PROBLEMS}
    print("| problem | Kvaerno5 | CVODE or LSODA | slopes |\n|---|---|---|---|")
    clipped = problems.CLIPPED.name
    names = chosen.split(",") if chosen else [*known, clipped]
    if clipped in names:
        shipped[clipped] = clipped_solution()
        SHIPPED.write_text(json.dumps(shipped))
        names.remove(clipped)
    for name in names:
        entry = reference_of(known[name])
        shown = [*entry["agreement"].values(), entry["agreement_of_slopes"]]
        print(f"| {name} | {' | '.join(f'{x:.1e}' for x in shown)} |", flush=True)
        if name in problems.PROBLEMS:
            ys = entry.pop("ys")
            if name != "heat":  # its solution is in closed form
                shipped[name] = {"ts": entry["ts"], "ys": ys}
        stored["problems"][name] = entry
        stored["machine"] = harness.machine()
        for path, content in ((PATH, stored), (SHIPPED, shipped)):
            whole = path.with_suffix(".tmp")  # so that a reader never sees half of it
            whole.write_text(json.dumps(content))
            whole.replace(path)


if __name__ == "__main__":
    main()
