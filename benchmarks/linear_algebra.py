"""The small linear algebra inside a step: where one way of solving overtakes another.

    python benchmarks/linear_algebra.py [--sizes 2,3,4,8,12,16,20,32,50,80] [--lanes 1,64]

One factorisation of `shift I - J` and eight solves that depend on each other, as in a step of
Rodas5P: the explicit inverse by Gauss-Jordan elimination, the explicit inverse from LU, LU, and for
a matrix with two diagonals on either side the banded LU. Microseconds for each system; the medians
of interleaved runs on one core.
"""

import argparse

import harness
import numpy as np


def main():
    harness.on_one_core()
    import jax
    import jax.numpy as jnp
    from peers._base import clock

    import stablax as sx
    from stablax import _linalg
    from stablax._linalg import _lu

    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="2,3,4,8,12,16,20,32,50,80")
    parser.add_argument("--lanes", default="1,64")
    options = parser.parse_args()
    # The sizes up to which the inverse is formed by elimination, and from LU.
    ways = {"elimination": (999, 999), "inverse from LU": (0, 999), "LU": (0, 0)}
    repeats = 50

    def prepare(size, lanes, structure, limits):
        matrix = np.random.default_rng(0).normal(size=(size, size)) + 2 * np.sqrt(size) * np.eye(
            size
        )
        near = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= 2
        y0 = np.ones((lanes, size))

        def run(y):
            def step(i, y):
                _, stored = structure.linearise(
                    lambda x: -(matrix * near) @ x * (1 + 1e-3 * y[0]), y
                )
                factored = _linalg.Factored(structure, jnp.asarray(1.0 + i), stored)
                for _ in range(8):
                    y = factored.solve(y) + 0.1
                return y

            return jax.lax.fori_loop(0, repeats, step, y)

        _lu._ELIMINATED, _lu._INVERTED = limits
        began = clock()
        compiled = jax.jit(jax.vmap(run)).lower(y0).compile()
        seconds = clock() - began

        def call():
            began = clock()
            jax.block_until_ready(compiled(y0))
            return clock() - began

        return call, seconds

    for lanes in map(int, options.lanes.split(",")):
        print(f"\nlanes: {lanes}; microseconds for each (seconds to compile)\n")
        print(f"| n | {' | '.join(ways)} | banded LU (2, 2) |\n|{'---|' * (len(ways) + 2)}")
        for size in map(int, options.sizes.split(",")):
            made = {
                name: prepare(size, lanes, sx.Dense(), limits)
                for name, limits in ways.items()
                if not (name == "elimination" and size > 24)
            }
            if size > 8:
                made["banded"] = prepare(size, lanes, sx.Banded(2, 2), (0, 0))
            times = harness.interleaved([call for call, _ in made.values()])
            cells = {
                name: f"{seconds / repeats / lanes * 1e6:.2f} ({made[name][1]:.1f})"
                for name, seconds in zip(made, times, strict=True)
            }
            print(
                f"| {size} | {' | '.join(cells.get(n, '') for n in (*ways, 'banded'))} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
