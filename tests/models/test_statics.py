"""What a model holds without training it: constants, options, and the rest of a field."""

import operator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import Counted, updated

import stablax as sx
from stablax._static import Split, Static

MODELS = [sx.Simulate, sx.SteadyThenSimulate, sx.SimulatePhases]
CONSTANT = np.array([[1.0, 2.0], [3.0, 4.0]])
OTHER = np.array([[0.5, 2.0], [1.0, 3.0]])


# --- Frozen: a value


@pytest.mark.parametrize(
    "same",
    [CONSTANT, CONSTANT.tolist(), jnp.asarray(CONSTANT), np.asfortranarray(CONSTANT)],
    ids=["numpy", "list", "jax", "column-major"],
)
def test_frozen_is_equal_by_content(same):
    assert sx.Frozen(same) == sx.Frozen(CONSTANT)
    assert hash(sx.Frozen(same)) == hash(sx.Frozen(CONSTANT))
    assert sx.Frozen(sx.Frozen(same)) == sx.Frozen(CONSTANT)
    assert sx.Frozen([np.nan, 1.0]) == sx.Frozen([np.nan, 1.0])


@pytest.mark.parametrize(
    "other",
    [OTHER, CONSTANT.T, CONSTANT.ravel(), CONSTANT.astype(np.float32), CONSTANT.astype(int)],
    ids=["value", "order", "shape", "precision", "kind"],
)
def test_frozen_differs_by_content(other):
    assert sx.Frozen(other) != sx.Frozen(CONSTANT)
    assert sx.Frozen([0.0]) != sx.Frozen([-0.0])


def test_frozen_is_a_copy_that_cannot_be_written():
    array = CONSTANT.copy()
    frozen = sx.Frozen(array)
    array[0, 0] = 7.0
    assert frozen == sx.Frozen(CONSTANT)
    with pytest.raises(ValueError, match="read-only"):
        frozen.value[0, 0] = 7.0


@pytest.mark.parametrize("bad", [None, "name", object()], ids=["None", "str", "object"])
def test_frozen_takes_numbers_only(bad):
    with pytest.raises(TypeError, match="array of numbers"):
        sx.Frozen(bad)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "pack", [lambda x: x, lambda x: [x, 1.0], lambda x: (1.0, x)], ids=["array", "list", "tuple"]
)
def test_a_traced_array_cannot_be_frozen(transform, pack):
    argument = jnp.array([1.0, 2.0]) if transform is jax.vmap else jnp.array(1.0)
    with pytest.raises(TypeError, match=r"tuple or an `np\.array`"):
        transform(lambda x: jnp.sum(jnp.asarray(sx.Frozen(pack(x)))))(argument)


# --- Frozen: usable as an array

OPERATORS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.matmul,
]


KINDS = {
    "numpy": lambda x: x,
    "jax": jnp.asarray,
    "jit": jnp.asarray,
    "Frozen": sx.Frozen,
    "float": lambda x: 1.5,
    "np.float64": lambda x: np.float64(1.5),
}


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        (op, kind)
        for op in OPERATORS
        for kind in KINDS
        if op is not operator.matmul or "float" not in kind
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_arithmetic(op, kind, side):
    given = KINDS[kind](OTHER)
    other = 1.5 if "float" in kind else OTHER
    frozen = sx.Frozen(CONSTANT)

    def apply(x):
        return op(frozen, x) if side == "left" else op(x, frozen)

    result = jax.jit(apply)(given) if kind == "jit" else apply(given)
    expected = op(CONSTANT, other) if side == "left" else op(other, CONSTANT)
    assert isinstance(result, jax.Array if kind in ("jax", "jit") else np.ndarray)
    np.testing.assert_allclose(result, expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("ours", "truth"),
    [
        (lambda f: -f, -CONSTANT),
        (lambda f: f[0], CONSTANT[0]),
        (lambda f: f[:, 1], CONSTANT[:, 1]),
        (lambda f: f[..., None], CONSTANT[..., None]),
        (lambda f: f[np.array([1, 0])], CONSTANT[::-1]),
        (lambda f: f[jnp.array([1, 0])], CONSTANT[::-1]),
        (lambda f: jax.jit(lambda i: f[i])(1), CONSTANT[1]),
        (lambda f: jax.jit(lambda i: f[i, 0])(jnp.array([1, 0])), CONSTANT[::-1, 0]),
        (lambda f: jax.vmap(lambda i: f[i])(jnp.array([1, 0])), CONSTANT[::-1]),
        (lambda f: jnp.stack(list(f)), CONSTANT),
        (lambda f: f.T, CONSTANT.T),
        (lambda f: np.array([len(f), f.ndim, *f.shape]), np.array([2, 2, 2, 2])),
        (lambda f: jnp.exp(f), np.exp(CONSTANT)),
        (lambda f: np.exp(f), np.exp(CONSTANT)),
        (lambda f: jnp.sum(f, axis=0), CONSTANT.sum(0)),
        (lambda f: jnp.where(f.value > 2, f, 0), np.where(CONSTANT > 2, CONSTANT, 0)),
        (lambda f: jnp.concatenate([f, f]), np.concatenate([CONSTANT, CONSTANT])),
        (lambda f: jnp.einsum("ij,j->i", f, jnp.ones(2)), CONSTANT.sum(1)),
        (lambda f: jnp.linalg.solve(f, jnp.ones(2)), np.linalg.solve(CONSTANT, np.ones(2))),
        (lambda f: jnp.asarray(f), CONSTANT),
        (lambda f: np.asarray(f, np.float32), CONSTANT.astype(np.float32)),
    ],
)
def test_indexing_and_functions(ours, truth):
    result = ours(sx.Frozen(CONSTANT))
    assert isinstance(result, jax.Array | np.ndarray)
    np.testing.assert_allclose(np.asarray(result), truth, rtol=1e-12)


