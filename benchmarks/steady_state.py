"""How often a steady state is found, how often a wrong one, and how fast.

    python benchmarks/steady_state.py            # everything: about half an hour on one core
    python benchmarks/steady_state.py --quick    # ten samples of each case
    python benchmarks/steady_state.py --cases "#368,switch"

Writes `results/steady_state.json` and `docs/images/benchmarks/steady_state.png`, and prints the
tables of `docs/steady_states.md`. Every method solves the same root problem: where a case conserves
something, the others are given f(y) - P (y - y0), with P the projector onto the rows, since they
have no way to declare rows. Times are medians over samples of warm solves one after the other, all
methods in turn.
"""

from harness import on_one_core

on_one_core()

import argparse  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import diffrax  # noqa: E402
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
from harness import geometric_mean, interleaved, machine  # noqa: E402
from report import table  # noqa: E402
from scipy.optimize import root  # noqa: E402
from steady_cases import CASES, Case  # noqa: E402

import stablax as sx  # noqa: E402

jax.config.update("jax_enable_x64", True)
HERE = Path(__file__).parent
RTOL, ATOL = 1e-9, 1e-12
EVENT = "diffrax to event"
DEFAULT = "stablax"


def projector(case: Case) -> np.ndarray:
    n = case.y0.shape[1]
    if case.conserved is None:
        return np.zeros((n, n))
    return np.linalg.pinv(case.conserved) @ case.conserved


def with_stablax(method) -> Callable:
    def make(case: Case) -> Callable:
        def find(y0, args):
            steady = sx.find_steady_state(
                case.guarded, y0, args, method=method, conserved=case.conserved, throw=False
            )
            return steady.y, sx.is_successful(steady), steady.num_steps

        return find

    return make


def with_optimistix(solver) -> Callable:
    def make(case: Case) -> Callable:
        P = projector(case)

        def find(y0, args):
            fn = lambda y, given: case.field(0.0, y, given[1]) - P @ (y - given[0])
            solution = optx.root_find(fn, solver, y0, (y0, args), max_steps=256, throw=False)
            ok = solution.result == optx.RESULTS.successful
            return solution.value, ok, solution.stats["num_steps"]

        return find

    return make


def with_event(rtol: float = 1e-6) -> Callable:
    def make(case: Case) -> Callable:
        P = projector(case)

        def find(y0, args):
            fn = lambda t, y, given: case.field(t, y, given[1]) - P @ (y - given[0])
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(fn),
                diffrax.Kvaerno5(),
                0.0,
                jnp.inf,
                None,
                y0,
                (y0, args),
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol),
                event=diffrax.Event(diffrax.steady_state_event()),
                adjoint=diffrax.ImplicitAdjoint(),
                max_steps=4096,
                throw=False,
            )
            ok = solution.result == diffrax.RESULTS.event_occurred
            return solution.ys[0], ok, solution.stats["num_steps"]

        return find

    return make


METHODS: dict[str, Callable] = {
    DEFAULT: with_stablax(sx.Chain()),
    "PseudoTransient": with_stablax(sx.PseudoTransient()),
    "Integrate": with_stablax(sx.Integrate()),
    "Newton": with_stablax(sx.Newton()),
    "optimistix Newton": with_optimistix(optx.Newton(RTOL, ATOL)),
    "optimistix Chord": with_optimistix(optx.Chord(RTOL, ATOL)),
    "optimistix Dogleg": with_optimistix(optx.Dogleg(RTOL, ATOL)),
    "optimistix LM": with_optimistix(optx.LevenbergMarquardt(RTOL, ATOL)),
    EVENT: with_event(),
}


def compiled(find: Callable, inputs) -> tuple[Callable, Callable]:
    """The search, and the search with the gradient of sum(sin(y)) in `y0` and `args`."""

    def loss(inputs):
        y, *rest = find(*inputs)
        return jnp.sum(jnp.sin(y)), (y, *rest)

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.jit(find).lower(*inputs).compile(), gradient.lower(inputs).compile()


