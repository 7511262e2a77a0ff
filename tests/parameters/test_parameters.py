"""Parameters with names: where a model takes a number, and in their table."""

import pickle
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import updated

import stablax as sx
from stablax.fitting import LaplacePrior, LogNormalPrior, NormalPrior, UniformPrior

K = sx.Parameter("k", 0.3, scale="log10", bounds=(1e-3, 1e3), prior=NormalPrior(0.0, 2.0))
BACK = sx.Parameter("back", 0.7, scale="log", bounds=(0.01, 10.0))
SHIFT = sx.Parameter("shift", [0.5, -1.5], bounds=(-2.0, 3.0))
HELD = sx.Parameter("held", 5.0, estimate=False)


class Decay(sx.GuardedField):
    rate: Any

    def vector_field(self, t, y, args):
        return args["in"] - self.rate * y


def network(k, back):
    laws = [sx.MassAction(k), sx.MassAction(back), sx.MassAction(back)]
    return sx.ReactionField(["A -> B", "B -> A", "B -> 0"], laws)


Y0, TS = jnp.array([1.0, 0.5]), jnp.array([1.0, 2.5])


def table():
    net = sx.MLPField(2, 3, 1, key=jax.random.key(0))
    return sx.parameters({"z": K, "a": (SHIFT, HELD, BACK, K), "net": net})


@pytest.mark.parametrize("one", [K, BACK, SHIFT, HELD], ids=lambda p: p.name)
def test_a_parameter_is_its_coordinate(one):
    leaves = jax.tree.leaves(one)
    if one.estimate:
        assert len(leaves) == 1 and leaves[0] is one.coordinate
        forward = {"linear": lambda x: x, "log": np.log, "log10": np.log10}[one.scale]
        np.testing.assert_allclose(leaves[0], forward(one.value), rtol=1e-14)
    else:
        assert leaves == []
    assert eqx.tree_equal(pickle.loads(pickle.dumps(one)), one)
    assert repr(one).startswith(f"Parameter({one.name!r}, ") or one is K


def test_a_parameter_keeps_its_dtype():
    single = sx.Parameter("k", np.float32(0.3), scale="log10")
    assert single.coordinate.dtype == single.value.dtype == jnp.float32
    assert sx.parameters(single).lower.coordinates["k"].dtype == jnp.float32
    y0 = jnp.array([1.0], jnp.float32)
    assert sx.Simulate(Decay(single))(y0, [1.0], args={"in": y0}).ys.dtype == jnp.float32


def test_a_model_with_parameters_is_that_with_their_values():
    """In rate laws, fields of one's own, conditions, states and doses; and so are derivatives."""
    plain = sx.Simulate(network(0.3, 0.7))(Y0, TS).ys
    named = sx.Simulate(network(K, BACK))
    np.testing.assert_allclose(named(Y0, TS).ys, plain, rtol=1e-13)
    assert len(jax.tree.leaves(named)) == 3

    closed = lambda rate, c, y0: c / rate + (y0 - c / rate) * jnp.exp(-rate * TS)
    own = sx.Simulate(Decay(BACK), controller=sx.StiffPID.preset(rtol=1e-10, atol=1e-12))
    inflow, start = sx.Parameter("in", 0.4), sx.Parameter("y", 2.0)

    def last(own, inflow, start):
        return own({"y": start}["y"], TS, args={"in": inflow}).ys

    out = last(own, inflow, start)
    np.testing.assert_allclose(out, closed(0.7, 0.4, 2.0), rtol=1e-8)
    gradient = jax.grad(lambda parts: jnp.sum(last(*parts)))((own, inflow, start))
    truth = jax.grad(lambda parts: jnp.sum(closed(*parts)), argnums=0)((0.7, 0.4, 2.0))
    # The leaf of `BACK` is a logarithm.
    np.testing.assert_allclose(gradient[0].field.rate.coordinate, 0.7 * truth[0], rtol=1e-7)
    np.testing.assert_allclose(gradient[1].coordinate, truth[1], rtol=1e-7)
    np.testing.assert_allclose(gradient[2].coordinate, truth[2], rtol=1e-7)
    np.testing.assert_allclose(own.field(0.0, Y0, {"in": inflow}), 0.4 - 0.7 * Y0, rtol=1e-15)
    steady = sx.find_steady_state(own.field, Y0, args={"in": inflow})
    np.testing.assert_allclose(steady.y, 0.4 / 0.7, rtol=1e-9)


def test_what_looks_at_a_field_sees_the_numbers():
    field = Decay(sx.Parameter("k", 2.0, scale="log"), jacobian=sx.Banded(0, 0))
    known = {"in": jnp.array(0.1)}
    assert sx.check_jacobian(field, 0.0, Y0, known) < 1e-9
    np.testing.assert_allclose(sx.stiffness(field, 0.0, Y0, known).eigenvalues, -2.0, rtol=1e-12)