def test_derivatives_pass_frozen_by():
    frozen = sx.Frozen(CONSTANT)
    gradient = jax.grad(lambda x: jnp.sum(x @ frozen))(jnp.ones(2))
    np.testing.assert_allclose(gradient, CONSTANT.sum(1))
    batch = jax.vmap(lambda x: frozen @ x)(jnp.asarray(OTHER))
    np.testing.assert_allclose(batch, OTHER @ CONSTANT.T)


def test_integers_and_low_precision_keep_their_dtype():
    assert jnp.asarray(sx.Frozen([1, 2])).dtype == jnp.int64
    product = sx.Frozen(np.float32([1, 2])) * jnp.ones(2, jnp.float32)
    assert product.dtype == jnp.float32


# --- Frozen: in a model


class Reactions(eqx.Module):
    """dy/dt = S rates(y), with a stoichiometry that must not move."""

    log_rates: jax.Array
    stoichiometry: sx.Frozen

    def __call__(self, t, y, args):
        return self.stoichiometry @ (jnp.exp(self.log_rates) * y)


def reactions(low=-1.0) -> Reactions:
    return Reactions(jnp.array([0.5, 0.1]), sx.Frozen([[low, 1.0], [1.0, -1.0]]))


def test_frozen_is_no_leaf_and_shares_a_compilation():
    assert jax.tree.leaves(sx.Frozen(CONSTANT)) == []
    assert len(jax.tree.leaves(reactions())) == 1

    @Counted
    def velocity(field):
        return field(0.0, jnp.ones(2), None)

    compiled = jax.jit(velocity)
    np.testing.assert_allclose(compiled(reactions()), reactions()(0.0, jnp.ones(2), None))
    compiled(reactions())
    assert velocity.calls == 1
    compiled(reactions(low=-2.0))
    assert velocity.calls == 2


@pytest.mark.parametrize(
    "wrap", [lambda f: f, *MODELS], ids=["field", "Simulate", "Steady", "Phases"]
)
def test_frozen_is_never_trained(wrap):
    model = wrap(reactions())
    decay = optax.adamw(1e-2, weight_decay=0.1)
    updates, _ = updated(decay, jax.tree.map(jnp.ones_like, model), decay.init(model), model)
    trained = optax.apply_updates(model, updates)
    field, before = (getattr(m, "field", m) for m in (trained, model))
    assert field.stoichiometry == before.stoichiometry
    assert not jnp.array_equal(field.log_rates, before.log_rates)


# --- Static: any tree as a value


def tree_of_everything() -> dict[str, Any]:
    return {
        "float": 0.5,
        "name": "rate",
        "function": jnp.tanh,
        "array": jnp.arange(3.0),
        "integers": np.arange(3),
        "key": jr.key(3),
        "options": diffrax.PIDController(1e-3, 1e-6),
        "nothing": None,
    }


def test_static_has_no_leaves_and_is_equal_by_content():
    static = Static(tree_of_everything())
    assert jax.tree.leaves(static) == []
    assert static == Static(tree_of_everything())
    assert hash(static) == hash(Static(tree_of_everything()))
    assert jax.tree.structure(static) == jax.tree.structure(Static(tree_of_everything()))


