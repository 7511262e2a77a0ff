"""`stablax.problems`: every problem is solved to its reference."""

import json
from importlib.resources import files

import jax
import numpy as np
import pytest
from helpers import all_finite

import stablax as sx
from stablax.problems import NETWORKS, PROBLEMS, heat_of, network

STORED = json.loads(files("stablax.problems").joinpath("references.json").read_text())


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_solved_to_its_reference(name):
    """With the defaults, but for the absolute tolerance, which is 1e-6 of what counts as zero."""
    problem = PROBLEMS[name]
    jacobian = None if problem.bands is None else sx.Banded(*problem.bands)
    model = sx.Simulate(
        sx.Guarded(problem.field, jacobian=jacobian),
        controller=sx.StiffPID.preset(atol=1e-6 * problem.floor),
        adjoint=None,
    )
    simulation = model(problem.y0, problem.ts, t0=problem.t0, args=problem.args)
    # Relative to the component itself, down to the floor; rtol is 1e-6 a step.
    assert problem.error(simulation.ys) < 1e-3
    assert simulation.ts[-1] <= problem.t1


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_whole(name):
    problem = PROBLEMS[name]
    assert problem.name == name and len(problem.source) > 10
    assert problem.reference.shape == (len(problem.ts), problem.size)
    assert np.isfinite(problem.reference).all() and problem.error(problem.reference) == 0
    assert problem.t0 <= problem.ts[0] and problem.ts[-1] == problem.t1
    if name in STORED:
        np.testing.assert_array_equal(STORED[name]["ts"], problem.ts)
    else:
        assert name == "heat"
    assert problem.error(np.full_like(problem.reference, np.nan)) == np.inf
    y0, args = problem.perturb(jax.random.key(0), 3)
    slope = jax.vmap(problem.field, (None, *problem.axes))(0.0, y0, args)
    assert slope.shape == (3, problem.size) and all_finite(slope)
    np.testing.assert_allclose(slope[0], problem.field(0.0, problem.y0, problem.args), atol=1e-12)


def test_published_values():
    """HIRES at its end: Mazzia and Magherini, Test Set for IVP Solvers."""
    np.testing.assert_allclose(
        PROBLEMS["HIRES"].reference[-1],
        [
            0.7371312573325668e-3,
            0.1442485726316185e-3,
            0.5888729740967575e-4,
            0.1175651343283149e-2,
            0.2386356198831331e-2,
            0.6238968252742796e-2,
            0.2849998395185769e-2,
            0.2850001604814231e-2,
        ],
        rtol=1e-8,
    )


def test_the_closed_form_of_the_heat_equation_solves_it():
    problem = heat_of(8)
    rate = jax.jvp(lambda t: closed(problem, t), (0.3,), (1.0,))[1]
    np.testing.assert_allclose(
        rate, problem.field(0.3, closed(problem, 0.3), problem.args), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(problem.reference[3], closed(problem, 0.3), rtol=1e-10, atol=1e-14)


def closed(problem, t):
    """By the exponential of the matrix."""
    matrix = jax.jacfwd(lambda y: problem.field(0.0, y, problem.args))(problem.y0)
    return jax.scipy.linalg.expm(t * matrix) @ problem.y0


def test_networks():
    reactions = network("1>2;2+2>1;a+1>0", 2)
    np.testing.assert_array_equal(reactions.change, [[-1, 1, -1], [1, -2, 0]])
    slope = reactions(np.ones(3), np.array([2.0, 3.0]), np.array(5.0))
    np.testing.assert_allclose(slope, [-2 + 9 - 10, 2 - 18])
    assert set(NETWORKS) < set(PROBLEMS)
