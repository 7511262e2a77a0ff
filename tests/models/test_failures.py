"""Every failure ends in its member of `RESULTS`, with an explanation that names it."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from helpers import all_finite
from jax.sharding import Mesh, PartitionSpec

import stablax as sx

jax.config.update("jax_enable_x64", True)


def _van_der_pol(t, y, args):
    return jnp.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])


def _exchange(t, y, args):
    flux = 2 * y["A"] - 3 * y["B"]
    return {"A": -flux, "B": flux}


def _oscillator(t, y, args):
    return jnp.stack([y[1], -y[0]])


ONE = jnp.ones(1)
CASES = {
    "blow-up": (
        sx.Simulate(lambda t, y, args: y**2),
        ONE,
        sx.RESULTS.step_underflow,
        ("blow-up", "t = 1 of 5", "y[0]"),
    ),
    "blow-up, guarded": (
        sx.Simulate(sx.Guarded(lambda t, y, args: y**2, sx.Guard(-100.0, 100.0))),
        ONE,
        sx.RESULTS.left_bounds,
        ("leaves the guard's box", "t = 0.990001 of 5"),
    ),
    "wall": (
        sx.Simulate(lambda t, y, args: jnp.where(y < 3, 1.0, jnp.nan)),
        ONE,
        sx.RESULTS.not_finite,
        ("not finite however small", "t = 2 of 5", "y[0], 3 there"),
    ),
    "explicit solver of a stiff field": (
        sx.Simulate(lambda t, y, args: -1e5 * (y - jnp.cos(t)), solver=diffrax.Tsit5()),
        ONE,
        sx.RESULTS.step_budget_spent,
        ("budget of 4096 steps", "explicit", "Rodas5P"),
    ),
    "tolerance beyond float32": (
        sx.Simulate(_oscillator, controller=diffrax.PIDController(rtol=1e-9, atol=1e-12)),
        jnp.array([1.0, 0.0], jnp.float32),
        sx.RESULTS.tolerance_out_of_reach,
        ("below what the dtype", "jax_enable_x64"),
    ),
    "box that excludes the solution": (
        sx.Simulate(sx.Guarded(_oscillator, sx.Guard(np.array([-0.5, -2.0]), 2.0))),
        jnp.array([1.0, 0.0]),
        sx.RESULTS.left_bounds,
        ("Widen the bounds", "t = 2.094", "y[0], -0.5 there"),
    ),
    "source without sink": (
        sx.SteadyThenSimulate(lambda t, y, args: jnp.ones_like(y)),
        ONE,
        sx.RESULTS.no_steady_state,
        ("source without a sink", "Integrate ran out of steps"),
    ),
    "limit cycle": (
        sx.SteadyThenSimulate(_van_der_pol),
        jnp.array([2.0, 0.0]),
        sx.RESULTS.no_steady_state,
        ("limit cycle", "The simulation was not started"),
    ),
    "max_steps=5": (
        sx.Simulate(lambda t, y, args: -y, max_steps=5),
        ONE,
        sx.RESULTS.step_budget_spent,
        ("budget of 5 steps", "Few steps were rejected"),
    ),
    "singular steady state": (
        sx.SteadyThenSimulate(_exchange),
        {"A": jnp.array(1.0), "B": jnp.array(0.0)},
        sx.RESULTS.singular_steady_state,
        ('conserved="detect"', "['A']"),
    ),
    "masked outputs": (
        sx.Simulate(
            sx.Guarded(lambda t, y, args: jnp.where(y < 3, 1.0, jnp.nan), sx.Guard(fill=0.0)),
            solver=diffrax.Tsit5(),
        ),
        ONE,
        sx.RESULTS.masked,
        ("rests on non-finite outputs", "fill=None"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_failure_is_data_and_is_explained(case):
    model, y0, result, words = CASES[case]
    simulation = model(y0, [0.5, 5.0], throw=False)
    assert simulation.result == result
    assert not sx.is_successful(simulation)
    assert all_finite(simulation)
    text = sx.explain(simulation)
    assert len(text) < 1500 and "\n" not in text
    for word in words:
        assert word in text, text
    with pytest.raises(RuntimeError) as raised:
        model(y0, [0.5, 5.0])
    assert text in str(raised.value)


def test_the_first_failure_in_time_is_the_result():
    """Outputs are masked at t = 1; the solution blows up, or leaves the box, later."""

    def field(t, y, args):
        dy = jnp.where((t > 1.0) & (t < 1.95), jnp.nan, 1.0)
        return jnp.where(t > 2.0, y**2, dy)

    for guard in (sx.Guard(fill=0.0), sx.Guard(upper=3.0, fill=0.0)):
        model = sx.Simulate(sx.Guarded(field, guard), solver=diffrax.Tsit5())
        simulation = model(0.0, [50.0], throw=False)
        assert not simulation.reached[-1]
        assert simulation.result == sx.RESULTS.masked
    # Without masked outputs the same box is what is left.
    model = sx.Simulate(sx.Guarded(lambda t, y, args: 1.0 + 0 * y, sx.Guard(upper=3.0)))
    assert model(0.0, [50.0], throw=False).result == sx.RESULTS.left_bounds


def test_a_batch_has_one_paragraph_for_each_failure():
    model = sx.Simulate(
        sx.Guarded(lambda t, y, a: jnp.where(y < a[0], a[1], jnp.nan), sx.Guard(upper=5.0))
    )
    walls = jnp.array([[10.0, 0.1], [2.0, 1.0], [10.0, 9.0], [2.0, 2.0]])
    simulations = jax.vmap(lambda a: model(1.0, [3.0], args=a, throw=False))(walls)
    first, second = sx.explain(simulations).split("\n")
    assert first.startswith("2 of 4 lanes (1, 3): The field")
    assert second.startswith("1 of 4 lanes (2): The solution leaves")


def test_components_have_the_names_that_a_field_declares():
    class Network(sx.GuardedField):
        species: tuple[str, ...] = ("insulin", "receptor")

        def vector_field(self, t, y, args):
            return jnp.stack([-y[0], jnp.where(y[0] < 0.5, jnp.nan, y[0])])

    simulation = sx.Simulate(Network())(jnp.ones(2), [5.0], throw=False)
    assert simulation.about.names == ("insulin", "receptor")
    assert "component of its last rejected step is insulin" in sx.explain(simulation)


def test_all_results_have_a_name():
    from stablax._results import name_of

    results = [sx.RESULTS.left_bounds, sx.RESULTS.successful, sx.RESULTS.gradient_not_finite]
    assert [name_of(r) for r in results] == ["left_bounds", "successful", "gradient_not_finite"]
    from stablax import _results

    assert len(_results._NAMES) == len(sx.RESULTS), "a library has a new member: name it"
    for name in _results._NAMES[: len(diffrax.RESULTS)]:
        promoted = _results.promoted(getattr(diffrax.RESULTS, name))
        assert name_of(promoted) == name


# Words that only one vocabulary has.
ALONE = {
    sx.Cause: "none",
    sx.STATUS: "not_needed",
    sx.RESULTS: """no_steady_state not_conserved bad_times bad_phases tolerance_out_of_reach
    gradient_not_finite masked event_not_finite event_not_located event_change_not_finite
    too_many_events events_accumulate bad_knots no_consistent_state no_periodic_state""",
    optx.RESULTS: "",
}


def _words(vocabulary):
    """Those in the table."""
    from stablax._results import TABLE

    return [row[vocabulary] for row in TABLE if row[vocabulary] != "-"]


def test_every_word_has_a_row_or_is_said_by_one_alone():
    from stablax import _results

    assert list(ALONE) == list(_results.VOCABULARIES)
    for vocabulary, alone in ALONE.items():
        words = _words(vocabulary)
        assert not set(words) & set(alone.split())
        for word in words:
            getattr(vocabulary, word)
    for ours in (sx.Cause, sx.STATUS, sx.RESULTS):
        assert len(set(_words(ours))) == len(_words(ours)), "one word for one thing"
        every = _words(ours) + ALONE[ours].split()
        inherited = len(diffrax.RESULTS) - 1 if ours is sx.RESULTS else 0  # but `successful`
        assert len(every) == len(ours) - inherited, f"{ours} has a new member: give it a row"


TRANSLATIONS = {
    "of a step to a solve": (sx.Cause, sx.RESULTS, "step_underflow"),
    "of a step to a stage": (sx.Cause, sx.STATUS, "diverged"),
    "of a stage to a root finder": (sx.STATUS, optx.RESULTS, "nonlinear_divergence"),
    "of a root finder to a stage": (optx.RESULTS, sx.STATUS, "diverged"),
}


@pytest.mark.parametrize("which", TRANSLATIONS)
def test_a_word_is_translated_by_its_row(which):
    from stablax._results import TABLE, translated

    source, target, otherwise = TRANSLATIONS[which]
    words = list(dict.fromkeys(_words(source) + ALONE[source].split()))
    row_of = {row[source]: row[target].replace("-", otherwise) for row in reversed(TABLE)}
    expected = [_number(target, row_of.get(word, otherwise)) for word in words]
    numbers = jnp.array([_number(source, word) for word in words], jnp.int32)
    said = jax.tree.map(lambda _: numbers, getattr(source, words[0]))

    one = lambda said: translated(said, source, target, getattr(target, otherwise))
    mesh = Mesh(np.array(jax.devices()[:1]), ("lanes",))
    lanes = PartitionSpec("lanes")
    on_devices = jax.shard_map(jax.vmap(one), mesh=mesh, in_specs=lanes, out_specs=lanes)
    for translate in (jax.vmap(one), jax.jit(jax.vmap(one)), jax.jit(on_devices)):
        assert jax.tree.leaves(translate(said))[0].tolist() == expected


def _number(vocabulary, word) -> int:
    return int(jax.tree.leaves(getattr(vocabulary, word))[0])