@pytest.mark.parametrize(
    "change",
    [
        {"float": 0.25},
        {"name": "rates"},
        {"function": jnp.sin},
        {"array": jnp.arange(3.0).at[1].set(5.0)},
        {"array": jnp.arange(3)},
        {"array": jnp.arange(3.0).reshape(3, 1)},
        {"integers": np.arange(3, dtype=np.int32)},
        {"key": jr.key(4)},
        {"options": diffrax.PIDController(1e-3, 1e-7)},
        {"options": diffrax.ConstantStepSize()},
        {"nothing": ()},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_static_differs_by_content(change):
    assert Static(tree_of_everything()) != Static({**tree_of_everything(), **change})


@pytest.mark.parametrize(("a", "b"), [(1, 1.0), (1, True), (0.0, -0.0), (0, None), ((), [])])
def test_static_tells_python_values_apart(a, b):
    """They are equal, or look alike, and trace to different programs."""
    assert Static(a) != Static(b)


def test_static_nan_is_itself():
    assert Static(float("nan")) == Static(float("nan"))
    assert hash(Static(float("nan"))) == hash(Static(float("nan")))


def test_static_compares_what_has_no_hash_by_identity():
    class NoHash:
        __hash__ = None  # pyright: ignore[reportAssignmentType]

    one, two = NoHash(), NoHash()
    assert Static([one]) == Static([one])
    assert Static([one]) != Static([two])


def test_static_names_what_is_traced():
    def hold(x):
        Static({"table": [1.0, x]}, "field")

    with pytest.raises(TypeError, match=r"field\['table'\]\[1\]` is a traced array.*np\.array"):
        jax.jit(hold)(jnp.ones(2))


# --- Split: parameters and the rest


class Everything(eqx.Module):
    """A field as users write them: parameters among all else."""

    network: eqx.nn.MLP
    rate: jax.Array
    scale: np.ndarray
    count: int
    name: str
    exponent: float
    transform: Any
    columns: jax.Array
    noise: jax.Array
    volumes: sx.Frozen
    nested: dict[str, Any]

    def __call__(self, t, y, args):
        flow = self.network(y[self.columns]) + self.nested["offset"]
        return self.rate * self.scale * self.transform(flow) ** self.exponent / self.volumes


def everything(key) -> Everything:
    return Everything(
        network=eqx.nn.MLP(2, 2, 4, 1, key=key),
        rate=jnp.array(1.5),
        scale=np.array([1.0, 2.0]),
        count=3,
        name="everything",
        exponent=1.0,
        transform=jnp.tanh,
        columns=np.array([1, 0]),
        noise=np.asarray(jr.key_data(jr.key(0))),
        volumes=sx.Frozen([1.0, 0.5]),
        nested={"offset": jnp.array([0.1, 0.2]), "labels": ("a", "b"), "on": True},
    )


def test_split_keeps_the_tree_and_hides_all_but_parameters(key):
    field = everything(key)
    split = Split(field)
    parameters = jax.tree.leaves(eqx.filter(field, eqx.is_inexact_array))
    assert len(parameters) == 4 + 1 + 1 + 1
    for ours, theirs in zip(jax.tree.leaves(split), parameters, strict=True):
        assert isinstance(ours, jax.Array)
        np.testing.assert_array_equal(ours, theirs)
    y = jnp.array([0.3, 0.2])
    np.testing.assert_array_equal(split.tree(0.0, y, None), field(0.0, y, None))
    assert split.tree.name == "everything" and split.tree.nested["labels"] == ("a", "b")


@pytest.mark.parametrize("Model", MODELS)
@pytest.mark.parametrize("wrap", [lambda f: f, sx.Guarded], ids=["plain", "guarded"])
def test_leaves_are_parameters_whatever_the_field_holds(key, Model, wrap):
    field = wrap(everything(key))
    model = Model(field)
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(model))
    assert len(jax.tree.leaves(model)) == 7
    y = jnp.array([0.3, 0.2])
    np.testing.assert_array_equal(model.field(0.0, y, None), field(0.0, y, None))

    again = Model(wrap(everything(key)))
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert hash(jax.tree.structure(again)) == hash(jax.tree.structure(model))


@pytest.mark.parametrize("Model", MODELS)
def test_functions_are_models_without_parameters(Model):
    model = Model(lambda t, y, args: -args * y)
    assert jax.tree.leaves(model) == []
    assert sx.partition(model)[0] == model


def test_parameters_keep_one_type_under_training():
    """A parameter made of a Python number is weakly typed until its first update; that must not
    compile the model a second time."""

    class Decay(eqx.Module):
        rate: jax.Array

        def __call__(self, t, y, args):
            return -self.rate * y

    @Counted
    def loss(model):
        return jnp.sum(model.field(0.0, jnp.ones(2), None) ** 2)

    gradient = eqx.filter_jit(eqx.filter_grad(loss))
    model = sx.Simulate(Decay(jnp.array(1.5)))
    optimiser = optax.adam(0.1)
    for _ in range(2):
        updates, _ = updated(optimiser, gradient(model), optimiser.init(model), model)
        model = eqx.apply_updates(model, updates)
    assert loss.calls == 1


# --- one compilation for equal configurations


def configured(rate, rtol=1e-4, jump=0.5, guard=2.0, volume=1.0, **options):
    """A model built from new objects all over."""
    field = Counter(
        jnp.array([rate, rate]), sx.Frozen([volume, 1.0]), guard=sx.Guard(np.array([-1.0, -guard]))
    )
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol, 1e-6), jump_ts=jnp.array([jump])
    )
    return sx.Simulate(field, solver=diffrax.Heun(), controller=controller, **options)


