"""Reaction networks: what the text says, what the laws give, and what is conserved."""

import importlib
import operator
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import ROOT, richardson

import stablax as sx
from stablax import problems

ONE = sx.Frozen(1.0)


DOSE = 100.0  # of the problem [nM]


@pytest.fixture(scope="module")
def example():
    folder = str(ROOT / "docs" / "examples")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("insulin_signalling")
    finally:
        sys.path.remove(folder)


# --- the insulin model ------------------------------------------------------------------------

SPECIES = ("IR", "IRins", "IRp", "IRiP", "IRi", "IRS", "IRSiP", "X", "Xp")
INSULIN = (
    "IR + insulin -> IRins",
    "IR -> IRins",
    "IRins -> IR",
    "IRins -> IRp",
    "IRp -> IRiP",
    "IRiP -> IRi",
    "IRiP -> IRi",
    "IRp -> IR",
    "IRi -> IR",
    "IRS + IRp -> IRSiP + IRp",
    "IRS + IRiP -> IRSiP + IRiP",
    "X + IRSiP -> Xp + IRSiP",
    "IRSiP -> IRS",
    "Xp -> X",
)


def insulin(k, inputs: Any = ("insulin",)) -> sx.ReactionField:
    laws: list[Any] = [sx.MassAction(x) for x in k]
    laws[6] = laws[6] * sx.MichaelisMenten(ONE, ONE, of="Xp")
    return sx.ReactionField(INSULIN, laws, species=SPECIES, inputs=inputs)


def test_the_insulin_model_of_the_problems():
    problem = problems.INSULIN

    @jax.jit
    def both(k, y):
        ours = insulin(k)(0.0, y, {"insulin": DOSE})
        return ours, problem.field(0.0, y, k)

    keys = jr.split(jr.key(0), 100)
    k = jnp.asarray(problem.args)[None] * jnp.exp(jr.normal(keys[0], (100, 14)))
    y = jnp.exp(3 * jr.normal(keys[1], (100, 9)))
    ours, theirs = jax.vmap(both)(k, y)
    fluxes = jax.vmap(lambda k, y: jnp.max(k * jnp.max(y) ** 2))(k, y)
    np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-15 * float(fluxes.max()))


def test_the_insulin_model_of_the_example(example):
    """With its two steps of insulin as an input, and the constant of k22 relative to k21."""
    steps = lambda t, y, args: jnp.sum(jnp.where(t >= args[1], args[0], 0.0))
    log_k = jnp.log10(jnp.array(example.PUBLISHED))
    hand = example.InsulinField(log_k)
    ours = insulin(10.0 ** (example.RELATIVE @ log_k), {"insulin": steps})
    condition = (jnp.array([1.2, 8.8]), jnp.array([0.0, 4.0]))
    y = jnp.exp(jr.normal(jr.key(2), (20, 9)))
    for t in (-1.0, 1.0, 5.0):
        pair = jax.vmap(lambda y, t=t: (ours(t, y, condition), hand(t, y, condition)))(y)
        np.testing.assert_allclose(*pair, rtol=1e-12, atol=1e-12 * float(jnp.abs(pair[1]).max()))
    np.testing.assert_array_equal(ours.stoichiometry.value, example.STOICHIOMETRY)
    assert {tuple(row) for row in ours.conserved.value} == {tuple(x) for x in example.CONSERVED}


def test_the_insulin_model_brings_its_totals():
    """No `conserved=` anywhere; the rest is the published state without insulin."""
    field = insulin(problems.INSULIN.args)
    y0 = field.state({"IR": 10.0, "IRS": 10.0, "X": 10.0})
    model = sx.SteadyThenSimulate(field, method=sx.PseudoTransient())
    simulation = model(y0, [1.0, 30.0], steady_args={"insulin": 0.0}, args={"insulin": 100.0})
    np.testing.assert_allclose(simulation.steady.y, problems.INSULIN.y0, rtol=1e-9)
    for y in (simulation.steady.y, *simulation.ys):
        np.testing.assert_allclose(field.conserved @ y, [10.0, 10.0, 10.0], rtol=1e-10)


# --- text -------------------------------------------------------------------------------------

READ = {
    "A + 2 B -> C": ["A + 2 B -> C"],
    "2A->.5B": ["2 A -> 0.5 B"],
    "A + A → B": ["2 A -> B"],
    "0 -> A": ["0 -> A"],
    "A_1 -> ∅": ["A_1 -> 0"],
    "A <-> B": ["A -> B", "B -> A"],
    "A + E <=> C": ["A + E -> C", "C -> A + E"],
    "α ⇌ 3 β": ["α -> 3 β", "3 β -> α"],
}


