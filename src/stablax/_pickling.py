"""Pickling by name: functions, and what others hold by identity, come back as the one object that
they are, so that what holds them stays equal and compiles nothing anew."""

import copyreg
import functools
import sys
import types
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

FROM_CONTROLLER = diffrax.Kvaerno5().root_finder.rtol
"""The marker of a root finder's tolerance that diffrax takes from the controller."""


def _look_up(module: str, name: str) -> Any:
    """The object of this (dotted) name in an imported module; None if there is none."""
    try:
        return functools.reduce(getattr, name.split("."), sys.modules[module])
    except (AttributeError, KeyError):
        return None


def _load(module: str, name: str) -> Any:
    __import__(module)
    return _look_up(module, name)


class _Alias:
    """Pickled, it is the object that a module holds under a name."""

    def __init__(self, module: str, name: str):
        self.place = module, name

    def __reduce__(self):
        return _load, self.place


def by_name(leaf: object) -> object:
    """`leaf`; for a function that Python does not find under its own name (a lambda), but its
    module under another, something that is pickled as that."""
    if not isinstance(leaf, types.FunctionType):
        return leaf
    if _look_up(leaf.__module__, leaf.__qualname__) is leaf:
        return leaf
    module = sys.modules.get(leaf.__module__)
    held = {} if module is None else vars(module)
    return next((_Alias(leaf.__module__, name) for name in held if held[name] is leaf), leaf)


def _reduce_wrapper(fn: Any) -> Any:
    """Python's way with functions, for those that JAX wraps."""
    name = getattr(fn, "__qualname__", None) or fn.__name__
    return name if _look_up(fn.__module__, name) is fn else fn.__reduce_ex__(2)


def _reduce_marker(marker: object) -> Any:
    return _load, (__name__, "FROM_CONTROLLER")


for wrapper in (type(jnp.tanh), jax.custom_jvp, jax.custom_vjp, jnp.ufunc):
    copyreg.pickle(wrapper, _reduce_wrapper)
copyreg.pickle(type(FROM_CONTROLLER), _reduce_marker)
