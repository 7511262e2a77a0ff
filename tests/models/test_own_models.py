"""Models of one's own: subclasses of `AbstractModel`, with a call that takes less than those of
stablax."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import stablax as sx

TS = np.array([0.5, 1.0])


class Inside(sx.AbstractModel):
    """Solves by a model of stablax."""

    def __init__(self, field):
        super().__init__(field, solver=diffrax.Bosh3())

    def arguments(self):
        return self.options.arguments()

    def solve(self, *inputs, **keywords):
        return sx.Simulate(self.field, **self.arguments())(*inputs, **keywords)


class Short(Inside):
    def __call__(self, y0, ts, throw=True):
        return self.solve(y0, ts, throw=throw)


class Keywords(Inside):
    def __call__(self, y0, ts, **keywords):
        return self.solve(y0, ts, **keywords)


class Raises(Inside):
    def __call__(self, y0, ts):
        return self.solve(y0, ts)


def decay(t, y, args):
    return -y


@pytest.mark.parametrize("kind", [Short, Keywords])
def test_in_a_batch(kind):
    starts = np.array([1.0, 2.0, 3.0])
    found = sx.simulate_batch(kind(decay), dict(y0=starts), shared=dict(ts=TS), batch_size=2)
    np.testing.assert_allclose(found.ys, starts[:, None] * np.exp(-TS), rtol=1e-3)
    assert found.t1.tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", [Short, Keywords])
def test_diagnosed(kind):
    model = kind(decay)
    report = sx.diagnose(model, 1.0, TS)
    assert report.successful
    assert report.steps.accepted == model(1.0, TS).stats["num_accepted_steps"]


def test_what_it_looks_like():
    """Its options are shown where they are not the default, though it takes none of them."""
    assert repr(Short(decay)) == "Short(<function decay>, solver=Bosh3())"


def test_what_a_call_does_not_take_is_named():
    inputs, shared = dict(y0=jnp.ones(2)), dict(ts=TS)
    with pytest.raises(TypeError, match="'stepping', but Short is called with `y0`, `ts`"):
        stepping = sx.Stepping(rtol=1e-3)
        sx.simulate_batch(Short(decay), inputs, shared=dict(shared, stepping=stepping))
    words = "`{}` looks at failures itself, but a call of `Raises` takes no `throw`"
    with pytest.raises(TypeError, match=words.format("simulate_batch")):
        sx.simulate_batch(Raises(decay), inputs, shared=shared)
    with pytest.raises(TypeError, match=words.format("diagnose")):
        sx.diagnose(Raises(decay), 1.0, TS)