@pytest.mark.parametrize("text, reactions", READ.items(), ids=READ)
def test_text_is_read(text, reactions):
    law = sx.NeuralRate(("time",), key=jr.key(0))  # fits every reaction
    rates = [law] if len(reactions) == 1 else [(law, law)]
    field = sx.ReactionField([text], rates, inputs={"time": lambda t, y, args: t})
    assert [str(reaction) for reaction in field.reactions] == reactions


WRONG = {
    "A + -> B": ("a species is missing", 4),
    "A + B ->": ("a species is missing", 8),
    "-> B": ("a species is missing", 0),
    "2 -> B": ("a species is missing", 2),
    "A B -> C": ("expected `\\+` or an arrow after A", 2),
    "A -> B 2": ("expected `\\+` or an arrow after B", 7),
    "A + B": ("no arrow", 5),
    "A = B": ("'=' has no place", 2),
    "A -> B -> C": ("a second arrow", 7),
    "A -> 0 B": ("a coefficient of 0", 5),
    "0 + A -> B": ("a coefficient of 0", 0),
    "A + $ -> B": (r"'\$' has no place", 4),
    "A + B -> B + A": ("nothing reacts", 6),
    "A -> drug": ("the input `drug` cannot be produced", 5),
    "A -> Bb": ("`Bb` is neither in `species` nor in `inputs`. Did you mean `B`", 5),
}


@pytest.mark.parametrize("text, wrong", WRONG.items(), ids=WRONG)
def test_an_error_points_at_the_text(text, wrong):
    message, position = wrong
    with pytest.raises(ValueError, match=message) as error:
        sx.ReactionField(
            ["A -> B", text],
            [sx.MassAction(1.0)] * 2,
            species=["A", "B", "C"],
            inputs=["drug"],
        )
    first, shown, caret = str(error.value).split("\n")
    assert first.startswith("Reaction 2: ")
    assert shown == "    " + text
    assert caret == " " * (4 + position) + "^"


MISFITS = {
    "one law too few": (["A -> B", "B -> A"], [sx.MassAction(1.0)], "1 rate laws for 2 reactions"),
    "no pair": (["A <-> B"], [sx.MassAction(1.0)], "is reversible: it needs a pair"),
    "a pair": (["A -> B"], [(sx.MassAction(1.0),) * 2], "goes one way"),
    "no law": (["A -> B"], [1.0], "must be a rate law"),
    "two substrates": (["A + B -> C"], [sx.MichaelisMenten(1.0, 1.0)], "`A \\+ B -> C`: .*`of="),
    "half an order": (["0.5 A -> B"], [sx.MassAction(1.0)], "whole coefficients"),
    "unknown name": (["A -> B"], [sx.Hill(1.0, 1.0, 2.0, of="AA")], "`AA`.*Did you mean `A`"),
    "unknown constant": (
        ["A -> B"],
        [sx.MassAction("k")],
        "MassAction needs `k`, which is neither",
    ),
    "several lines": (["A -> B\nB -> A"], [sx.MassAction(1.0)], "one text is one reaction"),
    "no reaction": ([], [], "must be a list of reactions"),
}


