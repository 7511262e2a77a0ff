"""The registries that the contract tests run over, and what several tests share.

A new field, solver, controller, method or model joins its registry here; the contract suite
(`test_contracts.py`) then holds it to every invariant.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import stablax as sx

ROOT = Path(__file__).parent.parent


def slow(*values: Any) -> Any:
    """Values of `pytest.mark.parametrize` for the night: a combination, or a size, of a kind that
    other values of the same test stand for by day."""
    return pytest.param(*values, marks=pytest.mark.slow)


def by_day(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Of `cases`, the `chosen` ones by day, and the others by night."""
    cases = list(cases)
    assert set(chosen) <= set(cases), chosen
    spread = lambda case: case if isinstance(case, tuple) else (case,)
    return [case if case in chosen else slow(*spread(case)) for case in cases]


def data_file(name: str) -> Path:
    """A file of real measurements, or a skip where there is none."""
    folder = Path(os.environ.get("STABLAX_DATA", ROOT.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"{name} is not in STABLAX_DATA ({folder})")
    return path


class Pendulum(sx.GuardedField):
    """A PyTree state: a dict of an array and a scalar."""

    stiffness: jax.Array

    def vector_field(self, t, y, args):
        return {"q": y["p"] * jnp.ones(2), "p": -jnp.sum(self.stiffness * jnp.sin(y["q"]))}


class SquareRoot(sx.GuardedField):
    """A finite value with an infinite derivative at 0, and nan below it."""

    rate: jax.Array

    def vector_field(self, t, y, args):
        return -self.rate * jnp.sqrt(y) + 0.1


class Overflowing(sx.GuardedField):
    """Exponentials that overflow beyond |y| ~ 700."""

    p: jax.Array

    def vector_field(self, t, y, args):
        return jnp.expm1(self.p - y) * jnp.exp(self.p) + t


def logarithmic(t, y, args):
    return -args * jnp.log(y)


def swing(t, y, args):
    return jax.tree.map(jnp.sin, y)


class Case(NamedTuple):
    """A field, where it is admissible, and what it is evaluated with."""

    make: Callable[[sx.Guard], Any]
    guard: sx.Guard
    y: Any
    args: Any = None
    bare: Callable[[Any], Callable] = lambda field: field.vector_field


# The fields of the zoo that are made of networks: each makes a field of three components.
NETWORK_FIELDS: dict[str, Callable[..., Any]] = {
    "MLPField": lambda key, **kw: sx.MLPField(3, 8, 2, key=key, initial_scale=1.0, **kw),
    "DampedField": lambda key, **kw: sx.DampedField(3, 8, 1, key=key, rate=0.5, **kw),
    "ContractingField": lambda key, **kw: sx.ContractingField(3, 8, 1, key=key, rate=0.1, **kw),
    "GradientFlowField": lambda key, **kw: sx.GradientFlowField(3, 8, 1, key=key, **kw),
    "LyapunovField": lambda key, **kw: sx.LyapunovField(3, 8, 1, key=key, rate=0.1, **kw),
    "PortHamiltonianField": lambda key, **kw: sx.PortHamiltonianField(3, 8, 1, key=key, **kw),
    "AntisymmetricField": lambda key, **kw: sx.AntisymmetricField(3, key=key, **kw),
    "QuasiPositiveField": lambda key, **kw: sx.QuasiPositiveField(3, 8, 1, key=key, **kw),
    "ScaledNeuralField": lambda key, guard=sx.Guard(), **kw: sx.ScaledNeuralField(
        sx.MLPField(3, 8, 1, key=key, initial_scale=1.0, **kw),
        sx.Scales(np.array([1.0, 1e-5, 2.0]), 100.0),
        guard=guard,
    ),
}


def _vector_case(name: str) -> Case:
    def make(guard):
        return NETWORK_FIELDS[name](jax.random.key(1), guard=guard)

    return Case(make, sx.Guard(0.0, np.array([2.0, 3.0, 4.0])), jnp.array([0.5, 1.5, 1.0]))


def _tree_case(name: str, args: Any = None, **options: Any) -> Case:
    """A state that is a tree; `args` are inputs of the network."""

    def make(guard):
        return NETWORK_FIELDS[name](jax.random.key(2), guard=guard, **options)

    return Case(
        make,
        sx.Guard({"a": np.array([-1.0, -2.0]), "b": None}, {"a": 4.0, "b": 5.0}),
        {"a": jnp.array([0.5, -1.5]), "b": jnp.array(1.0)},
        args,
    )


FIELDS: dict[str, Case] = {
    "subclass": Case(
        lambda guard: Overflowing(jnp.array([0.5, -1.0]), guard=guard),
        sx.Guard(-30.0, 30.0),
        jnp.array([0.3, -0.2]),
    ),
    "square root": Case(
        lambda guard: SquareRoot(jnp.array([1.5, 0.3]), guard=guard),
        sx.Guard(0.0),
        jnp.array([0.5, 2.0]),
    ),
    "dict state": Case(
        lambda guard: Pendulum(jnp.array([1.0, 2.0]), guard=guard),
        sx.Guard({"q": np.array([-3.0, -4.0]), "p": -5.0}, {"q": 4.0, "p": None}),
        {"q": jnp.array([0.1, 0.2]), "p": jnp.array(0.3)},
    ),
    "wrapped function": Case(
        lambda guard: sx.Guarded(logarithmic, guard),
        sx.Guard(1e-8, np.array([10.0, 20.0])),
        jnp.array([0.5, 2.0]),
        args=jnp.array([1.0, 3.0]),
        bare=lambda field: field.fn,
    ),
    "MLPField": _vector_case("MLPField"),
    "MLPField with inputs": _tree_case(
        "MLPField",
        {"dose": jnp.array([0.5, 2.0]), "temperature": jnp.array(0.3)},
        time=True,
        args_size=3,
    ),
    "ReactionField": Case(
        lambda guard: sx.ReactionField(
            ["A + 2 B <-> C", "C + drug -> A", "B -> 0", "0 -> B", "A -> C"],
            [
                (sx.MassAction(sx.Parameter("on", 2.0, scale="log")), sx.MassAction("off")),
                sx.MassAction(sx.Frozen(0.3)) * sx.NeuralRate(("A", "drug"), key=jax.random.key(2)),
                sx.MichaelisMenten(1.0, 0.5),
                sx.Hill(0.4, 0.7, 2.5, of="C", represses=True),
                sx.Hill(0.4, 0.7, 1.5) * sx.MassAction(1.0),
            ],
            inputs=("drug", "off"),
            guard=guard,
        ),
        sx.Guard(0.0, np.array([10.0, np.inf, 20.0])),
        jnp.array([0.5, 2.0, 0.3]),
        args={"drug": sx.Input([0.1, 0.25, 0.7], [0.7, 0.2, 0.5]), "off": jnp.array(0.1)},
    ),
    "HybridField, dict state": Case(
        lambda guard: sx.HybridField(
            Pendulum(jnp.array([1.0, 2.0])),
            swing,
            gate=0.5,
            conserve=[[0.0, 1.0, -1.0]],
            guard=guard,
        ),
        sx.Guard({"q": np.array([-3.0, -4.0]), "p": -5.0}, {"q": 4.0, "p": None}),
        {"q": jnp.array([0.1, 0.2]), "p": jnp.array(0.3)},
    ),
    "HybridField, rates": Case(
        lambda guard: sx.HybridField(
            sx.ReactionField(["2 A <-> B"], [(sx.MassAction(2.0), sx.MassAction(0.3))]),
            sx.MLPField(2, 4, 1, key=jax.random.key(3)),
            mode="multiplicative_rates",
            guard=guard,
        ),
        sx.Guard(0.0, np.array([10.0, np.inf])),
        jnp.array([0.5, 2.0]),
    ),
    "LogField": Case(
        lambda guard: sx.LogField(SquareRoot(jnp.array([1.5, 0.3])), guard=guard),
        sx.Guard(np.array([-30.0, -np.inf]), 5.0),
        jnp.array([-0.5, 2.0]),
    ),
    "LogField with an offset": Case(
        lambda guard: sx.LogField(
            SquareRoot(jnp.array([1.5, 0.3])), offset=np.array([0.1, 2.0]), guard=guard
        ),
        sx.Guard(0.0, 5.0),
        jnp.array([0.5, 2.0]),
    ),
    "SoftplusField": Case(
        lambda guard: sx.SoftplusField(SquareRoot(jnp.array([1.5, 0.3])), scale=0.5, guard=guard),
        sx.Guard(-30.0, 5.0),
        jnp.array([-0.5, 2.0]),
    ),
    "ScaledField, dict state": Case(
        lambda guard: sx.ScaledField(
            Pendulum(jnp.array([1.0, 2.0])), {"q": np.array([1.0, 2.0]), "p": 3.0}, guard=guard
        ),
        sx.Guard({"q": np.array([-3.0, -4.0]), "p": -5.0}, {"q": 4.0, "p": None}),
        {"q": jnp.array([0.1, 0.2]), "p": jnp.array(0.3)},
    ),
    "DampedField": _tree_case("DampedField", jnp.array(0.5), time=True, args_size=1),
    "ContractingField": _vector_case("ContractingField"),
    "GradientFlowField": _tree_case("GradientFlowField"),
    "LyapunovField": _vector_case("LyapunovField"),
    "PortHamiltonianField": _tree_case("PortHamiltonianField", jnp.array(0.7), args_size=1),
    "AntisymmetricField": _tree_case("AntisymmetricField", jnp.array(0.7), args_size=1),
    "QuasiPositiveField": _vector_case("QuasiPositiveField"),
    "ScaledNeuralField": _vector_case("ScaledNeuralField"),
}


SOLVERS: dict[str, Callable[[], diffrax.AbstractSolver]] = {
    "Tsit5": diffrax.Tsit5,
    "Dopri5": diffrax.Dopri5,
    "FiniteSteps(Tsit5)": lambda: sx.FiniteSteps(diffrax.Tsit5()),
    "Rodas5P": sx.Rodas5P,
    "Rodas4": sx.Rodas4,
    "Rosenbrock23": sx.Rosenbrock23,
    "kvaerno5": sx.kvaerno5,
    "kvaerno3": sx.kvaerno3,
    "Kvaerno4": lambda: diffrax.Kvaerno4(
        root_finder=diffrax.with_stepsize_controller_tols(sx.PatientChord)()
    ),
    "kencarp4": sx.kencarp4,
}

ADJOINTS: dict[str, Callable[[], diffrax.AbstractAdjoint | sx.DiscreteAdjoint]] = {
    "DiscreteAdjoint": sx.DiscreteAdjoint,
    "RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint,
    "DirectAdjoint": diffrax.DirectAdjoint,
    "ForwardMode": diffrax.ForwardMode,
}

CONTROLLERS: dict[str, Callable[[], diffrax.AbstractStepSizeController]] = {
    **{
        f"StiffPID {name}": lambda name=name: sx.StiffPID.preset(name)
        for name in sx.StiffPID.presets()
    },
    "PIDController": lambda: diffrax.PIDController(rtol=1e-6, atol=1e-9),
    "ClipStepSizeController": lambda: diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-6, atol=1e-9), jump_ts=jnp.array([0.25])
    ),
    "ConstantStepSize": diffrax.ConstantStepSize,
}


