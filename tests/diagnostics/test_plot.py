"""Pictures: what they draw, and that they draw without a display."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

matplotlib = pytest.importorskip("matplotlib")
jax.config.update("jax_enable_x64", True)

GUARD = sx.Guard(np.array([-0.5, -2.0]), 2.0, reject=False)


@pytest.fixture(scope="module")
def report():
    field = sx.Guarded(lambda t, y, a: jnp.stack([y[1], -y[0] - 20 * y[1]]), GUARD)
    model = sx.SteadyThenSimulate(field)
    return sx.diagnose(model, jnp.array([1.0, 0.0]), [6.0])


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().add_subplot()


def _save(ax, tmp_path):
    path = tmp_path / "picture.png"
    ax.figure.savefig(path)
    assert path.stat().st_size > 5000


def test_trajectories(report, ax, tmp_path):
    assert sx.plot.trajectories(report.simulation, guard=GUARD, time_unit="min", ax=ax) is ax
    assert ax.get_xlabel() == "time [min]" and ax.get_ylabel() == "state"
    _, labels = ax.get_legend_handles_labels()
    assert labels == ["y[0]", "y[1]"]
    bounds = {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"}
    assert bounds == {-0.5, -2.0, 2.0}
    _save(ax, tmp_path)
    one = sx.plot.trajectories(report.simulation, components=["y[1]"], unit="mM")
    assert one.get_ylabel() == "state [mM]" and len(one.lines) == 1
    with pytest.raises(ValueError, match=r"`components` has 'z'; the names are y\[0\], y\[1\]"):
        sx.plot.trajectories(report.simulation, components=["z"])


def test_a_failed_trajectory_shows_where_it_stopped(ax, tmp_path):
    model = sx.Simulate(lambda t, y, a: y**2)
    simulation = model(1.0, np.linspace(0.1, 2.0, 20), throw=False)
    sx.plot.trajectories(simulation, ax=ax)
    assert [t.get_text() for t in ax.texts] == ["stopped"]
    _save(ax, tmp_path)
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), simulation)
    with pytest.raises(ValueError, match="is a batch"):
        sx.plot.trajectories(batch)


@pytest.mark.parametrize("error", [False, True])
def test_steps(report, ax, error, tmp_path):
    sx.plot.steps(report.simulation, error=error, ax=ax)
    _, labels = ax.get_legend_handles_labels()
    assert labels[0] == "accepted"
    accepted = int(report.simulation.stats["num_accepted_steps"])
    assert len(ax.lines[0].get_xdata()) == accepted
    assert ax.get_ylabel() == ("error / tolerance" if error else "step size")
    _save(ax, tmp_path)


def test_steps_need_a_record():
    simulation = sx.Simulate(lambda t, y, a: -y)(1.0, [1.0])
    with pytest.raises(ValueError, match='trace="record"'):
        sx.plot.steps(simulation)


def test_stiffness(report, ax, tmp_path):
    sx.plot.stiffness(report, time_unit="s", ax=ax)
    assert ax.get_ylabel() == "rate [1/s]" and ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), report.stiffness.times)
    _save(ax, tmp_path)
    ts, ys = report.simulation.ts, report.simulation.ys
    profile = sx.stiffness_along(lambda t, y, a: -y, ts, ys)
    assert sx.plot.stiffness(profile, ts).get_xlabel() == "time"
    with pytest.raises(ValueError, match="`ts` is missing"):
        sx.plot.stiffness(profile)


def test_spectrum(report, ax, tmp_path):
    sx.plot.spectrum(report, title="at rest", ax=ax)
    np.testing.assert_allclose(sorted(ax.lines[0].get_xdata()), np.roots([1, 20, 1]), rtol=1e-6)
    assert ax.get_title() == "at rest"
    _save(ax, tmp_path)
    assert sx.plot.spectrum(np.array([-1e6, -1.0, 0.0, 2 + 3j])).get_xlabel() == "real part"
    with pytest.raises(ValueError, match="no finite number"):
        sx.plot.spectrum(np.array([np.nan]))


def test_gradient_check(ax, tmp_path):
    p = {"a": jnp.array(1.0), "b": jnp.array(2.0)}
    loss = lambda p: jnp.sin(p["a"]) * jax.lax.stop_gradient(p["b"])
    check = sx.check_gradient(loss, p, adjoints=())
    sx.plot.gradient_check(check, ax=ax)
    _, labels = ax.get_legend_handles_labels()
    assert "['a']" in labels and "['b'] (wrong)" in labels
    assert ax.get_title() == "gradient: wrong"
    _save(ax, tmp_path)


def test_without_matplotlib_the_error_says_what_to_install(report, monkeypatch):
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"stablax\[plot\]"):
        sx.plot.steps(report.simulation)
