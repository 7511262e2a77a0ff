"""Partial differential equations in one dimension, by the method of lines."""

import jax.numpy as jnp
import numpy as np

from ._problem import Problem


def brusselator(t, y, args):
    a, b, alpha = args[0], args[1], args[2]
    w = y.reshape(-1, 2)
    edge = jnp.asarray([[1.0, 3.0]], y.dtype)
    padded = jnp.concatenate([edge, w, edge])
    spread = alpha * (len(w) + 1) ** 2 * (padded[2:] - 2 * w + padded[:-2])
    u, v = w[:, 0], w[:, 1]
    product = u**2 * v
    reaction = jnp.stack([a + product - (b + 1) * u, b * u - product], axis=1)
    return (reaction + spread).reshape(-1)


def brusselator_of(cells: int) -> Problem:
    """The Brusselator with diffusion on `cells` cells, `2 * cells` states, u and v interleaved.
    Its reference is stored for 40 cells."""
    x = np.arange(1, cells + 1) / (cells + 1)
    return Problem(
        name=f"Brusselator {2 * cells}",
        field=brusselator,
        y0=np.stack([1 + np.sin(2 * np.pi * x), np.full(cells, 3.0)], axis=1).reshape(-1),
        args=np.array([1.0, 3.0, 1 / 50]),
        t1=10.0,
        ts=np.linspace(0, 10, 11)[1:],
        floor=1e-3,
        bands=(2, 2),
        spread=0.1,
        source="Hairer and Wanner, Solving ODEs II, section IV.10; u and v interleaved",
    )


BRUSSELATOR = brusselator_of(40)


def heat(t, y, conductivity):
    padded = jnp.concatenate([jnp.zeros_like(y[:1]), y, jnp.zeros_like(y[:1])])
    return conductivity * (len(y) + 1) ** 2 * (padded[2:] - 2 * y + padded[:-2])


def heat_of(cells: int) -> Problem:
    """The heat equation on `cells` cells between two cold ends. The reference is the closed form of
    the discretised equation: each sine is an eigenvector of it."""
    x = np.arange(1, cells + 1) / (cells + 1)
    conductivity, ts = 0.1, np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    waves, amplitudes = np.array([1, 3, cells // 2]), np.array([1.0, 0.5, 0.25])
    rates = 4 * conductivity * (cells + 1) ** 2 * np.sin(np.pi * waves / (2 * (cells + 1))) ** 2
    sines = amplitudes[:, None] * np.sin(np.pi * waves[:, None] * x)
    return Problem(
        name="heat",
        field=heat,
        y0=sines.sum(axis=0),
        args=np.array(conductivity),
        t1=1.0,
        ts=ts,
        reference=np.exp(-rates * ts[:, None]) @ sines,
        floor=1e-3,
        bands=(1, 1),
        varies="y0",
        spread=0.1,
        source="Fourier (1822); second-order differences, ends at zero",
    )


HEAT = heat_of(32)
