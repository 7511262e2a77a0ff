"""What options of XLA's CPU compiler do to a gradient: processor time to compile, and to run.

    python benchmarks/compiler_options.py
    python benchmarks/compiler_options.py "512 Robertsons in one vmap"

Each program is made in a process of its own, with the sets of options in turn, two rounds; the
least times count.
"""

import json
import subprocess
import sys
import time

import equinox as eqx
import harness
import jax
import jax.numpy as jnp
from report import number, table

import stablax as sx

jax.config.update("jax_enable_x64", True)
ROUNDS, RUNS = 2, 20
QUICK: dict = {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):  # a later jaxlib does not know it
    QUICK["xla_cpu_use_fusion_emitters"] = False
NO_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
OPTIONS = {"none": {}, "quick": QUICK, "no ynn": NO_YNN, "both": QUICK | NO_YNN}


def published(name: str, lanes: int | None = None):
    problem = getattr(sx.problems, name)
    model = sx.Simulate(problem.field)
    rows = lambda args: model(problem.y0, problem.ts, args=args, throw=False).ys
    args = jnp.asarray(problem.args)
    if lanes is None:
        return rows, args
    return jax.vmap(rows), args * jnp.linspace(0.9, 1.1, lanes)[:, None]


def network(lanes: int, width: int):
    field = sx.MLPField(4, width, 2, key=jax.random.key(0), initial_scale=1.0)
    trained, rest = sx.partition(field)
    starts = jax.random.normal(jax.random.key(1), (lanes, 4))
    ts = jnp.linspace(0.1, 2.0, 10)

    def rows(trained):
        model = sx.Simulate(eqx.combine(trained, rest))
        return jax.vmap(lambda y0: model(y0, ts, throw=False).ys)(starts)

    return rows, trained


PROBLEMS = {
    "Robertson": lambda: published("ROBERTSON"),
    "POLLU": lambda: published("POLLU"),
    "512 Robertsons in one vmap": lambda: published("ROBERTSON", 512),
    "128 HIRES in one vmap": lambda: published("HIRES", 128),
    "network of width 128, 64 lanes": lambda: network(64, 128),
}


def measure(name: str, chosen: str) -> dict:
    rows, args = PROBLEMS[name]()
    gradient = jax.grad(lambda args: jnp.sum(rows(args) ** 2))
    lowered = jax.jit(gradient, compiler_options=OPTIONS[chosen] or None).lower(args)
    began = time.process_time()
    compiled = lowered.compile()
    return dict(
        compile=time.process_time() - began, run=min(once(compiled, args) for _ in range(RUNS))
    )


def once(compiled, args) -> float:
    start = time.process_time()
    jax.block_until_ready(compiled(args))
    return 1e3 * (time.process_time() - start)


def main(names):
    harness.on_one_core()
    rows = []
    for name in names or PROBLEMS:
        found = {chosen: [] for chosen in OPTIONS}
        for _ in range(ROUNDS):
            for chosen, results in found.items():
                command = [sys.executable, __file__, "--measure", name, chosen]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results.append(json.loads(done.stdout))
        least = {
            chosen: {key: min(each[key] for each in results) for key in results[0]}
            for chosen, results in found.items()
        }
        rows += [
            [name, key, *(number(each[key]) for each in least.values())]
            for key in ("compile", "run")
        ]
    print(f"jax {jax.__version__}, one core, processor time: seconds to compile, ms to run\n")
    print(table(["a gradient", "", *OPTIONS], rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(*sys.argv[2:])))
    else:
        main(sys.argv[1:])
