"""What a first call costs, beside plain diffrax: kernels, and processor time to trace and compile;
and what a warm one takes then.

    python benchmarks/compile.py
    XLA_FLAGS=--xla_cpu_use_fusion_emitters=false python benchmarks/compile.py Robertson HIRES

Each program is made in a process of its own, three times, since JAX keeps what it has traced; the
least time counts. Plain diffrax is `diffeqsolve` with Kvaerno5, `PIDController` at the same
tolerances, and its default adjoint; what it has not, a steady state to start from and doses, is not
in its program. A kernel is an instruction of the compiled program that runs
by itself: a fusion, a product of matrices, a call of a library, a copy, a loop.
"""

import json
import re
import subprocess
import sys
import time

import diffrax
import equinox as eqx
import harness
import jax
import jax.numpy as jnp
import optimistix as optx
from report import number, table

import stablax as sx

jax.config.update("jax_enable_x64", True)
KERNEL = re.compile(
    r"[\]})] (fusion|custom-call|dot|copy|while|conditional|call|sort|scatter|reduce)\("
)
ROUNDS = 3
WHAT = ("kernels", "trace", "compile", "run")


def network() -> tuple:
    field = sx.MLPField(4, 32, 2, key=jax.random.key(0), initial_scale=1.0)
    moving, static = eqx.partition(field, eqx.is_inexact_array)
    call = lambda t, y, args: eqx.combine(args, static)(t, y, None)
    return call, jnp.array([1.0, -1.0, 0.5, 0.0]), jnp.linspace(0.1, 2.0, 10), moving


def published(name: str) -> tuple:
    problem = getattr(sx.problems, name)
    return problem.field, *map(jnp.asarray, (problem.y0, problem.ts, problem.args))


def doses() -> tuple:
    decay = lambda t, y, k: -k * y
    return decay, jnp.array([1.0, 0.0]), jnp.linspace(1.0, 8.0, 8), jnp.array([0.5, 2.0])


HALF = diffrax.Event(lambda t, y, args, **_: y[0] - 0.5, optx.Newton(rtol=1e-6, atol=1e-9))
PROBLEMS = {
    "Robertson": lambda: published("ROBERTSON"),
    "Robertson, to an event": lambda: published("ROBERTSON"),
    "HIRES": lambda: published("HIRES"),
    "neural, 4 states, width 32": network,
    "insulin, from a steady state": lambda: published("INSULIN"),
    "8 doses": doses,
    "8 phases, of which 4 have a dose": doses,
}


def diffrax_rows(name, field, y0, ts, args):
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-9)
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Kvaerno5(),
        0.0,
        ts[-1],
        None,
        y0,
        args,
        saveat=diffrax.SaveAt(ts=ts),
        stepsize_controller=controller,
        event=HALF if name.endswith("event") else None,
        throw=False,
    ).ys


def stablax_rows(name, field, y0, ts, args):
    options = dict(controller=sx.StiffPID.preset(rtol=1e-6, atol=1e-9))
    if name == "insulin, from a steady state":
        model = sx.SteadyThenSimulate(field, **options)
        return model(y0, ts, args=args, steady_args=0.9 * args, throw=False).ys
    if name == "8 doses":
        phases = jax.vmap(lambda t1: sx.Phase(t1, args=args, dose=jnp.ones(2)))(ts)
        return sx.SimulatePhases(field, **options)(y0, ts, phases, throw=False).ys
    if name.startswith("8 phases"):
        given = [jnp.ones(2), None] * 4
        phases = [sx.Phase(t1, args, dose) for t1, dose in zip(ts, given, strict=True)]
        return sx.SimulatePhases(field, **options)(y0, ts, phases, throw=False).ys
    if name.endswith("event"):
        options["event"] = diffrax.Event(HALF.cond_fn)
    return sx.Simulate(field, **options)(y0, ts, args=args, throw=False).ys


def measure(who: str, kind: str, name: str) -> dict:
    field, y0, ts, args = PROBLEMS[name]()
    rows = diffrax_rows if who == "diffrax" else stablax_rows
    # diffrax leaves inf in the rows behind an event.
    finite = lambda ys: jnp.where(jnp.isfinite(ys), ys, 0)
    fn = lambda args: jnp.sum(finite(rows(name, field, y0, ts, args)) ** 2)
    program = jax.jit(fn if kind == "value" else jax.grad(fn))
    times = [time.process_time()]
    lowered = program.trace(args).lower()
    times.append(time.process_time())
    compiled = lowered.compile()
    times.append(time.process_time())
    return dict(
        kernels=kernels(compiled.as_text()),
        trace=times[1] - times[0],
        compile=times[2] - times[1],
        run=min(run_once(compiled, args) for _ in range(20)),
    )


def run_once(compiled, args) -> float:
    start = time.process_time()
    jax.block_until_ready(compiled(args))
    return 1e3 * (time.process_time() - start)


def kernels(text: str) -> int:
    """How many instructions outside of fusions are kernels."""
    fused = set(re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text))
    count, inside = 0, False
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            inside = head.group(1) not in fused
        elif inside and KERNEL.search(line):
            count += 1
    return count


def main(names):
    if unknown := set(names) - set(PROBLEMS):
        sys.exit(f"No such problem: {unknown}. There are {list(PROBLEMS)}.")
    harness.on_one_core()
    rows = []
    for name in names or PROBLEMS:
        for kind in ("value", "gradient"):
            found = {"diffrax": [], "stablax": []}
            for _ in range(ROUNDS):
                for who, results in found.items():
                    command = [sys.executable, __file__, who, kind, name]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    results.append(json.loads(done.stdout))
            best = {
                who: {key: min(each[key] for each in results) for key in results[0]}
                for who, results in found.items()
            }
            theirs, ours = best["diffrax"], best["stablax"]
            total = lambda each: each["trace"] + each["compile"]
            row = [name, kind]
            for each in (theirs, ours):
                row += [each["kernels"], *(number(each[key]) for key in WHAT[1:])]
            ratios = [ours["kernels"] / theirs["kernels"], total(ours) / total(theirs)]
            rows.append([*row, *(number(ratio, 2) for ratio in ratios)])
    print(f"jax {jax.__version__}, one core, seconds of processor time (of a run: ms)\n")
    both = [f"{who}: {each}" for who in ("diffrax", "stablax") for each in WHAT]
    print(table(["problem", "", *both, "kernels, ratio", "seconds, ratio"], rows))


if __name__ == "__main__":
    if sys.argv[1:2] in (["diffrax"], ["stablax"]):
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main(sys.argv[1:])
