from ._constants import rate_constant as rate_constant
from ._rate_laws import (
    AbstractRateLaw as AbstractRateLaw,
    Hill as Hill,
    MassAction as MassAction,
    MichaelisMenten as MichaelisMenten,
    NeuralRate as NeuralRate,
    ProductRate as ProductRate,
)
from ._reaction import Reaction as Reaction
from ._reaction_field import ReactionField as ReactionField