class Counter(sx.GuardedField):
    """Counts how often Python runs it: each compilation does, at least once."""

    rate: jax.Array
    volumes: sx.Frozen

    def vector_field(self, t, y, args):
        _runs.append(type(y))
        return -self.rate * y / self.volumes


_runs: list[type] = []


def test_equal_configurations_share_one_compilation():
    y0, ts = jnp.ones(2), jnp.array([0.5, 1.0])

    def runs(model):
        before = len(_runs)
        ys = model(y0, ts).ys
        np.testing.assert_allclose(ys[-1, 1], jnp.exp(-model.field.rate[1]), rtol=1e-3)
        return len(_runs) - before

    assert runs(configured(1.0)) > 0
    assert runs(configured(2.0)) == 0  # another value of a parameter
    assert runs(eqx.tree_at(lambda m: jax.tree.leaves(m), configured(1.0), [jnp.ones(2)])) == 0
    # Tolerances, budgets and given times are data of the compiled program.
    assert runs(configured(1.0, rtol=1e-5, jump=0.25, max_steps=3000, dt0=0.1)) > 0  # has a `dt0`
    assert runs(configured(1.5, rtol=1e-4, jump=0.2, max_steps=4000, dt0=0.2)) == 0
    assert runs(configured(1.5, rtol=1e-4)) == 0
    assert runs(configured(1.0, guard=3.0)) > 0
    assert runs(configured(1.5, guard=3.0)) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"rtol": 1e-5},
        {"jump": 0.25},
        {"guard": 3.0},
        {"volume": 2.0},
        {"max_steps": 64},
        {"dt0": 0.1},
        {"adjoint": diffrax.DirectAdjoint()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_configurations_that_differ_are_different(change):
    assert jax.tree.structure(configured(1.0)) == jax.tree.structure(configured(2.0))
    assert jax.tree.structure(configured(1.0)) != jax.tree.structure(configured(1.0, **change))


# --- construction without values, and in batches


def ensemble_member(key, Model):
    guard = sx.Guard(np.array([-5.0, -6.0]), 5.0)
    return Model(sx.MLPField(2, 4, 1, key=key, guard=guard), controller=sx.StiffPID.preset("fast"))


@pytest.mark.parametrize("Model", MODELS)
def test_construction_without_values(key, Model):
    shapes = eqx.filter_eval_shape(ensemble_member, key, Model)
    model = ensemble_member(key, Model)
    assert jax.tree.structure(shapes) == jax.tree.structure(model)
    for abstract, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(model), strict=True):
        assert isinstance(abstract, jax.ShapeDtypeStruct)
        assert (abstract.shape, abstract.dtype) == (leaf.shape, leaf.dtype)


@pytest.mark.parametrize("make", [sx.MLPField, eqx.filter_jit(sx.MLPField)], ids=["plain", "jit"])
def test_fields_without_values_and_compiled(key, make):
    shapes = eqx.filter_eval_shape(make, 2, 4, 1, key=key)
    assert [x.shape for x in jax.tree.leaves(shapes)] == [(4, 2), (4,), (2, 4), (2,)]
    assert make(2, 4, 1, key=key).network.activation is jnp.tanh