@pytest.mark.slow
def test_diagnose_sees_the_numbers():
    model = sx.Simulate(Decay(sx.Parameter("k", 2.0, scale="log")))
    assert "Successful" in str(sx.diagnose(model, Y0, TS, args={"in": sx.Parameter("in", 0.1)}))


def test_doses_take_parameters():
    """A bolus with a lag and an infusion into dy/dt = -y: in closed form."""
    amount, lag = sx.Parameter("amount", 3.0), sx.Parameter("lag", 0.5, bounds=(0.0, 2.0))
    total = sx.Parameter("total", 2.0, scale="log")
    field, y0, ts = (lambda t, y, args: -y), jnp.zeros(1), jnp.array([2.0, 4.0])
    schedule = sx.Schedule([sx.Dose(0.0, amount, lag=lag), sx.Infusion(1.0, total, 1.0)])
    phases = schedule.phases(field, y0, end=4.0)
    controller = sx.StiffPID.preset(rtol=1e-10, atol=1e-12)
    model = sx.SimulatePhases(field, controller=controller)
    known = sx.parameters((model, phases))
    assert known.names == ("amount", "lag", "total")

    def out(known):
        return model(y0, ts, known.into(phases)).ys[:, 0]

    def truth(known):
        bolus = known["amount"] * jnp.exp(-(ts - known["lag"]))
        return bolus + known["total"] * (jnp.exp(2.0 - ts) - jnp.exp(1.0 - ts))

    np.testing.assert_allclose(out(known), truth(known), rtol=1e-8)
    rows, true_rows = jax.jacrev(out)(known), jax.jacrev(truth)(known)
    for name, row in rows.coordinates.items():
        np.testing.assert_allclose(row, true_rows.coordinates[name], rtol=1e-6)
    ended = sx.Schedule([sx.Dose(0.0, 1.0), sx.Reset(sx.Parameter("end", 1.0))])
    rows = model(y0, ts, ended.phases(field, y0, end=4.0)).ys
    np.testing.assert_allclose(rows, 0.0, atol=1e-12)
    with pytest.raises(TypeError, match=r"parameters \(`amount`, `lag`, `total`\)"):
        schedule.ts  # noqa: B018
    added = [sx.Phase(4.0, dose=sx.AddDose({"y": sx.Parameter("d", 2.0)}))]
    simulation = sx.SimulatePhases(lambda t, y, args: {"y": -y["y"]})(
        {"y": jnp.array(0.0)}, ts, added
    )
    np.testing.assert_allclose(simulation.ys["y"], 2 * np.exp(-ts), rtol=1e-3)


def test_one_name_is_one_parameter():
    model = sx.Simulate(network(K, BACK))
    known = sx.parameters(model)
    assert known.names == ("k", "back") and len(jax.tree.leaves(known)) == 2
    loss = lambda known: jnp.sum(known.into(model)(Y0, TS).ys)
    gradient = jax.grad(loss)(known).coordinates
    each = jax.grad(lambda model: jnp.sum(model(Y0, TS).ys))(model)
    both = [p.coordinate for p in each.field.laws[1:] for p in p.k.parameters]
    np.testing.assert_allclose(gradient["back"], sum(both), rtol=1e-12)


def test_the_table_is_what_an_optimiser_takes():
    known = table()
    assert known.names == ("shift", "held", "back", "k")  # a dict has its keys sorted
    assert len(known.arrays) == 4 and "['net'].network.layers[0].weight" in known.arrays
    assert set(known.coordinates) == {"shift", "back", "k"}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(10.0))
    state = optimiser.init(known)
    updates, _ = updated(optimiser, jax.tree.map(jnp.ones_like, known), state, known)
    moved = optax.apply_updates(known, updates)
    inside = optax.projections.projection_box(moved, known.lower, known.upper)
    assert eqx.tree_equal(inside, moved.clipped())
    np.testing.assert_allclose(inside["shift"], -2.0)
    np.testing.assert_allclose(inside["k"], 1e-3, rtol=1e-12)
    np.testing.assert_allclose(moved.clipped()["held"], 5.0)
    placed = inside.into({"net": sx.MLPField(2, 3, 1, key=jax.random.key(0)), "k": K})
    np.testing.assert_allclose(placed["k"].value, 1e-3, rtol=1e-12)
    weight = placed["net"].network.layers[0].weight
    np.testing.assert_allclose(weight, moved.arrays["['net'].network.layers[0].weight"])
    assert "shift" in repr(known) and "float64[3, 2]" in repr(known)
    assert "Parameters(`shift`" in str(jax.eval_shape(lambda x: x, known))


