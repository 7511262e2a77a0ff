"""stablax's solvers and diffrax's, called as `diffrax.diffeqsolve` is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import stablax as sx

from ._base import Run, clock


def preset_gains(solver) -> dict[str, Any]:
    """The control law that stablax's preset gives this solver, without its tolerances."""
    preset = sx.StiffPID.preset(solver=solver, rtol=1e-3, atol=1e-6)
    names = ("pcoeff", "icoeff", "dcoeff", "factormin", "factormax", "safety", "norm")
    return {name: getattr(preset, name) for name in names}


def max_steps_of(problem) -> int:
    """Enough for every solver that works; bounds the time of those that do not."""
    return 100_000 if problem.size <= 20 else 10_000


@dataclass(frozen=True)
class JaxPeer:
    """A diffrax solver with its controller.

    - `make`: from a problem to the solver.
    - `gains`: from the solver to arguments of the controller other than its tolerances.
    - `ours`: whether it is stablax's: then gradients are those of a model, `sx.Simulate`.
    """

    name: str
    make: Callable[[Any], diffrax.AbstractSolver]
    gains: Callable[[diffrax.AbstractSolver], dict[str, Any]] = lambda solver: {}
    ours: bool = False

    def missing(self) -> str | None:
        return None

    def solve(self, problem, exact: bool = False, **options) -> Callable[..., diffrax.Solution]:
        """`(rtol, y0, args) -> diffrax.Solution`; tolerances are data, for one compilation. With
        `exact`, it steps to the times that are saved, instead of interpolating."""
        solver = self.make(problem)
        options = {"max_steps": max_steps_of(problem), "throw": False, **options}

        def solve(rtol, y0, args):
            ts = jnp.asarray(problem.ts, y0.dtype)
            controller = diffrax.PIDController(rtol, rtol * problem.floor, **self.gains(solver))
            if exact:
                controller = diffrax.ClipStepSizeController(controller, step_ts=ts)
            return diffrax.diffeqsolve(
                diffrax.ODETerm(problem.field),
                solver,
                problem.t0,
                problem.t1,
                None,
                y0,
                args,
                saveat=diffrax.SaveAt(ts=ts),
                stepsize_controller=controller,
                **options,
            )

        return solve

    def prepare(self, problem) -> "JaxSolver":
        solve = self.solve(problem)

        def run(rtol, y0, args):
            solution = solve(rtol, y0, args)
            return solution.ys, _report(solution)

        return JaxSolver(run, problem.y0, problem.args)

    def prepare_gradient(self, problem, loss, steps: int) -> "JaxSolver":
        """The gradient of `loss(ys)` in all parameters, in reverse mode; `steps` are about how many
        there are. Its `Run` holds the gradient for `ys`."""
        if self.ours:
            return ModelGradient(self, problem, loss, steps)
        solve = self.solve(problem, **self._reverse_mode(steps))

        def run(rtol, y0, args):
            def value(args):
                solution = solve(rtol, y0, args)
                return loss(solution.ys), _report(solution)

            return jax.grad(value, has_aux=True)(args)

        return JaxSolver(run, problem.y0, problem.args)

    def prepare_batch(
        self, problem, lanes: int, steps: int, loss=None, dtype=jnp.float64
    ) -> "JaxSolver":
        """One `vmap` over `problem.perturb`, or the gradient of its mean `loss`. A lane that takes
        more than eight times the expected `steps` has failed. Its `Run` holds the solution of the
        first lane or the gradient, and the steps of the lane that takes most."""
        if self.ours and loss:
            return ModelGradient(self, problem, loss, steps, lanes, dtype)
        options = self._reverse_mode(steps) if loss else {}
        most = 8 * 2 ** int(steps).bit_length()
        solve = self.solve(problem, **{**options, "max_steps": most})

        def run(rtol, y0, args):
            def value(args):
                lane = lambda y0, args: solve(rtol, y0, args)
                solutions = jax.vmap(lane, problem.axes, axis_size=lanes)(y0, args)
                ok, statistics = _report(solutions)
                statistics = jax.tree.map(jnp.max, statistics)
                statistics["failed_lanes"] = jnp.sum(~ok)
                out = loss(solutions.ys) if loss else solutions.ys[0]
                return out, (jnp.all(ok), statistics)

            return jax.grad(value, has_aux=True)(args) if loss else value(args)

        return JaxSolver(run, *problem.perturb(jax.random.key(1), lanes), dtype=dtype)

    def _reverse_mode(self, steps: int) -> dict[str, Any]:
        return {"adjoint": diffrax.RecursiveCheckpointAdjoint(), "max_steps": most_steps(steps)}


def _report(solution):
    names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
    statistics = {name: solution.stats[name] for name in names}
    return solution.result == diffrax.RESULTS.successful, statistics


