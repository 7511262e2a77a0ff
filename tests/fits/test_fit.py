"""Fits: with the optimisers of others, in batches, ended at any moment and gone on with."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from helpers import all_finite, slow

import stablax as sx
from stablax import plot
from stablax._fits import _checkpoint, _fit
from stablax.fitting import Fit, LaplaceNoise, LogNormalNoise, NormalNoise, NormalPrior, Solved


@pytest.fixture(autouse=True)
def promotion():
    """optax and optimistix promote dtypes, and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def quiet(*args: Any, **kwargs: Any) -> Fit:
    return sx.fit(*args, progress=False, **kwargs)


A = sx.Parameter("a", 0.5, scale="log", bounds=(0.1, 10.0))
B = sx.Parameter("b", 3.0, bounds=(None, 4.0))
TABLE = sx.parameters((A, B))


def valley(table):
    """Rosenbrock's, in the values: 0 at (2, 4)."""
    a, b = table["a"], table["b"]
    return 5.0 * (b - a**2) ** 2 + (a - 2.0) ** 2


def residuals(table):
    a, b = table["a"], table["b"]
    return jnp.stack([np.sqrt(10.0) * (b - a**2), np.sqrt(2.0) * (a - 2.0)])


OPTIMISERS = {
    "adam": (valley, optax.adam(0.1), 800),
    "L-BFGS of optax": (valley, optax.lbfgs(), 60),
    "chain": (
        valley,
        optax.apply_if_finite(
            optax.chain(
                optax.clip_by_global_norm(1.0), optax.add_noise(0.1, 2.0, 0), optax.adam(0.03)
            ),
            5,
        ),
        1500,
    ),
    "MultiSteps": (valley, optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(), 1600),
    "BFGS": (valley, optx.BFGS(1e-9, 1e-9), 200),
    "LBFGS": (valley, optx.LBFGS(1e-9, 1e-9), 200),
    "NonlinearCG": (valley, optx.NonlinearCG(1e-9, 1e-9), 400),
    "LevenbergMarquardt": (residuals, optx.LevenbergMarquardt(1e-9, 1e-9), 300),
    "Dogleg": (residuals, optx.Dogleg(1e-9, 1e-9), 300),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_optimisers_of_others(name):
    """The minimum is on a bound, which is kept; by those that know none as well."""
    loss, optimiser, steps = OPTIMISERS[name]
    out = quiet(loss, TABLE, optimiser=optimiser, steps=steps)
    np.testing.assert_allclose(out.parameters["a"], 2.0, atol=0.04)
    assert 3.8 < out.parameters["b"] <= 4.0
    assert out.values.shape == (out.steps,) and out.unused == 0
    assert out.value <= np.nanmin(out.values) and out.ended in ("converged", "steps")
    assert out.explain() in repr(out) and "value" in out.explain()


def test_any_tree_and_the_best_is_kept():
    """A step size at which the values go up and down."""
    start = {"x": jnp.array([1.0, -2.0]), "y": [jnp.array(3.0)]}
    loss = lambda p: jnp.sum(p["x"] ** 2) + p["y"][0] ** 2
    out = quiet(loss, start, optimiser=optax.sgd(0.98), steps=7)
    assert jax.tree.structure(out.parameters) == jax.tree.structure(start)
    assert out.value == out.values.min() and out.steps == 7 and out.ended == "steps"
    np.testing.assert_allclose(loss(out.parameters), out.value, rtol=1e-12)


def test_a_loss_that_fails_now_and_then():
    """Where it is not finite nothing moves, the state of the optimiser neither; it is counted."""
    data = jnp.array([1.0, jnp.nan, 2.0, 1.5])
    loss = lambda x, batch: jnp.sum((x - batch) ** 2)
    out = quiet(loss, jnp.array(0.0), optimiser=optax.adam(0.1), steps=200, data=data, batch_size=1)
    assert out.unused == 50 and all_finite(out.parameters)
    np.testing.assert_allclose(out.parameters, 1.5, atol=0.3)
    assert "In 50 of them" in out.explain()
    same_data = dict(data=np.asarray(data), batch_size=1, steps=200, optimiser=optax.adam(0.1))
    assert quiet(loss, jnp.array(0.0), **same_data).parameters == out.parameters  # numpy as jax
    failing = quiet(lambda x: jnp.log(x), jnp.array(-1.0), optimiser=optax.sgd(0.1), steps=3)
    assert failing.ended == "failed" and failing.parameters == -1.0 and failing.steps == 1
    # A step that is far too long, over a pole: back, until there is something to follow again.
    steps = optax.scale_by_learning_rate(optax.piecewise_constant_schedule(6.0, {1: 0.05}))
    out = quiet(lambda x: x - jnp.log(x), jnp.array(3.0), optimiser=steps, steps=60)
    assert out.unused == 1 and not np.isfinite(out.values[1]) and np.isfinite(out.values[2:]).all()
    np.testing.assert_allclose(out.parameters, 1.0, atol=1e-3)
    assert "not finite at the start" in failing.explain()
    ax = plot.history(out)
    assert ax.get_xlabel() == "step" and len(ax.lines) == 2


@pytest.mark.parametrize("samples, size", [(7, 3), (4, 4), (5, 1)])
def test_every_sample_comes_once_before_any_comes_again(samples, size):
    order = _fit._Order(samples, size, seed=3)
    seen = np.concatenate([np.asarray(order.batch(i)) for i in range(samples)])
    for i in range(size):
        assert sorted(seen[i * samples : (i + 1) * samples]) == list(range(samples))
    again = _fit._Order(samples, size, seed=3)
    np.testing.assert_array_equal(order.batch(2), again.batch(2))


def test_validation_patience_and_callbacks():
    """The validation is least at 1, and the loss at 2."""
    loss, validation = (lambda x: (x - 2.0) ** 2), (lambda x: (x - 1.0) ** 2)
    known = dict(optimiser=optax.sgd(0.02), steps=400, validate_every=5)
    out = quiet(loss, jnp.array(0.0), validation=validation, patience=4, **known)
    assert out.ended == "patience" and abs(out.parameters - 1.0) < 0.1
    best = int(np.argmin(out.validations))
    assert len(out.validations) - 1 - best == 4 and out.validated[best] == 5 * (best + 1)
    few = quiet(loss, jnp.array(0.0), validation=validation, **known | dict(steps=3))
    assert few.validated.tolist() == [3] and few.value == validation(few.parameters) < 1.0
    assert "best validation" in out.explain() and out.validations[best] < 0.01
    assert len(plot.history(out).lines) == 2
    seen = []

    def callback(step, value, params):
        seen.append((step, value, float(params)))
        return jnp.array(step == 3)

    out = quiet(loss, jnp.array(0.0), callbacks=[callback], **known | dict(validate_every=1))
    assert out.ended == "callback" and [step for step, *_ in seen] == [1, 2, 3]
    assert seen[0][1] == 4.0 and seen[0][2] == pytest.approx(0.08)


# --- objectives


class Decay(sx.GuardedField):
    k: Any

    def vector_field(self, t, y, args):
        return -self.k * y


def objective(sigma: Any, noise: Any = NormalNoise, k: Any = None, conditions: int = 3):
    """Data made with k = 1.3 and start = 2."""
    k = sx.Parameter("k", 0.4, scale="log10", bounds=(1e-3, 1e2)) if k is None else k
    start = sx.Parameter("start", 1.0, scale="log", bounds=(1e-2, 1e2))
    factors = np.linspace(1.0, 2.0, conditions)
    ts = np.array([0.1, 0.5, 1.0, 2.0])
    scatter = np.random.default_rng(0).normal(size=(conditions, 4))
    y = 2.0 * factors[:, None] * np.exp(-1.3 * ts) * np.exp(0.02 * scatter)
    series = sx.Series(np.broadcast_to(ts, y.shape), {"y": y})
    observables = {"y": sx.Observable(0, noise=noise(sigma))}
    y0 = lambda p: p["start"] * factors[:, None]
    model = sx.Simulate(Decay(k))
    return sx.Objective(model, series, observables, inputs=dict(y0=y0), parameters=[start])


SD = sx.Parameter("sd", 0.1, scale="log10", bounds=(1e-4, 10.0), prior=NormalPrior(0.1, 1.0))


def test_an_objective_is_fitted():
    """By least squares with an estimated sigma, of the right value, to a point where the gradient
    vanishes; and the residuals are those of the objective."""
    own = objective(SD)
    assert own.why_no_least_squares() is None
    out = quiet(own, steps=100)
    assert out.ended == "converged" and abs(out.parameters["k"] - 1.3) < 0.05
    assert abs(out.parameters["start"] - 2.0) < 0.05 and 0.005 < out.parameters["sd"] < 0.05
    value, gradient = jax.value_and_grad(own)(out.parameters)
    np.testing.assert_allclose(out.value, value, rtol=1e-9)
    assert all(abs(x) < 1e-2 for x in jax.tree.leaves(gradient))

    tables = [out.parameters, own.parameters]
    squares = [own.residuals(table) for table in tables]
    halves = [0.5 * jnp.sum(r**2) - value for r, value in squares]
    np.testing.assert_allclose(halves[0], halves[1], rtol=1e-9)
    np.testing.assert_allclose(squares[0][1], value, rtol=1e-12)


def test_batches_of_conditions():
    """The mean over all batches is the objective, its prior included."""
    own = objective(SD, conditions=4)
    loss = _fit._Loss(own, None, False, 2, 4)
    value = jax.jit(lambda table, batch: loss(table, batch)[0])
    parts = [value(own.parameters, jnp.array(i)) for i in ([0, 1], [2, 3])]
    np.testing.assert_allclose(sum(parts) / 2, own(own.parameters), rtol=1e-9)


@pytest.mark.slow
def test_an_objective_is_fitted_in_batches():
    out = quiet(objective(0.05), optimiser=optax.adam(0.1), steps=120, batch_size=2)
    assert abs(out.parameters["k"] - 1.3) < 0.1


def test_what_is_no_least_squares():
    assert objective(0.1, LogNormalNoise).why_no_least_squares() is None
    assert objective(Solved()).why_no_least_squares() is None
    own = objective(0.1, LaplaceNoise)
    assert own.why_no_least_squares() == "the noise of `y` is `LaplaceNoise`"
    with pytest.raises(
        ValueError, match="`LevenbergMarquardt` is for least squares, but the noise"
    ):
        sx.fit(own, optimiser=optx.LevenbergMarquardt(1e-3, 1e-3))
    with pytest.raises(ValueError, match="no least squares"):
        own.residuals(own.parameters)


# --- checkpoints

KNOWN: dict[str, Any] = dict(optimiser=optax.adam(0.05), steps=40)
DATA = jnp.linspace(-1.0, 2.0, 6)


def noisy(x, batch):
    return jnp.mean((x - batch) ** 4)


def same(a: Fit, b: Fit) -> bool:
    parts = lambda fit: (fit.parameters, fit.value, fit.values, fit.validations, fit.steps)
    return all(map(np.array_equal, jax.tree.leaves(parts(a)), jax.tree.leaves(parts(b))))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batches", [True, False])
def test_a_fit_that_is_ended_goes_on(tmp_path, monkeypatch, batches):
    """At any step, several times: equal to the last bit."""
    monkeypatch.setattr(_fit, "_SECONDS", 0.0)
    known = dict(data=DATA, batch_size=2, seed=1) if batches else dict(data=DATA)
    known |= KNOWN | dict(validation=lambda x: (x - 0.4) ** 2, validate_every=3)
    whole = quiet(noisy, jnp.array(1.5), **known)

    for at in (1, 7, 8, 30):

        def kill(step, value, params, at=at):
            if step == at:
                raise Killed

        with pytest.raises(Killed):
            quiet(noisy, jnp.array(1.5), callbacks=[kill], checkpoint=tmp_path / "fit", **known)
    resumed = quiet(noisy, jnp.array(1.5), checkpoint=tmp_path / "fit", **known)
    assert same(resumed, whole)
    again = quiet(noisy, jnp.array(1.5), checkpoint=tmp_path / "fit", **known)
    assert same(again, whole)


SCRIPT = """
import os, signal, sys
import jax, jax.numpy as jnp, numpy as np, optax
import stablax as sx
from stablax._fits import _checkpoint, _fit

jax.config.update("jax_enable_x64", True)
_fit._SECONDS = 0.0
folder, out, at = sys.argv[1:4]

def loss(table, batch):
    return jnp.mean((table["a"] * batch - 1.0) ** 4) + jnp.mean(table["b"] ** 2)

def kill(step, value, params):
    if step == int(at):
        os.kill(os.getpid(), signal.SIGKILL)

table = sx.parameters((sx.Parameter("a", 3.0, scale="log"), sx.Parameter("b", [1.0, -2.0])))
fit = sx.fit(
    loss, table, data=jnp.linspace(0.5, 2.0, 7), batch_size=3, optimiser=optax.adam(0.1), steps=60,
    checkpoint=folder, callbacks=[kill], progress=False,
)
np.savez(out, *jax.tree.leaves(fit.parameters), fit.values)
"""


@pytest.mark.parametrize("kills", [1, slow(10)])
def test_kill_9(tmp_path, kills):
    """At random steps, by the operating system."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(folder: str, at: int) -> int:
        command = [sys.executable, "script.py", folder, f"{folder}.npz", str(at)]
        path = os.pathsep.join([str(Path(sx.__file__).parent.parent), *sys.path])
        environment = os.environ | dict(PYTHONPATH=path)
        return subprocess.run(command, cwd=tmp_path, env=environment).returncode

    assert run("whole", 0) == 0
    for at in sorted(np.random.default_rng(5).choice(np.arange(2, 60), kills, replace=False)):
        assert run("killed", at) == -signal.SIGKILL
    assert run("killed", 0) == 0
    whole, killed = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "killed.npz")
    assert whole.files == killed.files
    assert all(np.array_equal(whole[name], killed[name]) for name in whole.files)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """In words: before anything is started, or with what was saved kept whole and the fit going
    on."""
    known = KNOWN | dict(data=DATA)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"`checkpoint`: the folder .* Nothing was started"):
        quiet(noisy, jnp.array(1.5), checkpoint=tmp_path / "file" / "fit", **known)

    monkeypatch.setattr(_fit, "_SECONDS", 0.0)
    quiet(noisy, jnp.array(1.5), checkpoint=tmp_path / "fit", **known | dict(steps=5))
    before = (tmp_path / "fit" / "state.npz").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_checkpoint.os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device.*was saved before is whole"):
        out = quiet(noisy, jnp.array(1.5), checkpoint=tmp_path / "fit", **known)
    assert same(out, quiet(noisy, jnp.array(1.5), **known))
    assert (tmp_path / "fit" / "state.npz").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "fit").iterdir()) == ["problem.json", "state.npz"]


def powered(power):
    return lambda x, batch: jnp.mean((x - batch) ** power)


def test_fingerprints_tell_functions_apart():
    """By their code and what they close over; not by their names, nor where they are in memory."""
    losses = [powered(2), powered(4), lambda x, batch: jnp.mean((x - batch) ** 2)]
    marks = [_checkpoint.fingerprint(loss) for loss in losses]
    assert len(set(marks)) == 3 and marks[0] == _checkpoint.fingerprint(powered(2))
    rates = {_checkpoint.fingerprint(optax.adam(rate)) for rate in (0.1, 0.2, 0.1)}
    assert len(rates) == 2
    own = [objective(s) for s in (0.1, 0.2, lambda *_: 0.1, 0.1)]
    assert len(set(map(_checkpoint.fingerprint, own))) == 3


OTHERS = {
    "loss": dict(objective=powered(4)),
    "data": dict(data=DATA + 1),
    "start": dict(start=jnp.array(1.0)),
    "optimiser": dict(optimiser=optax.adam(0.06)),
    "order": dict(seed=4),
    "validation": dict(validation=lambda x: x**2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_folder_of_another_fit_is_refused(tmp_path, name):
    known = dict(objective=powered(2), start=jnp.array(1.5), data=DATA, batch_size=2) | KNOWN
    quiet(checkpoint=tmp_path, **known | dict(steps=1))
    with pytest.raises(ValueError, match=f"another fit, with another .*{name}"):
        quiet(checkpoint=tmp_path, **known | OTHERS[name])


LOSS, X = (lambda x: x**2), jnp.array(1.0)
WRONG = {
    "no optimiser": (lambda: sx.fit(LOSS, X), "`optimiser` is missing"),
    "no start": (lambda: sx.fit(LOSS, optimiser=optax.sgd(1.0)), "`start` is missing"),
    "no function": (lambda: sx.fit(1.0, X, optimiser=optax.sgd(1.0)), "must be an `Objective`"),
    "another optimiser": (lambda: sx.fit(LOSS, X, optimiser="adam"), "one of optax"),
    "integers": (lambda: sx.fit(LOSS, {"x": 1}, optimiser=optax.sgd(1.0)), r"`start\['x'\]` is 1"),
    "nothing": (lambda: sx.fit(LOSS, {}, optimiser=optax.sgd(1.0)), "holds no array"),
    "no steps": (lambda: sx.fit(LOSS, X, optimiser=optax.sgd(1.0), steps=0), "at least 1"),
    "no validation": (lambda: sx.fit(LOSS, X, optimiser=optax.sgd(1.0), patience=3), "`patience`"),
    "no data": (lambda: sx.fit(LOSS, X, optimiser=optax.sgd(1.0), batch_size=3), "`data`"),
    "too large": (
        lambda: sx.fit(noisy, X, data=DATA, optimiser=optax.sgd(1.0), batch_size=7),
        "1 to 6, the samples",
    ),
    "no batches": (
        lambda: sx.fit(noisy, X, data=DATA, optimiser=optx.BFGS(1e-3, 1e-3), batch_size=2),
        "compares values",
    ),
    "rows": (
        lambda: sx.fit(noisy, X, data=(DATA, DATA[:2]), optimiser=optax.sgd(1.0)),
        "one leading axis",
    ),
    "no number": (
        lambda: sx.fit(lambda x: jnp.ones(2) * x, X, optimiser=optax.sgd(1.0)),
        r"returned shape \(2,\)",
    ),
    "on a bound": (
        lambda: sx.fit(valley, TABLE.with_values({"b": 4.0}), optimiser=optx.BFGS(1e-3, 1e-3)),
        "`b` = 4 is on a bound",
    ),
    "data of an objective": (lambda: sx.fit(objective(0.1), data=DATA), "has its own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    wrong, words = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=words):
        wrong()


def test_the_bar_says_that_it_compiles(capsys):
    sx.fit(LOSS, X, optimiser=optax.sgd(0.1), steps=3)
    shown = capsys.readouterr().err
    assert "compiling" in shown and "fit" in shown and "value=" in shown