@pytest.mark.parametrize("coordinates", ["natural", "estimated"])
def test_the_table_is_read_as_it_was_written(tmp_path, coordinates):
    known = table().with_values({"k": 0.123456789012345678, "shift": [0.1, 0.2]})
    known.write(tmp_path / "table.tsv")
    read = table().read(tmp_path / "table.tsv", coordinates=coordinates)
    rtol = 0 if coordinates == "estimated" else 1e-14
    for name, x in known.coordinates.items():
        np.testing.assert_allclose(read.coordinates[name], x, rtol=rtol)
    again = table().with_values(known.to_dict(coordinates=coordinates), coordinates=coordinates)
    for name, x in known.coordinates.items():
        np.testing.assert_allclose(again.coordinates[name], x, rtol=rtol)
    text = (tmp_path / "table.tsv").read_text().splitlines()
    assert text[0].split("\t")[:2] == ["parameterId", "parameterScale"] and len(text) == 6
    assert text[1].split("\t")[0] == "shift[0]" and text[5].split("\t")[4] == "0.123456789012346"


def test_coordinates_without_bounds():
    bounds = [(None, None), (0.0, None), (None, 4.0), (-1.0, 4.0)]
    each = [sx.Parameter(f"p{i}", 1.5, bounds=b) for i, b in enumerate(bounds)]
    known = sx.parameters(each)
    away = known.unbounded()
    for name, x in away.bounded().values.items():
        np.testing.assert_allclose(x, known[name], rtol=1e-12)
    far = jax.tree.map(lambda x: x + 1e3, away).bounded()
    assert eqx.tree_equal(far, far.clipped())
    slope = jax.grad(lambda z: sum(z.bounded().values.values()))(away)
    assert all(bool(x > 0) for x in jax.tree.leaves(slope))
    with pytest.raises(ValueError, match="`p3` = 4 is on a bound, -1 to 4"):
        known.with_values({"p3": 4.0}).unbounded()


@pytest.mark.parametrize(
    "prior, x, density",
    [
        (NormalPrior(1.0, 2.0), 2.0, np.exp(-0.125) / np.sqrt(8 * np.pi)),
        (LaplacePrior(1.0, 2.0), 2.0, np.exp(-0.5) / 4),
        (LogNormalPrior(2.0, 0.5), 2.0, 1 / (2.0 * 0.5 * np.sqrt(2 * np.pi))),
        (UniformPrior(1.0, 3.0), 2.0, 0.5),
        (UniformPrior(1.0, 3.0), 4.0, 0.0),
        (NormalPrior(0.0, 1.0, of="estimated"), np.e, np.exp(-0.5) / np.sqrt(2 * np.pi)),
    ],
)
def test_priors_are_densities(prior, x, density):
    known = sx.parameters(sx.Parameter("x", x, scale="log", prior=prior))
    np.testing.assert_allclose(jnp.exp(known.log_prior()), density, rtol=1e-12)
    assert np.isfinite(jax.grad(lambda known: known.log_prior())(known).coordinates["x"])


NO_NUMBER: Any = K
WRONG = {
    "a negative logarithm": (lambda: sx.Parameter("k", -1.0, scale="log"), "above 0, got -1"),
    "outside": (lambda: sx.Parameter("k", 2.0, bounds=(0.0, 1.0)), "2, is outside its bounds"),
    "nan": (lambda: sx.Parameter("k", np.nan), "must be finite"),
    "no bounds": (lambda: sx.Parameter("k", 1.0, bounds=(2.0, 2.0)), "lower < upper"),
    "a bound below 0": (lambda: sx.Parameter("k", 1.0, scale="log", bounds=(-1, 2)), ">= 0"),
    "no name": (lambda: sx.Parameter(" ", 1.0), "must be a word"),
    "no prior": (lambda: sx.Parameter("k", 1.0, prior="normal"), "AbstractPrior"),
    "no scale": (lambda: sx.Parameter("k", 1.0, scale="ln"), "`scale` must be"),
    "two declarations": (lambda: sx.parameters((K, sx.Parameter("k", 0.3))), "declared twice"),
    "two values": (lambda: sx.parameters((HELD, sx.Parameter("held", 4.0, estimate=False))), "two"),
    "no such name": (lambda: table().with_values({"kk": 1.0}), "Did you mean `k`"),
    "out of bounds": (lambda: table().with_values({"k": 1e5}), "outside its bounds"),
    "a wrong shape": (lambda: table().with_values({"shift": 1.0}), r"shape \(2,\)"),
    "held": (lambda: table().with_values({"held": 1.0}, coordinates="estimated"), "is held"),
    "no number": (lambda: Y0 * NO_NUMBER, "Parameter"),
    "no rate": (lambda: sx.MassAction(sx.Parameter("k", -1.0)), "number >= 0"),
    "rates": (lambda: sx.MassAction(SHIFT), "one number"),
    "no amount": (lambda: sx.Dose(0.0, 1.0, every=sx.Parameter("e", -1.0), count=2), "above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    make, words = WRONG[name]
    with pytest.raises((ValueError, TypeError, KeyError), match=words):
        make()
