"""DETEST: the 25 problems of T. E. Hull, W. H. Enright, B. M. Fellen and A. E. Sedgwick, Comparing
numerical methods for ordinary differential equations, SIAM J. Numer. Anal. 9, 603 (1972).

    python benchmarks/detest.py                                       # Rodas5P, one minute
    python benchmarks/detest.py --solvers Rodas5P,Rodas4,Rosenbrock23

None is stiff. Each is solved over t in [0, 20] in plain diffrax at rtol = atol = 1e-8, and passes
where |y(20) - reference| / (1 + |reference|) is below 4e-5 in every component. The reference is
scipy's DOP853, an explicit method, at rtol 1e-13. Exits with 1 where one does not pass.
"""

import argparse
import sys
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import stablax as sx

jax.config.update("jax_enable_x64", True)

T1, RTOL, RIGHT = 20.0, 1e-8, 4e-5


def _chain(rates: np.ndarray):
    """A decays to B, B to C, and so on; the last does not."""
    return jnp.asarray(np.diag(-np.append(rates, 0.0)) + np.diag(rates, -1))


def _diffusion(size: int):
    return jnp.asarray(-2 * np.eye(size) + np.eye(size, k=1) + np.eye(size, k=-1))


def _linear(matrix):
    return lambda t, y: matrix @ y


def _first(size: int) -> list[float]:
    return [1.0] + [0.0] * (size - 1)


def _spiral(t, y):
    radius = jnp.hypot(y[0], y[1])
    return jnp.stack([-y[1] - y[0] * y[2] / radius, y[0] - y[1] * y[2] / radius, y[0] / radius])


def _orbit(t, y):
    return jnp.concatenate([y[2:], -y[:2] / jnp.hypot(y[0], y[1]) ** 3])


def _on_orbit(eccentricity: float) -> list[float]:
    e = eccentricity
    return [1 - e, 0.0, 0.0, ((1 + e) / (1 - e)) ** 0.5]


# Five outer planets: gravity, masses in suns (the first with the inner planets), and where they
# start [AU, AU / 100 days].
_GRAVITY = 2.95912208286
_SUN = 1.00000597682
_MASSES = jnp.array(
    [0.954786104043e-3, 0.285583733151e-3, 0.437273164546e-4, 0.517759138449e-4, 0.277777777778e-5]
)
_PLANETS = [
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
]


def _planets(t, y):
    place, velocity = y[:15].reshape(5, 3), y[15:]
    by_sun = place / jnp.linalg.norm(place, axis=1, keepdims=True) ** 3
    between = place[None, :] - place[:, None]
    squared = jnp.sum(between**2, axis=2) + jnp.eye(5)  # no planet attracts itself: between = 0
    pull = between / squared[..., None] ** 1.5 - by_sun[None, :] * (1 - jnp.eye(5))[..., None]
    change = -(_SUN + _MASSES)[:, None] * by_sun + jnp.einsum("k,jki->ji", _MASSES, pull)
    return jnp.concatenate([velocity, _GRAVITY * change.ravel()])


def _second_order(force):
    return lambda t, y: jnp.stack([y[1], force(t, y[0], y[1])])


PROBLEMS = {
    "A1": (lambda t, y: -y, [1.0]),
    "A2": (lambda t, y: -(y**3) / 2, [1.0]),
    "A3": (lambda t, y: y * jnp.cos(t), [1.0]),
    "A4": (lambda t, y: y / 4 * (1 - y / 20), [1.0]),
    "A5": (lambda t, y: (y - t) / (y + t), [4.0]),
    "B1": (lambda t, y: jnp.stack([2 * y[0] * (1 - y[1]), -y[1] * (1 - y[0])]), [1.0, 3.0]),
    "B2": (_linear(jnp.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]])), [2.0, 0.0, 1.0]),
    "B3": (lambda t, y: jnp.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), [1.0, 0.0, 0.0]),
    "B4": (_spiral, [3.0, 0.0, 0.0]),
    "B5": (
        lambda t, y: jnp.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        [0.0, 1.0, 1.0],
    ),
    "C1": (_linear(_chain(np.ones(9))), _first(10)),
    "C2": (_linear(_chain(np.arange(1.0, 10.0))), _first(10)),
    "C3": (_linear(_diffusion(10)), _first(10)),
    "C4": (_linear(_diffusion(51)), _first(51)),
    "C5": (_planets, _PLANETS),
    "D1": (_orbit, _on_orbit(0.1)),
    "D2": (_orbit, _on_orbit(0.3)),
    "D3": (_orbit, _on_orbit(0.5)),
    "D4": (_orbit, _on_orbit(0.7)),
    "D5": (_orbit, _on_orbit(0.9)),
    "E1": (
        _second_order(lambda t, y, dy: -(dy / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y)),
        [0.6713967071418030, 0.09540051444747446],
    ),
    "E2": (_second_order(lambda t, y, dy: (1 - y**2) * dy - y), [2.0, 0.0]),
    "E3": (
        _second_order(lambda t, y, dy: y**3 / 6 - y + 2 * jnp.sin(2.78535 * t)),
        [0.0, 0.0],
    ),
    "E4": (_second_order(lambda t, y, dy: 0.032 - 0.4 * dy**2), [30.0, 0.0]),
    "E5": (_second_order(lambda t, y, dy: jnp.sqrt(1 + dy**2) / (25 - t)), [0.0, 0.0]),
}
"""`(f(t, y), y0)` by name."""

SOLVERS = {"Rodas5P": sx.Rodas5P(), "Rodas4": sx.Rodas4(), "Rosenbrock23": sx.Rosenbrock23()}


def reference(name: str) -> np.ndarray:
    field, y0 = PROBLEMS[name]
    compiled = jax.jit(field)
    slope = lambda t, y: np.asarray(compiled(t, y))
    return solve_ivp(slope, (0, T1), y0, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]


def solve(name: str, solver) -> diffrax.Solution:
    field, y0 = PROBLEMS[name]

    @jax.jit
    def run(y0):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(t, y)),
            solver,
            0.0,
            T1,
            None,
            y0,
            stepsize_controller=sx.StiffPID(rtol=RTOL, atol=RTOL),
            adjoint=diffrax.ForwardMode(),
            max_steps=200_000,
            throw=False,
        )

    return run(jnp.asarray(y0))


def main() -> int:
    parser = argparse.ArgumentParser(description="DETEST")
    parser.add_argument("--solvers", default="Rodas5P")
    names = parser.parse_args().solvers.split(",")
    start = time.process_time()
    print("Error, and attempted steps:\n")
    print("| problem |", " | ".join(names), "|\n|---|" + "---|" * len(names))
    wrong = 0
    for problem in PROBLEMS:
        right, row = reference(problem), []
        for name in names:
            solution = solve(problem, SOLVERS[name])
            ok = bool(solution.result == diffrax.RESULTS.successful)
            error = np.max(np.abs(np.asarray(solution.ys)[-1] - right) / (1 + np.abs(right)))
            wrong += not (ok and error < RIGHT)
            row.append(
                f"{error:.1e}, {int(solution.stats['num_steps'])}" + ("" if ok else " failed")
            )
        print("|", problem, "|", " | ".join(row), "|", flush=True)
    print(
        f"\n{wrong} wrong of {len(names) * len(PROBLEMS)}, {time.process_time() - start:.0f} CPU s"
    )
    return wrong > 0


if __name__ == "__main__":
    sys.exit(main())
