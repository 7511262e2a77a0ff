"""What stablax costs: the same solve with and without it, in one run.

    python benchmarks/overheads.py

Ratios of medians of warm runs, interleaved; one process. Compilation is timed once for each side.
"""

import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from beartype import beartype
from jaxtyping import ArrayLike, PyTree, jaxtyped

import stablax as sx

jax.config.update("jax_enable_x64", True)
TS = jnp.linspace(0.1, 2.0, 10)


class Bare(eqx.Module):
    """The same layers as the guarded field, without the guard."""

    field: sx.MLPField

    def __call__(self, t, y, args):
        return self.field.vector_field(t, y, args)


def bare_solve(field, solver, y0):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        0.0,
        TS[-1],
        None,
        y0,
        saveat=diffrax.SaveAt(ts=TS),
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9, pcoeff=0.4, icoeff=0.3),
    ).ys


def timed(fns: dict, repeats: int = 41) -> dict:
    compile_s, times = {}, {name: [] for name in fns}
    for name, fn in fns.items():
        start = time.perf_counter()
        jax.block_until_ready(fn())
        compile_s[name] = time.perf_counter() - start
    for _ in range(repeats):
        for name, fn in fns.items():
            start = time.perf_counter()
            jax.block_until_ready(fn())
            times[name].append(time.perf_counter() - start)
    return {name: (float(np.median(times[name])), compile_s[name]) for name in fns}


def report(title: str, fns: dict) -> None:
    result = timed(fns)
    (base, base_compile), *_ = result.values()
    for name, (seconds, compile_s) in result.items():
        print(
            f"| {title} | {name} | {seconds * 1e3:.3f} ms | {seconds / base:.2f} | "
            f"{compile_s:.1f} s | {compile_s / base_compile:.2f} |",
            flush=True,
        )


def main():
    print("| what | | time | ratio | first call | ratio |\n|---|---|---|---|---|---|")
    field = sx.MLPField(
        4, 64, 2, key=jax.random.key(0), initial_scale=1.0, guard=sx.Guard(-10.0, 10.0)
    )
    y0 = jnp.array([1.0, -1.0, 0.5, 0.0])

    for solver in (diffrax.Tsit5(), sx.kvaerno5()):
        controller = sx.StiffPID(1e-6, 1e-9, pcoeff=0.4, icoeff=0.3)

        def losses(field, solver=solver, controller=controller):
            def model_loss(field):
                model = sx.Simulate(field, solver=solver, controller=controller)
                return jnp.mean(model(y0, TS, throw=False).ys ** 2)

            return {
                "diffrax, bare field": lambda f: jnp.mean(bare_solve(Bare(f), solver, y0) ** 2),
                "diffrax, guarded field": lambda f: jnp.mean(bare_solve(f, solver, y0) ** 2),
                "stablax model": model_loss,
            }

        name = type(solver).__name__
        for what, transform in (("forward", lambda f: f), ("gradient", eqx.filter_grad)):
            compiled = {k: eqx.filter_jit(transform(loss)) for k, loss in losses(field).items()}
            report(
                f"{name}, {what}",
                {k: (lambda fn=fn: fn(field)) for k, fn in compiled.items()},
            )

    model = sx.Simulate(lambda t, y, args: -y)
    state = jnp.ones(2)

    def unchecked():
        return diffrax.diffeqsolve(
            diffrax.ODETerm(decay),
            sx.kvaerno5(),
            0.0,
            2.0,
            None,
            state,
            saveat=diffrax.SaveAt(ts=TS),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        ).ys

    report(
        "one eager call (checks, dispatch and solve)",
        {"diffrax": unchecked, "stablax model": lambda: model(state, TS).ys},
    )
    instruments()
    type_checks()


def instruments() -> None:
    """Telemetry and the log of steps, forward, beside the same model without."""
    problem = sx.problems.ROBERTSON
    start, k = jnp.asarray(problem.y0), jnp.asarray(problem.args)
    network = sx.MLPField(4, 64, 2, key=jax.random.key(0))
    bounds = {"box": sx.Guard(-10.0, 10.0), "box and fill": sx.Guard(-10.0, 10.0, fill=0.0)}
    for name, field, y0, args, ts in (
        ("Robertson", problem.field, start, k, jnp.asarray(problem.ts)),
        ("MLP", network.vector_field, jnp.array([1.0, -1.0, 0.5, 0.0]), None, TS),
    ):
        for guard_name, guard in bounds.items():
            for solver in (sx.Rodas5P(), diffrax.Tsit5()):
                if name == "Robertson" and isinstance(solver, diffrax.Tsit5):
                    continue
                model = sx.Simulate(sx.Guarded(field, guard), solver=solver)
                fns = {
                    "off": model,
                    "off, again": sx.with_options(model, telemetry=False),
                    "telemetry": sx.with_options(model, telemetry=True),
                    "log of steps": sx.with_options(model, trace="record"),
                }
                compiled = {
                    key: eqx.filter_jit(lambda m=m, y0=y0, ts=ts, args=args: m(y0, ts, args=args))
                    for key, m in fns.items()
                }
                report(f"{name}, {type(solver).__name__}, {guard_name}", compiled)


def decay(t, y, args):
    return -y


def type_checks() -> None:
    """The runtime type checks alone: a call that does nothing else."""

    def call(y0: PyTree[ArrayLike], ts: Any, *, t0: float = 0.0, args: Any = None):
        return y0

    checked = jaxtyped(call, typechecker=beartype)
    y0, times = jnp.ones(9), {"plain": [], "checked": []}
    for _ in range(2001):
        for name, fn in (("plain", call), ("checked", checked)):
            start = time.perf_counter()
            fn(y0, TS, args=y0)
            times[name].append(time.perf_counter() - start)
    plain, with_checks = (1e6 * float(np.median(t)) for t in times.values())
    print(f"\ntype checks of one eager call: {with_checks - plain:.0f} us (none under jit)")


if __name__ == "__main__":
    main()