def timer(fn: Callable, *inputs) -> Callable[[], float]:
    def call() -> float:
        start = time.perf_counter()
        jax.block_until_ready(fn(*inputs))
        return time.perf_counter() - start

    return call


def sample(case: Case, i: int):
    y0, args = jax.tree.map(lambda x: jnp.asarray(x[i]), (case.y0, case.args))
    return y0, args


def counts(case: Case, ys, ok) -> dict:
    right, ok = case.right(ys), np.asarray(ok)
    return dict(
        right=int((ok & right).sum()), wrong=int((ok & ~right).sum()), flagged=int((~ok).sum())
    )


def measure(case: Case, timed: int) -> dict:
    result, forward, gradient = {}, {}, {}
    for name, make in METHODS.items():
        find, with_gradient = compiled(make(case), sample(case, 0))
        found = [find(*sample(case, i)) for i in range(case.samples)]
        ys, ok, steps = (np.array([np.asarray(f[k]) for f in found]) for k in range(3))
        result[name] = dict(counts(case, ys, ok), steps=float(np.mean(steps)))
        forward[name] = [timer(find, *sample(case, i)) for i in range(timed)]
        try:
            (_, _), grad = with_gradient(sample(case, 0))
            result[name]["finite gradient"] = all(
                bool(np.isfinite(g).all()) for g in jax.tree.leaves(grad)
            )
            gradient[name] = [timer(with_gradient, sample(case, i)) for i in range(timed)]
            for call in gradient[name]:
                call()
        except Exception as error:  # what a library raises is its result
            gradient.pop(name, None)
            result[name]["gradient raises"] = type(error).__name__
        print(f"  {case.name}: {name}: {result[name]}", flush=True)
        jax.clear_caches()
        eqx.clear_caches()
    for kind, calls in (("forward", forward), ("gradient", gradient)):
        for i in range(timed):
            each = interleaved([calls[name][i] for name in calls], budget=0.02)
            for name, seconds in zip(calls, each, strict=True):
                result[name].setdefault(kind, []).append(seconds)
    for each in result.values():
        for kind in ("forward", "gradient"):
            if kind in each:
                each[kind] = float(np.median(each[kind]))
    result["scipy hybr"] = with_scipy(case)
    return result


def with_scipy(case: Case) -> dict:
    P = projector(case)
    value = jax.jit(lambda y, y0, args: case.field(0.0, y, args) - P @ (y - y0))
    slope = jax.jit(jax.jacfwd(value))
    ys, ok, seconds = [], [], []
    for i in range(case.samples):
        y0, args = sample(case, i)
        fun = lambda y, y0=y0, args=args: np.asarray(value(y, y0, args))
        jac = lambda y, y0=y0, args=args: np.asarray(slope(y, y0, args))
        start = time.perf_counter()
        solution = root(fun, np.asarray(y0), jac=jac, method="hybr", tol=RTOL)
        seconds.append(time.perf_counter() - start)
        ys.append(solution.x)
        ok.append(solution.success)
    return dict(counts(case, np.array(ys), ok), forward=float(np.median(seconds)))


def on_insulin(case: Case, lanes: int = 64) -> dict:
    """Ours against integration to an event, single and in a batch, at equal accuracy: the event's
    tolerance is the loosest at which all samples are right to 1e-6."""
    batch = jax.tree.map(lambda x: jnp.asarray(x[:lanes]), (case.y0, case.args))
    rivals = {DEFAULT: METHODS[DEFAULT], "PseudoTransient": METHODS["PseudoTransient"]}
    tolerances = {}
    for rtol in (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10):
        ys, ok, _ = jax.jit(jax.vmap(with_event(rtol)(case)))(*batch)
        tolerances[rtol] = right = int(
            (case.right_of(np.asarray(ys), lanes) & np.asarray(ok)).sum()
        )
        print(f"  event at rtol {rtol:g}: {right} of {lanes} right", flush=True)
        if right == lanes:
            break
    rivals[EVENT] = with_event(rtol)
    record: dict[str, Any] = {"event rtol": rtol, "right": tolerances}
    one = sample(case, 0)
    for title, inputs, wrap in (
        ("single", one, lambda f: f),
        (f"batch of {lanes}", batch, jax.vmap),
    ):
        calls: dict[str, Callable] = {}
        for name, make in rivals.items():
            find = make(case)

            def gradient(inputs, find=find):
                loss = lambda inputs: jnp.sum(jnp.sin(find(*inputs)[0]))
                return jax.grad(loss)(inputs)

            forward = jax.jit(wrap(find))
            backward = jax.jit(wrap(gradient))
            calls[f"{name}, forward"] = timer(forward, *inputs)
            calls[f"{name}, gradient"] = timer(backward, inputs)
        for call in calls.values():
            call()
        seconds = interleaved(list(calls.values()), budget=2.0)
        record[title] = dict(zip(calls, seconds, strict=True))
        print(f"  {title}: {record[title]}", flush=True)
    return record


