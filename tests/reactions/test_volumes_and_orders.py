"""Species in compartments, orders that are not the coefficients, and numbers out of range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

HUGE = 10**400  # more than a float holds; JSON can bring it in
LONG = "x" * 600_000
LAW = sx.MassAction(0.3)


# --- volumes ----------------------------------------------------------------------------------

# 0.2 l of A and 0.8 l of B; 0.3 l of A a minute go over.
TRANSPORT = {
    "text": (["A -> B"], LAW, {"volumes": {"B": sx.Frozen(0.8), "A": jnp.array(0.2)}}),
    "a matrix": ([[-1], [1]], LAW, {"volumes": sx.Frozen([0.2, 0.8])}),
    "a divided matrix": ([[-5], [1.25]], sx.MassAction(0.3, orders={"y0": 1}), {}),
    "a divided text": (["5 A -> 1.25 B"], sx.MassAction(0.3, orders={"A": 1.0}), {}),
}


@pytest.mark.parametrize("equations, law, options", TRANSPORT.values(), ids=TRANSPORT)
def test_a_reaction_between_two_compartments(equations, law, options):
    field = sx.ReactionField(equations, [law], **options)
    np.testing.assert_allclose(field(0.0, jnp.array([0.5, 0.0]), None), [-0.75, 0.1875], rtol=1e-15)
    total = field.conserved.value[0] @ [1.0, 1.0]
    np.testing.assert_allclose(field.conserved.value / total, [[0.2, 0.8]], rtol=1e-15)


def test_every_row_is_divided_by_its_volume():
    """Catalysts, inputs, several orders; the same for the hybrids that change rates, and in other
    coordinates."""
    volumes = {"A": 0.3, "B": 0.3, "C": 0.7, "D": 1e-3}
    texts = ["A + B <-> 2 C", "C + drug -> D", "D + B -> A + 2 B", "B -> 0"]
    laws = [(LAW, sx.MassAction("off")), LAW, sx.MichaelisMenten(1.0, 0.2, of="D"), LAW]
    made = lambda **options: sx.ReactionField(texts, laws, inputs=["drug", "off"], **options)
    field, plain = made(volumes=volumes), made()
    args, y = {"drug": 0.4, "off": 2.0}, jnp.array([0.5, 1.5, 0.25, 0.75])
    change = np.asarray(plain(0.0, y, args)) / list(volumes.values())
    np.testing.assert_allclose(field(0.0, y, args), change, rtol=1e-14)
    np.testing.assert_array_equal(field.rates(0.0, y, args), plain.rates(0.0, y, args))
    np.testing.assert_allclose(field.stoichiometry @ plain.rates(0.0, y, args), change, rtol=1e-14)
    assert "volumes:   A 0.3, B 0.3, C 0.7, D 0.001" in repr(field)

    closed = sx.ReactionField(texts[:2], laws[:2], inputs=["drug", "off"], volumes=volumes)
    rows = closed.conserved
    np.testing.assert_array_equal(rows, [[0.6, 0, 0.7, 1e-3], [0, 0.6, 0.7, 1e-3]])
    learned = lambda t, y, args: jnp.array([0.3, -0.2, 0.7])
    hybrids = [
        sx.HybridField(closed, learned, mode=mode)
        for mode in ("additive_rates", "multiplicative_rates")
    ]
    for dynamics in (closed, *hybrids):
        np.testing.assert_allclose(rows @ dynamics(0.0, y, args), 0, atol=1e-15)
        assert sx.LogField(dynamics).field.conserved == rows


def test_amounts_are_kept():
    field = sx.ReactionField(["A <-> B"], [(LAW, sx.MassAction(0.1))], volumes=[0.2, 0.8])
    steady = sx.find_steady_state(field, field.state({"A": 1.0}))
    total = 0.2  # of A alone; at rest 0.3 A = 0.1 B
    np.testing.assert_allclose(steady.y, np.array([1, 3]) * total / (0.2 + 3 * 0.8), rtol=1e-10)


BAD_VOLUMES = {
    "one for two": ([0.2], r"array of shape \(2,\), got \[0.2\]"),
    "a number": (0.2, "one positive and finite number for each of the 2 species"),
    "zero": ({"A": 0.2, "B": 0.0}, "positive and finite"),
    "negative": ([0.2, -0.8], "positive and finite"),
    "infinite": ([0.2, np.inf], "positive and finite"),
    "nan": ([0.2, np.nan], "positive and finite"),
    "next to zero": ([0.2, 1e-320], "positive and finite"),
    "huge": ([0.2, HUGE], "positive and finite"),
    "vectors": ({"A": [0.2, 1.0], "B": [0.8, 1.0]}, "positive and finite"),
    "no numbers": ("AB", "positive and finite"),
    "too few names": ({"A": 0.2}, "must name every species, and lacks `B`"),
    "a wrong name": ({"A": 0.2, "Bb": 0.8}, "'Bb' is no species. Did you mean `B`"),
    "a long name": ({LONG: 0.2}, "is no species"),
}


@pytest.mark.parametrize("volumes, message", BAD_VOLUMES.values(), ids=BAD_VOLUMES)
def test_volumes_that_are_none(volumes, message):
    with pytest.raises(ValueError, match=f"`volumes`.*{message}") as error:
        sx.ReactionField(["A -> B"], [LAW], volumes=volumes)
    assert len(str(error.value)) < 500


def test_traced_volumes_are_refused():
    with pytest.raises(TypeError, match="`volumes` is a traced array"):
        jax.eval_shape(lambda v: sx.ReactionField(["A -> B"], [LAW], volumes=v).volumes, np.ones(2))


# --- orders -----------------------------------------------------------------------------------

NO_ORDERS = {
    "the issue": ([[-5], [1.25]], "`5 y0 -> 1.25 y1`.*1.25 y1 is none"),
    "the same as text": (["5 A -> 1.25 B"], "1.25 B is none"),
    "backwards": (["A <-> 0.7 B"], "`0.7 B -> A`.*0.7 B is none"),
    "a divided matrix": ([[-1], [0.625]], "0.625 y1 is none"),
    "a fraction on the left": (["0.5 A -> B"], "0.5 A is none"),
    "not quite whole": ([[-1.0000000000000002], [1]], "1.0000000000000002 y0 is none"),
    "an input": (["A + 1.5 drug -> B"], "1.5 drug is none"),
    "too many to meet": (["200 A -> B"], "200 A is none"),
    "far too many": ([[-1e300], [1]], "0 y0 is none"),
}


@pytest.mark.parametrize("equations, message", NO_ORDERS.values(), ids=NO_ORDERS)
def test_coefficients_that_are_no_orders(equations, message):
    """Alone and as a factor."""
    both_ways = "<->" in str(equations)
    for law in (LAW, LAW * sx.Hill(sx.Frozen(1.0), 1.0, 2.0, of="drug")):
        with pytest.raises(ValueError, match="Reaction [12], .*" + message) as error:
            sx.ReactionField(equations, [(law, law) if both_ways else law], inputs=["drug"])
        assert "`volumes=`" in str(error.value) and "MassAction(k, orders={" in str(error.value)
        assert len(str(error.value)) < 800


# Text, law, orders: A = 0.3, B = 0.7, drug = 0.5; k = 2.
RATES = {
    "whole": (["2 A + B -> 3 B"], {}, 2 * 0.3**2 * 0.7),
    "yields": (["A + B -> 0.7 A + 0.3 C"], {}, 2 * 0.3 * 0.7),
    "halves that add up": (["0.5 A + 0.5 A -> B"], {}, 2 * 0.3),
    "from nothing": ([[0.0], [0.5]], {}, 2.0),
    "a large product": (["A -> 500 B"], {}, 2 * 0.3),
    "first order": (["5 A -> 1.25 B"], {"A": 1}, 2 * 0.3),
    "whole, and others": (["5 A + drug -> B"], {"A": 2, "drug": 1, "B": 3}, 0.3**2 * 0.7**3),
    "fractions": (["A + B -> C"], {"A": 0.5, "B": np.float32(1.5)}, 2 * 0.3**0.5 * 0.7**1.5),
    "order zero": (["A + B -> C"], {"A": 0, "B": np.int64(1)}, 2 * 0.7),
    "a catalyst that N hides": ([[-1], [0]], {"y0": 1, "y1": 1}, 2 * 0.3 * 0.7),
    "none": (["0 -> A + B"], {}, 2.0),
}


@pytest.mark.parametrize("equations, orders, rate", RATES.values(), ids=RATES)
def test_the_rate_of_mass_action(equations, orders, rate):
    law = sx.MassAction(2.0, orders=orders or None)
    field = sx.ReactionField(equations, [law], inputs={"drug": lambda t, y, args: 0.5})
    y = jnp.array([0.3, 0.7, 0.1])[: len(field.species)]
    np.testing.assert_allclose(field.rates(0.0, y, None), [rate], rtol=1e-14)
    assert field.laws is not None and field.laws[0].orders == (orders or None)


def test_derivatives_of_orders():
    """At zero, below and next to it: exact where they exist, and large where they are infinite."""
    orders = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    field = sx.ReactionField(
        ["A -> B"] * len(orders), [sx.MassAction(2.0, orders={"A": n}) for n in orders]
    )
    rates = lambda a: field.rates(0.0, jnp.stack([a, a]), None)
    at = np.array([-0.5, 0.0, 1e-12, 0.3])
    values, slopes = jax.jit(jax.vmap(lambda a: (rates(a), jax.jacfwd(rates)(a))))(at)
    for i, n in enumerate(orders):
        base = at if n % 1 == 0 else np.maximum(at, 0)
        np.testing.assert_allclose(values[:, i], 2 * base**n, rtol=1e-14)
        exists = (at != 0) | (n >= 1)
        slope = 2 * n * base[exists] ** (n - 1) if n % 1 == 0 or n > 1 else [0.0, 1e6, 0.3**-0.5]
        np.testing.assert_allclose(slopes[exists, i], slope, rtol=1e-13)
        assert (slopes[~exists, i] > 1e3).all()


def test_reactions_of_the_same_orders_are_computed_together():
    field = sx.ReactionField(
        ["A -> B", "B -> C", "C -> A"],
        [sx.MassAction(2.0, orders={name: 0.5}) for name in "AB"] + [LAW],
    )
    assert len(field.kinetics.alike) == 2
    assert "A -> B  MassAction(k=2, orders={'A': 0.5})" in repr(field)
    assert "C -> A  MassAction(k=0.3)" in repr(field)


BAD_ORDERS = {
    "negative": ({"A": -0.5}, r"`orders\['A'\]` must be a number from 0 to 100, got -0.5"),
    "nan": ({"A": np.nan}, "got nan"),
    "infinite": ({"A": np.inf}, "got inf"),
    "huge": ({"A": HUGE}, r"`orders\['A'\]` is an integer of some 400 digits"),
    "text": ({"A": "1"}, "got '1'"),
    "no reactant": ({"B": 1}, "`2 A -> B`: `orders` must name every reactant, and lacks `A`"),
    "a wrong name": ({"A": 1, "C": 1}, "needs `C`, which is neither a species nor an input"),
}


@pytest.mark.parametrize("orders, message", BAD_ORDERS.values(), ids=BAD_ORDERS)
def test_orders_that_are_none(orders, message):
    with pytest.raises(ValueError, match=message):
        sx.ReactionField(["2 A -> B"], [sx.MassAction(1.0, orders=orders)])


# --- numbers and names ------------------------------------------------------------------------


def test_a_printed_reaction_can_be_read_again():
    column = np.array([[-1 / 3], [1e-7], [-1e20], [1.0], [0.1 + 0.2]])
    law = sx.MassAction(1.0, orders={"y0": 1, "y2": 1})
    by_matrix = sx.ReactionField(column, [law])
    by_text = sx.ReactionField(
        [str(by_matrix.reactions[0])], [law], species=by_matrix.species, volumes=np.ones(5)
    )
    np.testing.assert_array_equal(by_text.stoichiometry.value, column)
    rows = by_text.conserved.value
    assert len(rows) == 4
    np.testing.assert_allclose(rows @ column / (np.abs(rows) @ np.abs(column)), 0, atol=1e-14)


def test_conserved_rows_that_whole_numbers_cannot_hold():
    texts = [f"A -> 1{'0' * 200} B", f"B -> 1{'0' * 200} C"]
    rows = sx.ReactionField(texts, lambda t, y, args: y[:2]).conserved
    np.testing.assert_array_equal(rows, [[1.0, 1e-200, 0.0]])


BAD_TEXT = {
    "huge": (f"{HUGE} A -> B", "too large for a number", "A -> B"),
    "a huge product": (f"A -> {HUGE} B", "too large for a number", "B"),
    "a huge sum": (f"{10**308} A + {9 * 10**307} A -> B", "too large for a number", "A + 9"),
    "an exponent": ("1e400 A -> B", "'1e4' may begin a number or a name", "1e400 A -> B"),
    "number or name": ("2E1 + S -> C", "'2E1' may begin a number or a name", "2E1 + S -> C"),
    "a sign": ("-1 A -> B", "'-' has no place", "-1 A -> B"),
    "a fraction": ("1/3 A -> B", "coefficients are decimals", "/3 A -> B"),
    "a long text": (f"{LONG} -> B C", "expected `\\+`", "C"),
    "a long rest": (f"A B -> {LONG}", "expected `\\+`", "B -> xxx"),
    "long lines": (f"{LONG}\n{LONG}", "one text is one reaction", None),
}


@pytest.mark.parametrize("text, message, place", BAD_TEXT.values(), ids=BAD_TEXT)
def test_errors_are_short_and_point_at_the_place(text, message, place):
    with pytest.raises(ValueError, match=message) as error:
        sx.ReactionField([text], [LAW])
    assert len(str(error.value)) < 500
    if place is not None:
        _, shown, caret = str(error.value).split("\n")
        assert shown[caret.index("^") :].startswith(place)


LONG_INPUT = {
    "text for a list": lambda: sx.ReactionField(LONG, [LAW]),
    "a matrix": lambda: sx.ReactionField([[np.nan] * 10_000], [LAW]),
    "a huge matrix": lambda: sx.ReactionField([[HUGE], [1]], [LAW]),
    "a longer integer": lambda: sx.ReactionField([[10**5000], [1]], [LAW]),
    "species": lambda: sx.ReactionField(["A -> B"], [LAW], species=[LONG, LONG]),
    "no species": lambda: sx.ReactionField([f"A -> {LONG}"], [LAW], species=["A"]),
    "many species": lambda: sx.ReactionField(
        ["A -> B"], [LAW], species=[f"s{i}" for i in range(100_000)]
    ),
    "inputs": lambda: sx.ReactionField(["A -> B"], [LAW], inputs=[LONG + " "]),
    "no law": lambda: sx.ReactionField(["A -> B"], [LONG]),
    "laws": lambda: sx.ReactionField([f"A -> {LONG}"], [(LAW,) * 10_000]),
    "a long reaction": lambda: sx.ReactionField([f"{LONG} + A -> B"], [sx.Hill(1.0, 1.0, 2.0)]),
    "a constant": lambda: sx.MassAction(HUGE),
    "a longer constant": lambda: sx.MassAction(10**5000),
    "an infinite size": lambda: sx.NeuralRate(("A",), size=np.inf, key=jax.random.key(0)),
    "args": lambda: sx.ReactionField(["A -> B"], [sx.MassAction("k")], inputs=["k"])(
        0.0, jnp.ones(2), {LONG: 1.0}
    ),
    "a name": lambda: sx.ReactionField(["A -> B"], [LAW]).state({LONG: 1.0}),
    "a value": lambda: sx.ReactionField(["A -> B"], [LAW]).state({"A": HUGE}),
}


@pytest.mark.parametrize("use", LONG_INPUT.values(), ids=LONG_INPUT)
def test_no_input_makes_a_long_or_raw_error(use):
    with pytest.raises((ValueError, TypeError)) as error:
        use()
    assert len(str(error.value)) < 700
    assert "set_int_max_str_digits" not in str(error.value)


def test_an_integer_beyond_all_floats_is_named():
    field = sx.ReactionField(["A -> B"], [LAW])
    model, y0 = sx.Simulate(field), field.state({"A": 1.0})
    uses = {
        r"`y0\[1\]`": lambda: model([1.0, HUGE], [1.0]),
        r"`ts\[0\]`": lambda: model(y0, [HUGE]),
        "`t0`": lambda: model(y0, [1.0], t0=HUGE),
        r"`args\['k'\]`": lambda: model(y0, [1.0], args={"k": HUGE}),
    }
    for name, use in uses.items():
        with pytest.raises(ValueError, match=f"{name} is an integer of some 400 digits"):
            use()


def test_a_mapping_is_no_state():
    field = sx.ReactionField(["A -> B"], [LAW])
    y0 = {"A": 1.0, "B": 0.0}
    uses = [lambda: field(0.0, y0, None), lambda: sx.Simulate(field)(y0, [1.0])]
    uses += [lambda: sx.find_steady_state(field, y0), lambda: sx.LogField(field)(0.0, y0, None)]
    for use in uses:
        with pytest.raises(ValueError, match=r"state of shape \(2,\), got dict. `field.state\({"):
            use()