class Relax(sx.AbstractSteadyMethod):
    """A search by a third party: explicit Euler steps."""

    dt: float = eqx.field(static=True, default=0.1)

    def search(self, problem, active):
        steps = jnp.where(active, problem.max_steps, 0)
        step = lambda _, y: y + self.dt * problem.residual(y)
        y = lax.fori_loop(0, steps, step, problem.start)
        return sx.Attempt(y, sx.STATUS.out_of_steps, steps)


METHODS: dict[str, Callable[[], Any]] = {
    "Newton": sx.Newton,
    "PseudoTransient": sx.PseudoTransient,
    "Integrate": sx.Integrate,
    "Chain": sx.Chain,
    "optimistix.Newton": lambda: optx.Newton(1e-10, 1e-12),
    "optimistix.Dogleg": lambda: sx.Chain((optx.Dogleg(1e-10, 1e-12), sx.Newton())),
    "third party": Relax,
}

MODELS: dict[str, Callable[..., Any]] = {
    "Simulate": sx.Simulate,
    "SteadyThenSimulate": sx.SteadyThenSimulate,
    "SimulatePhases": sx.SimulatePhases,
}


def dt0_for(controller: diffrax.AbstractStepSizeController) -> float | None:
    return 0.01 if isinstance(controller, diffrax.ConstantStepSize) else None


def all_finite(tree: Any) -> bool:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return all(bool(jnp.all(jnp.isfinite(x))) for x in leaves)


def richardson(fn: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-2) -> np.ndarray:
    """The gradient of `fn` by central differences, extrapolated to fourth order."""
    x = np.asarray(x, float)
    gradient = np.zeros_like(x)
    for i in range(x.size):
        unit = np.eye(x.size)[i]

        def difference(h, unit=unit):
            return (float(fn(x + h * unit)) - float(fn(x - h * unit))) / (2 * h)

        gradient[i] = (4 * difference(step / 2) - difference(step)) / 3
    return gradient


def updated(optimiser: Any, *args: Any, **kwargs: Any) -> Any:
    """`optimiser.update(...)`: optax raises floats to the power of an integer counter."""
    with jax.numpy_dtype_promotion("standard"):
        return optimiser.update(*args, **kwargs)


class Counted:
    """A callable that counts how often Python runs it: once for each trace."""

    def __init__(self, fn: Callable):
        self.fn = fn
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.fn(*args, **kwargs)
