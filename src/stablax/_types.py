"""Named types, and the one decorator that checks them."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_args

import jax.tree_util as jtu
import numpy as np
import numpy.typing as npt
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import Array, ArrayLike, Float, PyTree, TypeCheckError, jaxtyped

from ._words import closest, quoted, short

Y = PyTree[Float[Array, "..."]]
"""A state: any PyTree of real floating-point arrays."""
YLike = PyTree[ArrayLike]
"""What is accepted for a state: numpy arrays and Python floats are converted."""
Args = PyTree[Any]
VF = Callable[[Any, Any, Any], Any]
"""A vector field `f(t, y, args)`; returns `dy/dt` with the structure, shapes and dtype of `y`."""
ScalarLike = float | int | Float[ArrayLike, ""]
NumbersLike = npt.ArrayLike
"""What numpy makes an array of: a number, (nested) lists of them, an array of numpy's or JAX's."""

_T = TypeVar("_T")
_EXPLAINED = "explained"
Explained = Annotated[_T, _EXPLAINED]
"""The type of an argument of which the function itself says what is wrong with any other value:
`typechecked`, which would say less, lets all through. Or of a result that it cannot look at."""

_STATIC_NUMBERS = (int, float, bool, int | None, float | None, bool | None)
_IN_WORDS = (
    (VF, "a function f(t, y, args)"),
    (YLike, "an array, or a PyTree of arrays and numbers"),
    (ScalarLike, "a number, or an array of shape ()"),
)

_F = TypeVar("_F", bound=Callable[..., Any])
# A float annotation takes an int as well (PEP 484), as Python itself does.
_CONFIGURATION = BeartypeConf(is_pep484_tower=True)
_check = beartype(conf=_CONFIGURATION)

_CONTROLLERS = "a step size controller has it: `controller=stablax.StiffPID.preset({0}=...)`"
_STEPPINGS = _CONTROLLERS + ", or for one call `stepping=stablax.Stepping({0}=...)`"
# Where to say what other libraries take elsewhere.
_ELSEWHERE = {
    **dict.fromkeys(("rtol", "atol", "dtmax", "step_ts", "jump_ts"), _STEPPINGS),
    **dict.fromkeys(("dtmin", "norm"), _CONTROLLERS),
    "stepsize_controller": "it is called `controller`",
    "saveat": "the times to save at are `ts`, the second argument of a call of the model",
    "duration": "a phase ends at a time, `t1`; `Phase.repeat(n, period)` takes lengths",
}


def typechecked(fn: _F) -> _F:
    """Checks the names and types of what a public function is called with, whenever it is called
    (at trace time under `jit`). The errors name the argument, what was given, and what would do.
    Where a number is asked for that is static, one of numpy's is Python's; an integer that no float
    holds, such as JSON brings in, is named."""
    shown = inspect.signature(fn)
    signature = _annotated(shown, lambda hint: Any if _is_explained(hint) else hint)
    fn.__signature__ = signature  # which is what is checked
    name = fn.__qualname__.removesuffix(".__init__")
    numbers = [p.name for p in signature.parameters.values() if p.annotation in _STATIC_NUMBERS]
    checked = jaxtyped(fn, typechecker=_check)

    @functools.wraps(fn)
    def call(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(_misfit(name, signature, args, kwargs, error)) from None
        for number in numbers:
            given = bound.arguments.get(number)
            if isinstance(given, np.generic):
                bound.arguments[number] = given.item()
        try:
            return checked(*bound.args, **bound.kwargs)
        except TypeCheckError as error:
            wrong = _wrongly_typed(signature, bound.arguments)
            if wrong is None:  # the result, or a function that this one calls
                raise
            raise TypeError(f"`{name}`: {wrong}") from error
        except OverflowError as error:
            too_large = _too_large(bound.arguments)
            if too_large is None:  # of something that the function has computed
                raise
            raise ValueError(too_large) from error

    plain = _annotated(shown, lambda hint: get_args(hint)[0] if _is_explained(hint) else hint)
    call.__signature__ = plain  # pyright: ignore[reportAttributeAccessIssue]
    return call  # pyright: ignore[reportReturnType]


def takes(*kinds: type) -> Callable[[_F], _F]:
    """Of a function with `**options`: those are the fields of `kinds`, which are dataclasses. Its
    signature shows each with its type and default, and `typechecked` above it checks them."""

    def decorate(fn: _F) -> _F:
        signature = inspect.signature(fn)
        *own, _ = signature.parameters.values()
        options = [
            p.replace(kind=p.KEYWORD_ONLY)
            for kind in kinds
            for p in inspect.signature(kind).parameters.values()
        ]
        fn.__signature__ = signature.replace(parameters=[*own, *options])
        return fn

    return decorate


def chosen(kind: type[_T], options: Mapping[str, object]) -> _T:
    """The `kind` (a dataclass) with those of `options` that are its fields."""
    names = inspect.signature(kind).parameters
    return kind(**{name: value for name, value in options.items() if name in names})


def _is_explained(hint: object) -> bool:
    return _EXPLAINED in getattr(hint, "__metadata__", ())


def _annotated(
    signature: inspect.Signature, change: Callable[[object], object]
) -> inspect.Signature:
    """With other annotations."""
    parameters = signature.parameters.values()
    return signature.replace(
        parameters=[p.replace(annotation=change(p.annotation)) for p in parameters],
        return_annotation=change(signature.return_annotation),
    )


def _misfit(name: str, signature: inspect.Signature, args, kwargs, error: TypeError) -> str:
    """Why arguments do not fit a signature."""
    known = [p for p in signature.parameters if p != "self"]
    for given in kwargs:
        if given in signature.parameters:
            continue
        elsewhere = _ELSEWHERE.get(given)
        hint = closest(given, known) if elsewhere is None else elsewhere.format(given) + "."
        return f"`{name}` takes no argument `{given}`: {hint[0].lower()}{hint[1:]}"
    positional = [
        p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    if len(args) > len(positional):
        skip = "self" in positional
        by_name = [p for p in known if p not in positional]
        return (
            f"`{name}` takes {len(positional) - skip} arguments by position "
            f"({quoted(positional[skip:])}), got {len(args) - skip}. "
            f"Give the others by name: {quoted(by_name)}."
        )
    return f"`{name}`: {error}."


def _wrongly_typed(signature: inspect.Signature, given: dict[str, object]) -> str | None:
    """The first argument that is not what its annotation says, in words."""
    for name, value in given.items():
        hint = signature.parameters[name].annotation
        if hint is inspect.Parameter.empty or name == "self":
            continue
        if not is_bearable(value, hint, conf=_CONFIGURATION):
            shown = f"{short(value)} ({type(value).__name__})"
            return f"`{name}` must be {_in_words(hint)}, got {shown}."
    return None


def _in_words(hint: object) -> str:
    for known, words in _IN_WORDS:
        if hint is known:
            return words
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _too_large(given: dict[str, object]) -> str | None:
    """Where among the arguments of a function there is an integer beyond all floats."""
    for name, value in given.items():
        for path, leaf in jtu.tree_leaves_with_path(value):
            if isinstance(leaf, int) and leaf.bit_length() > 1023:
                digits = round(leaf.bit_length() * math.log10(2))
                return (
                    f"`{name}{jtu.keystr(path)}` is an integer of some {digits} digits: no "
                    "floating-point number is so large."
                )
    return None
