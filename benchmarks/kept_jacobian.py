"""Whether it pays to keep a Jacobian over several steps, where evaluating it is what costs.

    python benchmarks/kept_jacobian.py [--problem "costly neural"]

Rodas5P takes a Jacobian for each step. A W-method has its order with any matrix in place of the
Jacobian, and so may keep one; this is ROS34PW2 (Rang and Angermann 2005, BIT Numer. Math. 45, 761:
four stages, order 3(2), stiffly accurate), with the control law of the preset `balanced`. A kept
Jacobian is replaced after `keep` steps and after a rejection. Milliseconds at equal error, medians
of interleaved runs on one core, for autonomous problems.
"""

import argparse

import harness
import numpy as np

GAMMA = 0.43586652150845900
# Rang and Angermann's alpha and gamma: stages evaluate at y + sum_j alpha_ij k_j.
ALPHA = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [0.87173304301691801, 0.0, 0.0, 0.0],
        [0.84457060015369423, -0.11299064236484185, 0.0, 0.0],
        [0.0, 0.0, 1.0, 0.0],
    ]
)
GAMMAS = np.array(
    [
        [0.0, 0.0, 0.0, 0.0],
        [-0.87173304301691801, 0.0, 0.0, 0.0],
        [-0.90338057013044082, 0.054180672388095326, 0.0, 0.0],
        [0.24212380706095346, -1.2232505839045147, 0.54526025533510214, 0.0],
    ]
)
WEIGHTS = np.array([0.24212380706095346, -1.2232505839045147, 1.5452602553351020, GAMMA])
EMBEDDED = np.array(
    [0.37810903145819369, -0.096042292212423178, 0.5000000000000000, 0.21793326075422950]
)


def check_order() -> None:
    """Those of the conditions for order 3 that have to hold with any matrix for the Jacobian."""
    b, a, g = WEIGHTS, ALPHA, GAMMAS + GAMMA * np.eye(4)
    c, d = a.sum(axis=1), g.sum(axis=1)
    conditions = [b.sum() - 1, b @ c - 1 / 2, b @ d, b @ c**2 - 1 / 3]
    conditions += [b @ a @ c - 1 / 6, b @ a @ d, b @ g @ c, b @ g @ d]
    assert np.max(np.abs(conditions)) < 1e-12, conditions


def main():
    harness.on_one_core()
    import jax
    import jax.numpy as jnp
    import jax.scipy.linalg as jsl
    import references
    from peers import PEERS
    from peers._base import Run, clock
    from problems import PROBLEMS

    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problem", default="costly neural")
    problem = PROBLEMS[parser.parse_args().problem]
    check_order()
    y0, eye = jnp.asarray(problem.y0), jnp.eye(problem.size)

    def solve(rtol, keep, args):
        field = lambda y: problem.field(0.0, y, args)
        jacobian = jax.jacfwd(field)
        atol = rtol * problem.floor

        def attempt(y, h, matrix):
            lu = jsl.lu_factor(eye - GAMMA * h * matrix)
            ks = []
            for alpha, gammas in zip(ALPHA, GAMMAS, strict=True):
                point = y + sum((a * k for a, k in zip(alpha, ks, strict=False)), jnp.zeros(()))
                lag = sum((g * k for g, k in zip(gammas, ks, strict=False)), jnp.zeros_like(y))
                right = h * field(point) + h * (matrix @ lag)
                ks.append(jsl.lu_solve(lu, right))
            k = jnp.stack(ks)
            new = y + WEIGHTS @ k
            scale = atol + rtol * jnp.maximum(jnp.abs(y), jnp.abs(new))
            size = jnp.sqrt(jnp.mean(((WEIGHTS - EMBEDDED) @ k / scale) ** 2))
            return new, jnp.where(jnp.isfinite(size), size, jnp.inf)

        def body(carry):
            t, y, h, matrix, age, end, counts = carry
            stale = age >= keep
            matrix = jax.lax.cond(stale, lambda: jacobian(y), lambda: matrix)
            age = jnp.where(stale, 0, age)
            step = jnp.minimum(h, end - t)
            new, size = attempt(y, step, matrix)
            ok = size <= 1
            h = step * jnp.clip(0.9 * size ** (-1 / 3), 0.2, 10.0)
            age = jnp.where(ok, age + 1, jnp.where(age == 0, 0, keep))
            counts = counts + jnp.stack([1, stale])
            return (
                jnp.where(ok, t + step, t),
                jnp.where(ok, new, y),
                h,
                matrix,
                age,
                end,
                counts,
            )

        def to_next(carry, end):
            carry = (*carry[:5], end, carry[6])
            carry = jax.lax.while_loop(lambda c: (c[0] < c[5]) & (c[6][0] < 20_000), body, carry)
            return carry, carry[1]

        first = 1e-3 / jnp.sqrt(jnp.mean((field(y0) / (atol + rtol * jnp.abs(y0))) ** 2))
        zero = jnp.zeros(2, int)
        start = (jnp.zeros(()), y0, first, jnp.zeros_like(eye), keep, jnp.zeros(()), zero)
        carry, ys = jax.lax.scan(to_next, start, jnp.asarray(problem.ts))
        return ys, carry[6]

    inputs = jax.tree.map(jnp.asarray, problem.args)
    compiled = jax.jit(solve).lower(1e-3, 1, inputs).compile()

    def solver_of(keep):
        def solver(rtol, repeats=1):
            seconds = []
            for _ in range(repeats):
                began = clock()
                ys, counts = jax.block_until_ready(compiled(rtol, keep, inputs))
                seconds.append(clock() - began)
            steps, jacobians = map(int, counts)
            return Run(steps < 20_000, seconds, np.asarray(ys), steps, {"jacobians": jacobians})

        return solver

    solvers = {f"ROS34PW2, kept for {k}": solver_of(k) for k in (1, 5, 20)}
    solvers["Rodas5P"] = PEERS["Rodas5P"].prepare(problem)
    reference = references.load(problem)["ys"]
    error = lambda run: problem.error(run.ys, reference)
    points, calls = {}, []
    for name, solver in solvers.items():
        points[name] = harness.sweep(
            solver, error, start=1e-2, factor=10**0.5, stop=5e-6, limit=10.0
        )
        calls += [lambda s=solver, p=p: harness.warm(s, p["rtol"]) for p in points[name]]
    times = iter(harness.interleaved(calls, budget=0.3))
    targets = (1e-2, 1e-3, 1e-4, 1e-5)
    print(f"{problem.name}: ms (steps, Jacobians) at an error\n")
    print(f"| | {' | '.join(f'{t:g}' for t in targets)} |\n|{'---|' * (len(targets) + 1)}")
    for name, known in points.items():
        errors = [p["error"] or np.nan for p in known]
        rows = {
            "ms": [1e3 * next(times) for _ in known],
            "steps": [p["steps"] for p in known],
            "jacobians": [p.get("jacobians", p["steps"]) for p in known],
        }
        cells = []
        for target in targets:
            at = {k: harness.at_error(errors, v, target) for k, v in rows.items()}
            reached = at["ms"] is not None
            cells.append("{ms:.0f} ({steps:.0f}, {jacobians:.0f})".format(**at) if reached else "-")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