class JaxSolver:
    """A function `(rtol, y0, args) -> (result, (ok, stats))`, compiled for its inputs.

    - `compile_seconds`: time to trace and compile it, from empty caches.
    - `temporary_bytes`: what it allocates while it runs, by XLA's account.
    """

    def __init__(self, run, y0, args, dtype=jnp.float64):
        jax.clear_caches()
        self.dtype = dtype
        self.inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype), (y0, args))
        began = clock()
        self.compiled = jax.jit(run).lower(jnp.asarray(1e-3, dtype), *self.inputs).compile()
        self.compile_seconds = clock() - began
        self.temporary_bytes = self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        rtol_array = jnp.asarray(rtol, self.dtype)
        seconds, out = [], None
        for _ in range(repeats):
            began = clock()
            out = jax.block_until_ready(self.compiled(rtol_array, *self.inputs))
            seconds.append(clock() - began)
        result, (ok, stats) = out
        stats = {name: int(value) for name, value in stats.items()}
        return Run(bool(ok), seconds, jax.tree.map(np.asarray, result), stats["num_steps"], stats)


class ModelGradient:
    """As `JaxSolver`, for the gradient by a model of stablax. Tolerances are static there, so that
    it is compiled for each; `compile_seconds` is for the first."""

    def __init__(self, peer: JaxPeer, problem, loss, steps: int, lanes=None, dtype=jnp.float64):
        self.peer, self.problem, self.loss, self.steps = peer, problem, loss, steps
        self.lanes, self.dtype = lanes, dtype
        self.programs: dict[float, JaxSolver] = {}
        self.compile_seconds = self.temporary_bytes = None

    def _program(self, rtol: float) -> JaxSolver:
        problem, solver = self.problem, self.peer.make(self.problem)
        model = sx.Simulate(
            problem.field,
            solver=solver,
            controller=sx.StiffPID.preset(solver=solver, rtol=rtol, atol=rtol * problem.floor),
            max_steps=most_steps(self.steps),
        )

        def lane(y0, args):
            return model(y0, problem.ts, t0=problem.t0, args=args, throw=False)

        def run(rtol, y0, args):
            def value(args):
                solve = lane
                if self.lanes is not None:
                    solve = jax.vmap(lane, problem.axes, axis_size=self.lanes)
                out = solve(y0, args)
                ok = sx.is_successful(out)
                names = ("num_steps", "num_accepted_steps", "num_rejected_steps")
                statistics = {name: jnp.max(out.stats[name]) for name in names}
                statistics["failed_lanes"] = jnp.sum(~ok)
                return self.loss(out.ys), (jnp.all(ok), statistics)

            return jax.grad(value, has_aux=True)(args)

        start, args = problem.y0, problem.args
        if self.lanes is not None:
            start, args = problem.perturb(jax.random.key(1), self.lanes)
        return JaxSolver(run, start, args, dtype=self.dtype)

    def __call__(self, rtol: float, repeats: int = 1) -> Run:
        if rtol not in self.programs:
            self.programs[rtol] = program = self._program(rtol)
            if self.compile_seconds is None:
                self.compile_seconds = program.compile_seconds
                self.temporary_bytes = program.temporary_bytes
        return self.programs[rtol](rtol, repeats)


def most_steps(steps: int) -> int:
    """The budget of a gradient whose solve takes about `steps`."""
    return 4096 if steps < 2048 else 2 ** (int(steps).bit_length() + 1)


class PatchedChord(diffrax.VeryChord):
    """diffrax's root finder with the fix that is in its repository and in no release: it reports
    a failure only when it gives up (optimistix issues 221 and 230, diffrax pull request 754)."""

    def terminate(self, fn, y, args, options, state, tags):
        done, result = super().terminate(fn, y, args, options, state, tags)
        return done, optx.RESULTS.where(done, result, optx.RESULTS.successful)


def _patched(problem) -> diffrax.AbstractSolver:
    return diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(PatchedChord)())


def _pi(solver) -> dict[str, Any]:
    return {"pcoeff": 0.4, "icoeff": 0.3}


def _rosenbrock(name: str) -> JaxPeer:
    def make(problem):
        if problem.bands is None or not hasattr(sx, "Banded"):
            return getattr(sx, name)()
        return getattr(sx, name)(jacobian=sx.Banded(*problem.bands))

    return JaxPeer(name, make, preset_gains, ours=True)


OURS = [_rosenbrock(n) for n in ("Rodas5P", "Rodas4", "Rosenbrock23") if hasattr(sx, n)]
PEERS = [
    *OURS,
    JaxPeer("Kvaerno5 fixed", _patched),
    JaxPeer("kvaerno5()", lambda problem: sx.kvaerno5(), preset_gains),
    JaxPeer("Kvaerno5", lambda problem: diffrax.Kvaerno5()),
    JaxPeer("Kvaerno3", lambda problem: diffrax.Kvaerno3()),
    JaxPeer("Kvaerno5 PI", lambda problem: diffrax.Kvaerno5(), _pi),
    JaxPeer("Kvaerno3 PI", lambda problem: diffrax.Kvaerno3(), _pi),
]
