"""Batches of perturbed problems, in one `vmap`, against CVODE on one problem after the other.

    python benchmarks/batches.py --lanes 1024,65536 --dtype float32 --problems Robertson,POLLU

Part of `work_precision.py`. Alone, it runs on whatever device JAX finds (all cores of a CPU), and
in either precision. The tolerance of each peer is the one at which the unperturbed problem, which
is the first lane, has the error `--error`. Prints a table, and writes it to `--output` as JSON.
"""

import argparse
import dataclasses
import json
import sys
from functools import partial

import harness
import jax
import jax.numpy as jnp
import numpy as np
import references
import report
from peers import PEERS
from peers.jax_codes import JaxPeer
from problems import PROBLEMS

import stablax as sx

DEFAULT = ("Rodas5P", "Kvaerno5 fixed", "CVODE in C")


def measure(problem, chosen: dict, lanes: int, *, gradient: bool, limit: float, budget: float):
    """One problem, `lanes` times. `chosen` maps peers to `(rtol, steps, seconds)` of one solve, or
    of one gradient; those that would take more than `limit` seconds are left out.

    **Returns:** `{peer: {"seconds": ..., "failed_lanes": ..., ...}}`.
    """
    results, calls = {}, []
    for name, (rtol, steps, seconds) in chosen.items():
        peer = PEERS[name]
        if seconds * lanes > limit:
            results[name] = {"skipped": f"would take about {seconds * lanes:.0f} s"}
            continue
        print(f"  {lanes} lanes, {name}", file=sys.stderr, flush=True)
        try:
            solver = prepare(peer, problem, lanes, steps, gradient)
            if solver is None:
                continue
            run = solver(rtol)
        except Exception as raised:
            results[name] = {"failure": type(raised).__name__}
            continue
        results[name] = {
            "rtol": rtol,
            "ok": run.ok,
            "steps": run.steps,
            "failed_lanes": run.stats.get("failed_lanes", 0),
            "compile_seconds": solver.compile_seconds,
        }
        calls.append((name, partial(harness.warm, solver, rtol)))
    medians = harness.interleaved([call for _, call in calls], budget)
    for (name, _), seconds in zip(calls, medians, strict=True):
        results[name]["seconds"] = seconds
    return results


def after(problem, measured: dict, lanes, effort) -> dict:
    """Batches at the tolerances that gave the error 1e-6 in the single solves `measured`.

    **Returns:** `{lanes: {"forward": {peer: ...}, "gradient": {peer: ...}}}`.
    """
    results: dict = {}
    for count in lanes:
        results[str(count)] = {}
        for kind in ("forward", "gradient"):
            chosen = {}
            for name in DEFAULT:
                result = measured[kind].get(name)
                costs = [report.cost(result, 1e-6, of) for of in ("rtol", "steps", "seconds")]
                if None not in costs:
                    chosen[name] = tuple(costs)
            results[str(count)][kind] = measure(
                problem,
                chosen,
                count,
                gradient=kind == "gradient",
                limit=effort.limit,
                budget=effort.budget,
            )
    return results


def prepare(peer, problem, lanes, steps, gradient):
    if not isinstance(peer, JaxPeer):
        return None if gradient else peer.prepare_batch(problem, lanes)
    loss = None
    if gradient:
        loss = partial(references.loss, scale=references.load(problem)["scale"])
        if not peer.ours:  # it raises, or is not finite, in some lane of most problems
            problem = dataclasses.replace(problem, field=sx.Guarded(problem.field))
    return peer.prepare_batch(problem, lanes, steps, loss)


# --- alone, on any device ----------------------------------------------------------------------


def at_target(problem, peer, dtype, target):
    """The tolerance, steps and seconds with which the unperturbed problem has the error `target`,
    or the smallest error above it that was reached."""
    solver = peer.prepare_batch(problem, 1, 4096, dtype=dtype)
    ys = references.load(problem)["ys"]
    points = harness.sweep(
        solver,
        lambda run: problem.error(run.ys, ys),
        start=0.1,
        factor=10**0.5,
        stop=target,
        limit=20.0,
    )
    return min((p for p in points if p["error"]), key=lambda p: p["error"])


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", default="Robertson,HIRES,POLLU,#368,neural")
    parser.add_argument("--peers", default="Rodas5P,Kvaerno5 fixed")
    parser.add_argument("--lanes", default="1024,65536")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--error", type=float, help="default: 1e-6, in float32 1e-3")
    parser.add_argument("--output", help="also write the table as JSON")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", options.dtype == "float64")
    dtype = jnp.dtype(options.dtype)
    target = options.error or (1e-6 if options.dtype == "float64" else 1e-3)
    device = jax.devices()[0].device_kind
    header = ["problem", "peer", "lanes", "rtol", "error", "steps", "failed", "ms", "us per lane"]
    print(f"{device}, {options.dtype}\n")
    rows = []
    for problem in map(PROBLEMS.get, options.problems.split(",")):
        if options.dtype == "float32" and not problem.float32:
            continue
        for name in options.peers.split(","):
            point = at_target(problem, PEERS[name], dtype, target)
            for lanes in map(int, options.lanes.split(",")):
                solver = PEERS[name].prepare_batch(problem, lanes, point["steps"], dtype=dtype)
                run = solver(point["rtol"])
                seconds = float(np.median(solver(point["rtol"], 5).seconds))
                row = [problem.name, name, lanes, point["rtol"], point["error"], run.steps]
                row += [run.stats["failed_lanes"], 1e3 * seconds, 1e6 * seconds / lanes]
                rows.append(dict(zip(header, row, strict=True)))
                print(row, file=sys.stderr, flush=True)
    texts = [[f"{x:.3g}" if isinstance(x, float) else x for x in row.values()] for row in rows]
    print(report.table(header, texts))
    if options.output:
        record = {"machine": harness.machine(), "device": device, "dtype": options.dtype}
        with open(options.output, "w") as file:
            json.dump({**record, "error": target, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