@pytest.mark.parametrize("texts, rates, message", MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_named(texts, rates, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sx.ReactionField(texts, rates)


def test_other_bad_input():
    law = [sx.MassAction(1.0)]
    with pytest.raises(TypeError, match=r'such as `\["A -> B"\]`'):
        sx.ReactionField("A -> B", law)
    with pytest.raises(TypeError, match=r'such as `\("dose",\)`'):
        sx.ReactionField(["A -> B"], law, inputs="dose")
    with pytest.raises(ValueError, match="names `A` twice"):
        sx.ReactionField(["A -> B"], law, species=["A", "B", "A"])
    with pytest.raises(ValueError, match="is a species and an input"):
        sx.ReactionField([[1.0]], law, species=["A"], inputs=["A"])
    with pytest.raises(ValueError, match="every name in them is an input"):
        sx.ReactionField(["A -> 0"], law, inputs=["A"])
    with pytest.raises(TypeError, match="traced array"):
        jax.jit(lambda n: sx.ReactionField(n, law)(0.0, jnp.ones(1), None))(jnp.ones((1, 1)))
    for bad in (0.0, -1.0, np.nan, np.inf, [1.0, 2.0]):
        with pytest.raises(ValueError, match="rate constant"):
            sx.MassAction(bad)
    with pytest.raises(ValueError, match="held"):
        sx.MassAction(sx.Frozen(-1.0))
    with pytest.raises(ValueError, match="`of` must name"):
        sx.NeuralRate("A", key=jr.key(0))
    with pytest.raises(TypeError, match="multiplied by a rate law"):
        operator.mul(sx.MassAction(1.0), 2.0)
    field = sx.ReactionField(["A -> B"], law)
    with pytest.raises(ValueError, match=r"state of shape \(2,\), got \(3,\)"):
        field(0.0, jnp.ones(3), None)


# --- rate laws: the truth in closed form ------------------------------------------------------


def _rates(text, law, **options):
    field = sx.ReactionField([text], [law], **options)
    return lambda y, args=None: field.rates(0.0, jnp.asarray(y), args)[0]


def test_mass_action_and_its_derivatives():
    """At zero, too."""
    rate = _rates("A + 3 B -> C", sx.MassAction(2.0))

    @jax.jit
    @jax.vmap
    def derivatives(y):
        return rate(y), jax.grad(rate)(y), jax.hessian(rate)(y)

    a, b = np.array([[0.0, 0.0, 3.0, 3.0], [0.0, 2.0, 0.0, 2.0]])
    o = np.zeros(4)
    expected = (
        2 * a * b**3,
        np.stack([2 * b**3, 6 * a * b**2, o], axis=1),
        np.moveaxis(np.array([[o, 6 * b**2, o], [6 * b**2, 12 * a * b, o], [o, o, o]]), 2, 0),
    )
    for ours, truth in zip(derivatives(np.stack([a, b, o], axis=1)), expected, strict=True):
        np.testing.assert_allclose(ours, truth, rtol=1e-15)


def _hill(s, vmax, k, n, represses):
    """Value and derivatives in s, vmax, k, n."""
    a, b = s**n, k**n
    top = b if represses else a
    sign = -1 if represses else 1
    by_s = sign * vmax * n * (s ** (n - 1)) * b / (a + b) ** 2
    by_k = -sign * vmax * n * a * k ** (n - 1) / (a + b) ** 2
    by_n = sign * vmax * a * b * (np.log(s / k) if s > 0 else 0.0) / (a + b) ** 2
    return vmax * top / (a + b), (by_s, top / (a + b), by_k, by_n)


@pytest.mark.parametrize("represses", [False, True])
def test_hill_and_its_derivatives(represses):
    def rate(s, vmax, k, n):
        law = sx.Hill(vmax, k, n, represses=represses)
        return _rates("A -> B", law)(jnp.stack([s, jnp.zeros_like(s)]))

    slopes = jax.jit(jax.vmap(jax.value_and_grad(rate, argnums=(0, 1, 2, 3))))
    given = np.array(
        [(s, 1.3, 0.7, n) for n in (1.0, 1.5, 2.0, 7.3) for s in (0.0, 1e-12, 0.3, 0.7, 20.0)]
    )
    ours, truth = slopes(*given.T), [_hill(*row, represses) for row in given]
    np.testing.assert_allclose(ours[0], [value for value, _ in truth], rtol=1e-13)
    for i in range(4):
        np.testing.assert_allclose(
            ours[1][i], [slope[i] for _, slope in truth], rtol=1e-11, atol=1e-300
        )
    # Where s**n overflows, in value and in derivative, and below zero; nan is not hidden.
    limits = slopes(np.array([1e300, -1.0, np.nan]), *np.tile([[1.3], [0.7], [7.3]], 3))
    np.testing.assert_allclose(limits[0][:2], [0, 1.3] if represses else [1.3, 0], atol=1e-290)
    assert np.isfinite(np.array(limits[1])[:, :2]).all()
    assert np.isnan(limits[0][2])


def test_michaelis_menten():
    rate = _rates("S + E -> P + E", sx.MichaelisMenten(2.0, 0.5, enzyme="E"), species="SEP")
    y = np.array([0.3, 1.7, 0.0])
    np.testing.assert_allclose(rate(y), 2 * 1.7 * 0.3 / 0.8, rtol=1e-15)
    slope = [2 * 1.7 * 0.5 / 0.8**2, 2 * 0.3 / 0.8, 0]
    np.testing.assert_allclose(jax.grad(rate)(jnp.asarray(y)), slope, rtol=1e-14)


def test_a_product_of_laws():
    law = sx.MassAction(2.0) * sx.Hill(ONE, 0.5, 2.0, of="C") * sx.MichaelisMenten(3.0, 1.0, of="B")
    rate = _rates("A -> B", law, species=["A", "B", "C"])
    expected = 2 * 0.3 * (0.16 / (0.25 + 0.16)) * (3 * 0.7 / 1.7)
    np.testing.assert_allclose(rate([0.3, 0.7, 0.4]), expected, rtol=1e-14)


def test_a_neural_law_is_positive_and_starts_at_its_scale():
    law = sx.NeuralRate(("A", "B"), key=jr.key(0), scale=0.2, size=3.0)
    rate = _rates("A -> B", law)
    y = jnp.exp(3 * jr.normal(jr.key(1), (200, 2)))
    rates = jax.vmap(rate)(y)
    np.testing.assert_allclose(rates, 0.2, rtol=0.2)
    wild = jax.tree.map(lambda x: 20 * jr.normal(jr.key(2), x.shape), law)
    assert (jax.vmap(_rates("A -> B", wild))(y) >= 0).all()
    assert (jax.vmap(_rates("A -> B", sx.MassAction(1.0) * wild))(y.at[:, 0].set(0)) == 0).all()


class Inhibited(sx.AbstractRateLaw):
    """A law by a third party."""

    vmax: Any = eqx.field(converter=sx.rate_constant)
    km: Any = eqx.field(converter=sx.rate_constant)
    ki: Any = eqx.field(converter=sx.rate_constant)
    inhibitor: Any = eqx.field(converter=sx.rate_constant)
    extra: jax.Array

    def reads(self, reaction):
        return {"substrate": reaction.names[0]}

    def rate(self, x):
        s = x["substrate"]
        apparent = self.km * (1 + self.inhibitor / self.ki)
        return self.vmax * s / (apparent + s) + jnp.sum(self.extra)


def test_a_law_by_a_third_party():
    field = sx.ReactionField(
        ["A -> B", "B -> A", "A -> 0"],
        [
            Inhibited(1.0, 2.0, 0.5, "I", jnp.array([0.0, 0.1])),
            Inhibited(3.0, 4.0, 0.6, "A", jnp.array([0.0, 0.0])),
            Inhibited(3.0, sx.Frozen(4.0), "drug", "I", jnp.array([0.2, 0.0])),
        ],
        inputs={"I": lambda t, y, args: args * y["B"], "drug": lambda t, y, args: t},
    )
    a, b, i, t = 0.3, 0.7, 2 * 0.7, 0.9
    expected = [
        a / (2 * (1 + i / 0.5) + a) + 0.1,
        3 * b / (4 * (1 + a / 0.6) + b),
        3 * a / (4 * (1 + i / t) + a) + 0.2,
    ]
    np.testing.assert_allclose(field.rates(t, jnp.array([a, b]), 2.0), expected, rtol=1e-14)
    assert len(field.kinetics.alike) == 2  # the first two differ in numbers and names alone
    assert "Inhibited(vmax=3, km=4 (held), ki='drug', inhibitor='I'" in repr(field)
    logs = {float(x) for x in jax.tree.leaves(field.laws[0]) if x.ndim == 0}
    np.testing.assert_allclose(sorted(logs), np.log([0.5, 1.0, 2.0]), atol=1e-15)


# --- the field --------------------------------------------------------------------------------


def test_rates_are_computed_together():
    """POLLU: 25 reactions are as many operations as 4, and its field is that of the problems."""
    network = problems.NETWORKS["POLLU"]

    def made(k):
        names = [f"s{i}" for i in range(20)]
        texts = []
        for change, used in zip(network.change.T, network.used.T, strict=True):
            left = [int(u) - 1 for u in used if u > 0]
            right = np.repeat(np.arange(20), (change + np.bincount(left, minlength=20)).astype(int))
            side = lambda s: " + ".join(names[i] for i in s) or "0"
            texts.append(f"{side(left)} -> {side(right)}")
        return sx.ReactionField(texts, [sx.MassAction(x) for x in k], species=names)

    field = made(problems.POLLU.args)
    y = jnp.exp(jr.normal(jr.key(0), (20,)))
    expected = problems.POLLU.field(0.0, y, problems.POLLU.args)
    np.testing.assert_allclose(field(0.0, y, None), expected, rtol=1e-11)

    small = sx.ReactionField(
        ["A -> B", "B -> A", "A + B -> B", "2 A -> B"], [sx.MassAction(1.0)] * 4
    )
    count = lambda field, y: len(jax.make_jaxpr(lambda y: field.rates(0.0, y, None))(y).eqns)
    assert count(field, y) == count(small, y[:2])


def test_leaves_are_the_logarithms_of_the_trained_constants():
    field = sx.ReactionField(
        ["A -> B", "B -> A", "A -> 0", "0 -> A"],
        [sx.MassAction(2.0), sx.MassAction(3.0), sx.MassAction(sx.Frozen(4.0)), sx.MassAction("k")],
        inputs=["k"],
    )
    (leaf,) = jax.tree.leaves(field)
    np.testing.assert_allclose(leaf, np.log([2.0, 3.0]))
    y = jnp.array([0.5, 0.25])
    loss = lambda field: field(0.0, y, {"k": 5.0})[0]
    (slope,) = jax.tree.leaves(jax.grad(loss)(field))
    np.testing.assert_allclose(slope, [-1.0, 0.75])  # in log k: the rates themselves
    np.testing.assert_allclose(loss(field), -1.0 + 0.75 - 2.0 + 5.0)
    np.testing.assert_allclose(field.rates(0.0, y, {"k": 5.0}), [1.0, 0.75, 2.0, 5.0])


def test_conditions_change_inputs_and_constants():
    field = sx.ReactionField(
        ["A + dose -> B", "B -> A"],
        [sx.MassAction(2.0), sx.MassAction("off")],
        inputs=["dose", "off"],
    )
    model = sx.SteadyThenSimulate(field, method=sx.PseudoTransient())
    y0 = field.state({"A": 1.0})
    before, after = {"dose": 0.5, "off": 3.0}, {"dose": 4.0, "off": 2.0}
    simulation = model(y0, [0.1, 9.0], steady_args=before, args=after)
    np.testing.assert_allclose(simulation.steady.y, [0.75, 0.25], rtol=1e-9)
    np.testing.assert_allclose(simulation.ys[-1], [0.2, 0.8], rtol=1e-5)
    b = 0.8 + (0.25 - 0.8) * np.exp(-10 * 0.1)
    np.testing.assert_allclose(field.by_name(simulation.ys)["B"][0], b, rtol=1e-4)
    for args, said in ((None, "is None"), ({"dose": 1.0}, "has 'dose'"), (3.0, "is 3.0")):
        with pytest.raises(ValueError, match=f"input `(off|dose)` is looked up in `args`.*{said}"):
            field(0.0, y0, args)
    with pytest.raises(ValueError, match=r"input `dose` must be a number, got shape \(2,\)"):
        field(0.0, y0, {"dose": jnp.ones(2), "off": 1.0})


class Feedback(eqx.Module):
    strength: jax.Array

    def __call__(self, t, y, args):
        return self.strength * y["B"]


def test_an_input_that_is_a_module_is_trained():
    field = sx.ReactionField(
        ["A + feedback -> B"],
        [sx.MassAction(2.0)],
        # Not in the order of the alphabet.
        inputs={"unused": lambda t, y, args: 0.0, "feedback": Feedback(jnp.array(0.5))},
    )
    assert field.inputs == ("unused", "feedback")
    y = jnp.array([3.0, 4.0])
    slope = jax.grad(lambda field: field(0.0, y, None)[1])(field)
    assert sorted(float(x.sum()) for x in jax.tree.leaves(slope)) == pytest.approx([12.0, 24.0])


def test_an_input_that_misspells_a_species():
    field = sx.ReactionField(
        ["A + drug -> B"], [sx.MassAction(1.0)], inputs={"drug": lambda t, y, args: y["AA"]}
    )
    with pytest.raises(KeyError, match="`AA` is no species. Did you mean `A`"):
        field(0.0, jnp.ones(2), None)


def test_a_matrix_and_one_function_for_all_rates():
    matrix = [[-1, 1, 0], [-1, 1, 0], [1, -1, -1], [0, 0, 2]]
    rates = lambda t, y, args: args * jnp.stack([y[0] * y[1], y[2], y[2]])
    k = jnp.array([2.0, 0.5, 0.3])
    by_function = sx.ReactionField(matrix, rates)
    by_laws = sx.ReactionField(matrix, [sx.MassAction(x) for x in k])
    y = jnp.array([1.0, 0.4, 0.2, 0.1])
    expected = np.array(matrix) @ [2 * 0.4, 0.5 * 0.2, 0.3 * 0.2]
    np.testing.assert_allclose(by_function(0.0, y, k), expected, rtol=1e-14)
    np.testing.assert_allclose(by_laws(0.0, y, None), expected, rtol=1e-14)
    assert by_laws.species == ("y0", "y1", "y2", "y3")
    assert str(by_laws.reactions[2]) == "y2 -> 2 y3"
    np.testing.assert_array_equal(by_laws.conserved @ np.array(matrix), 0)
    assert len(by_laws.conserved) == 2 and by_function.laws is None
    with pytest.raises(ValueError, match=r"one rate for each of the 3 reactions, got shape \(2,\)"):
        sx.ReactionField(matrix, lambda t, y, args: y[:2])(0.0, y, None)


def test_state_and_trajectory_by_name():
    field = sx.ReactionField(["A -> B", "B -> C"], [sx.MassAction(1.0)] * 2)
    np.testing.assert_array_equal(field.state({"C": 3.0, "A": 1.0}), [1.0, 0.0, 3.0])
    np.testing.assert_array_equal(field.state({"C": 3.0}, default=0.5), [0.5, 0.5, 3.0])
    ys = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(field.by_name(ys)["B"], [1.0, 4.0])
    assert field.index("C") == 2
    for use in (lambda: field.state({"AA": 1.0}), lambda: field.index("AA")):
        with pytest.raises(ValueError, match="`AA` is no species. Did you mean `A`"):
            use()
    with pytest.raises(ValueError, match="3 components on its last axis"):
        field.by_name(ys.T)


def test_repr():
    field = sx.ReactionField(
        ["A + 2 B <-> C", "C + drug -> A", "0 -> B", "B -> 0"],
        [
            (sx.MassAction(2.0), sx.MassAction("off")),
            sx.MassAction(sx.Frozen(0.3)) * sx.NeuralRate(("A", "drug"), key=jr.key(2)),
            sx.Hill(0.4, 0.7, 2.5, of="C", represses=True),
            sx.MichaelisMenten(1.0, 0.5),
        ],
        inputs=("drug", "off"),
    )
    assert (
        repr(field)
        == """\
ReactionField: 3 species, 5 reactions
  species:   A, B, C
  inputs:    drug, off
  conserved: A + C
  A + 2 B -> C   MassAction(k=2)
  C -> A + 2 B   MassAction(k='off')
  C + drug -> A  MassAction(k=0.3 (held)) * NeuralRate(scale=1 (held), of=('A', 'drug'), size=1.0)
  0 -> B         Hill(vmax=0.4, k=0.7, n=2.5, of='C', represses=True)
  B -> 0         MichaelisMenten(vmax=1, km=0.5)"""
    )


def test_made_under_transformations():
    """From traced constants, and as an ensemble."""

    def made(k):
        return sx.ReactionField(["A -> B", "B -> A"], [sx.MassAction(k), sx.MassAction(2.0)])

    y = jnp.array([0.5, 0.25])
    slope = jax.jit(jax.grad(lambda k: made(k)(0.0, y, None)[0]))(3.0)
    np.testing.assert_allclose(slope, -0.5, rtol=1e-14)
    ensemble = eqx.filter_vmap(made)(jnp.array([1.0, 3.0]))
    rates = eqx.filter_vmap(lambda field: field.rates(0.0, y, None))(ensemble)
    np.testing.assert_allclose(rates, [[0.5, 0.5], [1.5, 0.5]], rtol=1e-14)
    assert "A -> B  MassAction" in repr(ensemble)
    assert hash(jax.tree.structure(made(1.0))) == hash(jax.tree.structure(made(2.0)))


def test_a_gradient_from_a_state_of_zeros():
    """Fractional Hill coefficients and third-order reactions, all species but one at zero."""

    @jax.jit
    @jax.value_and_grad
    def loss(log_k):
        k = jnp.exp(log_k)
        field = sx.ReactionField(
            ["A -> B", "3 B -> C", "0 -> C"],
            [sx.Hill(k[0], k[1], 1.5), sx.MassAction(k[2]), sx.Hill(k[3], 0.5, 2.5, of="B")],
        )
        controller = sx.StiffPID.preset("precise")
        model = sx.Simulate(field, controller=controller)
        return jnp.sum(jnp.sin(model(field.state({"A": 1.0}), [0.3, 2.0]).ys))

    log_k = jnp.log(jnp.array([2.0, 0.5, 3.0, 0.7]))
    exact = richardson(lambda x: loss(jnp.asarray(x))[0], np.asarray(log_k))
    np.testing.assert_allclose(loss(log_k)[1], exact, rtol=1e-5)
