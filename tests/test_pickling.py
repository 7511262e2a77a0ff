"""What is pickled or copied comes back equal, and runs in the program that is compiled already."""

import copy
import functools
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    ADJOINTS,
    CONTROLLERS,
    FIELDS,
    METHODS,
    MODELS,
    SOLVERS,
    Overflowing,
    dt0_for,
)

import stablax as sx
from stablax._static import Static

decay = lambda t, y, k: -k * y  # found by the name that this module has for it


runs: list[int] = []


def scaled_decay(scale, t, y, k):
    runs.append(1)
    return -scale * k * y


@jax.jit
def compiled_decay(t, y, k):
    return -k * y


def doubled(y):
    return 2 * y


class Unhashable:
    __hash__ = None  # pyright: ignore[reportAssignmentType]


WAYS = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def assert_same(x, y):
    """Equal arrays, and an equal and equally hashed rest: one compilation for both."""
    arrays, rest = eqx.partition(x, eqx.is_array)
    other_arrays, other_rest = eqx.partition(y, eqx.is_array)
    assert jax.tree.structure(rest) == jax.tree.structure(other_rest)
    assert hash(jax.tree.structure(rest)) == hash(jax.tree.structure(other_rest))
    assert jax.tree.leaves(rest) == jax.tree.leaves(other_rest)
    assert jax.tree.structure(arrays) == jax.tree.structure(other_arrays)
    for a, b in zip(jax.tree.leaves(arrays), jax.tree.leaves(other_arrays), strict=True):
        assert getattr(a, "weak_type", False) == getattr(b, "weak_type", False)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def values() -> dict[str, Any]:
    return {
        **{f"field {name}": case.make(case.guard) for name, case in FIELDS.items()},
        **{f"solver {name}": make() for name, make in SOLVERS.items()},
        **{f"adjoint {name}": make() for name, make in ADJOINTS.items()},
        **{f"controller {name}": make() for name, make in CONTROLLERS.items()},
        **{f"method {name}": make() for name, make in METHODS.items()},
        **{f"result {name}": getattr(sx.RESULTS, name) for name in ("successful", "not_finite")},
        "status": sx.STATUS.converged,
        "cause": sx.Cause.error,
        "Frozen": sx.Frozen([[1.0, 2.0]]),
        "Guard": sx.Guard({"a": 0.0, "b": np.zeros(2)}, fill=0.5),
        "Scales": sx.Scales([1.0, 2.0], 3.0),
        "Static": Static(
            {"functions": [jnp.tanh, jax.nn.relu, jnp.add, decay], "n": 3, "x": np.nan}
        ),
        "Banded": sx.Banded(1, 2),
        "MatrixFree": sx.MatrixFree(),
        "SetDose": sx.SetDose(1.0, where=np.array([True, False])),
        "DoseFunction": sx.DoseFunction(compiled_decay),
        "Phase": sx.Phase(1.0, args={"k": 2.0}, dose=3.0, controller=sx.StiffPID.preset("fast")),
        "phases": sx.Phase.repeat(3, 2.0, args=1.0),
        "WarmStart": sx.WarmStart(jnp.ones(2)),
    }


@pytest.mark.parametrize("way", WAYS)
def test_every_part_comes_back_equal(way):
    for name, value in values().items():
        try:
            assert_same(WAYS[way](value), value)
        except Exception as error:
            error.add_note(name)
            raise


@pytest.mark.parametrize("way", WAYS)
def test_every_model_comes_back_equal(way):
    for Model in MODELS.values():
        for field in (FIELDS["MLPField"], FIELDS["ReactionField"]):
            model = Model(field.make(field.guard))
            assert_same(WAYS[way](model), model)
        for rate in (decay, compiled_decay, functools.partial(scaled_decay, np.array([2.0]))):
            model = Model(rate, solver=sx.kvaerno5(), event=diffrax.Event(decay))
            assert_same(WAYS[way](model), model)
    for problem in sx.problems.PROBLEMS.values():
        assert_same(WAYS[way](sx.Simulate(problem.field)), sx.Simulate(problem.field))
    for make in CONTROLLERS.values():
        model = sx.Simulate(decay, controller=make(), dt0=dt0_for(make()))
        assert_same(WAYS[way](model), model)


def test_copies_run_in_the_program_that_is_there():
    """And results survive, with what they say."""
    guarded = sx.Guarded(functools.partial(scaled_decay, 2.0), sx.Guard(0.0))
    controller = diffrax.ConstantStepSize()
    model = sx.Simulate(guarded, solver=diffrax.Heun(), controller=controller, dt0=0.1)
    first = model(1.0, [0.5], args=1.0, throw=False)
    traces = len(runs)
    assert traces > 0
    pickled = WAYS["pickle"](model)
    for copied in (copy.deepcopy(model), copy.copy(model), pickled, WAYS["pickle"](pickled)):
        assert_same(copied(1.0, [0.5], args=1.0, throw=False), first)
    assert len(runs) == traces

    failed = model(1.0, [0.5], args=jnp.nan, throw=False)
    steady = sx.find_steady_state(_inflow, jnp.ones(1), 2.0, method=sx.Newton(), throw=False)
    for result, well in ((first, True), (failed, False), (steady, True)):
        for way in WAYS.values():
            again = way(result)
            assert_same(again, result)
            assert bool(sx.is_successful(again)) is well
            assert sx.explain(again) == sx.explain(result)


def _inflow(t, y, k):
    return 1.0 - k * y


def test_what_has_no_hash_is_itself_in_a_copy_and_another_when_pickled():
    static = Static([Unhashable()])
    assert copy.deepcopy(static) == static
    assert pickle.loads(pickle.dumps(static)) != static


def test_a_constant_stays_read_only():
    for way in WAYS.values():
        with pytest.raises(ValueError, match="read-only"):
            way(sx.Frozen([1.0])).value[0] = 2.0


def test_a_function_without_a_name_says_so():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(sx.Simulate(lambda t, y, args: -y))


def _in_another_process(model, y):
    field = model.field
    return model, field(0.0, y, None), hash(model.field.guard) == hash(sx.Guard(-30.0, 30.0))


def test_through_a_pool_of_processes(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    model = sx.Simulate(Overflowing(jnp.array([0.5, -1.0]), guard=sx.Guard(-30.0, 30.0)))
    y = jnp.array([0.3, -0.2])
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        back, slope, same = pool.submit(_in_another_process, model, y).result()
    assert_same(back, model)
    assert same
    np.testing.assert_allclose(slope, model.field(0.0, y, None), rtol=1e-14)