@pytest.mark.parametrize("Model", MODELS)
def test_ensembles_are_models_with_a_leading_axis(key, Model):
    keys = jr.split(key, 3)
    ensemble = eqx.filter_vmap(lambda key: ensemble_member(key, Model))(keys)
    for i in range(3):
        member = jax.tree.map(lambda x, i=i: x[i], ensemble)
        alone = ensemble_member(keys[i], Model)
        assert jax.tree.structure(member) == jax.tree.structure(alone)
        for ours, theirs in zip(jax.tree.leaves(member), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def call(model):
        phases = (sx.Phase(1.0),) if Model is sx.SimulatePhases else ()
        return model(jnp.ones(2), jnp.array([0.5, 1.0]), *phases, throw=False).ys

    shape = eqx.filter_eval_shape(eqx.filter_vmap(call), ensemble)
    assert shape.shape == (3, 2, 2)


def test_an_ensemble_solves_as_its_members_do(key):
    def member(key):
        field = sx.MLPField(2, 4, 1, key=key)
        return sx.Simulate(
            field, solver=diffrax.Heun(), controller=diffrax.ConstantStepSize(), dt0=0.1
        )

    keys = jr.split(key, 3)
    y0, ts = jnp.array([0.3, 0.2]), jnp.array([0.5, 1.0])
    together = eqx.filter_vmap(lambda model: model(y0, ts).ys)(eqx.filter_vmap(member)(keys))
    apart = jnp.stack([member(key)(y0, ts).ys for key in keys])
    np.testing.assert_allclose(together, apart, rtol=1e-12)


# --- a wrong input names its argument


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda key: sx.MLPField(2.5, 4, 1, key=key), "size"),
        (lambda key: sx.MLPField(2, 4, 1, key=0), "key"),
        (lambda key: sx.MLPField(2, 4, 1, key=jr.split(key)), "key"),
        (lambda key: sx.MLPField(2, 4, 1, key=key, activation="tanh"), "activation"),
        (lambda key: sx.MLPField(2, 4, 1, key=key, guard=3.0), "guard"),
        (lambda key: sx.Simulate(3.0), "field"),
        (lambda key: sx.Simulate(reactions(), max_steps=1.5), "max_steps"),
        (lambda key: sx.Simulate(reactions(), dt0="small"), "dt0"),
        (lambda key: sx.SteadyThenSimulate(reactions(), steady_rtol="low"), "steady_rtol"),
        (lambda key: sx.Simulate(reactions())("y0", jnp.ones(1)), "y0"),
        (lambda key: sx.Simulate(reactions())(jnp.ones(2), jnp.ones(1), t0=jnp.zeros(2)), "t0"),
        (lambda key: sx.Simulate(reactions())(jnp.ones(2), jnp.ones(1), throw=1), "throw"),
        (lambda key: sx.masked_mean(jnp.arange(3), sx.RESULTS.successful), "losses"),
    ],
)
def test_a_wrong_type_names_the_argument(key, wrong, name):
    with pytest.raises(TypeError, match=f"`{name}` must be "):
        wrong(key)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda key: sx.MLPField(0, 4, 1, key=key), r"`size` must be at least 1, got 0"),
        (lambda key: sx.MLPField(2, 0, 1, key=key), r"`width` must be at least 1, got 0"),
        (lambda key: sx.MLPField(2, 4, -1, key=key), r"`depth` must be at least 0, got -1"),
        (lambda key: sx.Simulate(reactions(), max_steps=0), r"`max_steps` .* got 0"),
        (
            lambda key: sx.Simulate(sx.MLPField(2, 4, 1, key=key))(jnp.ones(3), jnp.ones(1)),
            r"MLPField\(size=2\)` takes a state of shape \(2,\), got \(3,\)",
        ),
        (
            lambda key: sx.Simulate(reactions())(jnp.ones(2), jnp.ones((1, 2))),
            r"`ts` must be a vector .* got shape \(1, 2\)",
        ),
        (lambda key: sx.Simulate(reactions())(jnp.ones(2), 1.0), r"`ts` must be .* shape \(\)"),
        (
            lambda key: sx.Simulate(sx.Guarded(reactions(), sx.Guard(np.zeros(3))))(
                jnp.ones(2), jnp.ones(1)
            ),
            r"lower=\.\.\.\)` has shape \(3,\), but the state has shape \(2,\)",
        ),
        (
            lambda key: sx.SteadyThenSimulate(reactions())(
                jnp.ones(2), jnp.ones(1), conserved=jnp.ones((1, 3))
            ),
            r"`conserved` has shape \(1, 3\).* 2 columns",
        ),
    ],
)
def test_a_wrong_size_names_the_argument_and_both_sizes(key, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(key)


@pytest.mark.parametrize(
    "convert", [np.asarray, list, tuple, jnp.asarray], ids=lambda f: f.__name__
)
def test_times_can_be_any_sequence(convert):
    shapes = eqx.filter_eval_shape(
        lambda y0: sx.Simulate(reactions())(y0, convert([0.5, 1.0]), throw=False).ys, jnp.ones(2)
    )
    assert shapes.shape == (2, 2)