def draw(record: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    cases = record["cases"]
    figure = Figure(figsize=(3.2 + 1.9 * len(cases), 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(cases), sharey=True))
    colours = {"right": "tab:green", "flagged": "0.8", "wrong": "tab:red"}
    for panel, (name, result) in zip(panels, cases.items(), strict=True):
        methods = list(result)[::-1]
        total = sum(result[methods[0]][k] for k in colours)
        left = np.zeros(len(methods))
        for kind, colour in colours.items():
            width = np.array([result[m][kind] for m in methods]) / total
            panel.barh(methods, width, left=left, color=colour, label=kind)
            left += width
        for i, m in enumerate(methods):
            panel.text(0.5, i, f"{1e3 * result[m]['forward']:.3g} ms", ha="center", va="center")
        panel.set(title=name, xlim=(0, 1), xticks=[])
    panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def report(record: dict) -> str:
    cases = record["cases"]
    rows = []
    for m in next(iter(cases.values())):
        row: list[Any] = [f"`{m}`" if m[0].isupper() else m]
        for result in cases.values():
            each = result[m]
            gradient = each.get("gradient")
            cost = f"{1e3 * each['forward']:.2g}"
            cost += f" / {1e3 * gradient:.2g}" if gradient else " / -"
            row.append(f"{each['right']} / {each['wrong']}; {cost}")
        rows.append(row)
    samples = lambda each: sum(each[k] for k in ("right", "wrong", "flagged"))
    heads = [f"{name} ({samples(r[DEFAULT])})" for name, r in cases.items()]
    text = table(["method", *heads], rows)
    if "insulin" in record:
        for title in [k for k in record["insulin"] if k.startswith(("single", "batch"))]:
            times = record["insulin"][title]
            lines = []
            for name in (DEFAULT, "PseudoTransient", EVENT):
                line: list[Any] = [name]
                for kind in ("forward", "gradient"):
                    seconds = times[f"{name}, {kind}"]
                    ratio = times[f"{EVENT}, {kind}"] / seconds
                    line.append(f"{1e3 * seconds:.3g} ms ({ratio:.3g}x)")
                lines.append(line)
            text += f"\n\nInsulin, {title}:\n\n" + table(["method", "forward", "gradient"], lines)
    ratios = [r[EVENT]["forward"] / r[DEFAULT]["forward"] for r in cases.values() if EVENT in r]
    return text + f"\n\nTo the event / {DEFAULT}, forward: {geometric_mean(ratios):.3g}x\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    record: dict[str, Any] = {"machine": machine(), "cases": {}}
    for name in options.cases.split(","):
        case = CASES[name]().first(10) if options.quick else CASES[name]()
        if name == "insulin":
            record["insulin"] = on_insulin(case, 8 if options.quick else 64)
        # Written after each case, so that an interrupted run is not lost.
        record["cases"][name] = measure(case, 3 if options.quick else 12)
        if not options.quick:
            (HERE / "results" / "steady_state.json").write_text(json.dumps(record, indent=1))
    print(report(record))
    if not options.quick:
        draw(record, HERE.parent / "docs" / "images" / "benchmarks" / "steady_state.png")


if __name__ == "__main__":
    main()
