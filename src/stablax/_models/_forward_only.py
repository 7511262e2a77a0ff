"""A derivative that has forward mode only, and says so."""

import equinox as eqx
import jax
import jax.tree_util as jtu
import lineax as lx
from jaxtyping import PyTree


class _Untransposable(lx.AbstractLinearSolver):
    """The identity, whose transpose is refused: the one place in which JAX asks for it."""

    message: str

    def init(self, operator, options):
        return None

    def compute(self, state, vector, options):
        return vector, lx.RESULTS.successful, {}

    def transpose(self, state, options):
        raise TypeError(self.message)

    def conj(self, state, options):
        return state, options

    def assume_full_rank(self):
        return True


@eqx.filter_custom_jvp
def forward_only(tree: PyTree, message: str) -> PyTree:
    """`tree`, whose derivative in reverse mode is a `TypeError` with `message`."""
    return tree


@forward_only.def_jvp
def _forward_only_jvp(primals, tangents):
    (tree, message), (d_tree, _) = primals, tangents
    return tree, untransposable(d_tree, message)


def untransposable(tangents: PyTree, message: str) -> PyTree:
    """`tangents`, whose transpose is a `TypeError` with `message`."""
    if not jtu.tree_leaves(tangents):
        return tangents
    identity = lx.FunctionLinearOperator(lambda x: x, jax.eval_shape(lambda: tangents))
    return lx.linear_solve(identity, tangents, _Untransposable(message), throw=False).value
