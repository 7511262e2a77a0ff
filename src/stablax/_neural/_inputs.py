"""What fields take besides the state."""

from typing import TypedDict, Unpack, final

import equinox as eqx
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from .._types import Args, ScalarLike
from .._words import short
from ._sized import check_least


class InputArguments(TypedDict, total=False):
    """`Inputs` for editors and type checkers."""

    time: bool
    args_size: int


@final
class Inputs(eqx.Module):
    """What a field takes besides the state: `t` if `time`, and the `args_size` numbers of `args`,
    in one vector of `length` numbers."""

    time: bool = eqx.field(static=True, default=False)
    args_size: int = eqx.field(static=True, default=0)

    def __check_init__(self):
        check_least(args_size=(self.args_size, 0))

    @property
    def length(self) -> int:
        return self.time + self.args_size

    def __call__(self, t: ScalarLike | None, args: Args, dtype: DTypeLike) -> Array:
        parts = [jnp.asarray(t, dtype).reshape(1)] if self.time else []
        if self.args_size:
            leaves = jtu.tree_leaves(args)
            for leaf in leaves:
                if not eqx.is_array_like(leaf):
                    raise TypeError(
                        f"`args` holds {short(leaf)}, which is no number: with "
                        f"`args_size={self.args_size}` the network takes all of `args` as its "
                        "inputs."
                    )
            numbers = [jnp.asarray(x, dtype).reshape(-1) for x in leaves]
            total = sum(x.size for x in numbers)
            if total != self.args_size:
                raise ValueError(
                    f"`args` holds {total} numbers in total, but the network was made with "
                    f"`args_size={self.args_size}`."
                )
            parts += numbers
        return jnp.concatenate(parts) if parts else jnp.zeros(0, dtype)


@final
class LinearInputs(eqx.Module):
    """A linear map of the inputs besides the state, without a bias; 0 where there are none."""

    linear: eqx.nn.Linear | None
    inputs: Inputs

    def __init__(
        self,
        size_out: int,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None,
        **inputs: Unpack[InputArguments],
    ):
        self.inputs = Inputs(**inputs)
        length = self.inputs.length
        self.linear = (
            eqx.nn.Linear(length, size_out, use_bias=False, key=key, dtype=dtype)
            if length
            else None
        )

    def __call__(self, t: ScalarLike, args: Args, dtype: DTypeLike) -> Array | float:
        return 0.0 if self.linear is None else self.linear(self.inputs(t, args, dtype))
