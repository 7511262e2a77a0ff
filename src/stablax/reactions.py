"""Reaction networks from text, and their rate laws."""

from ._reactions import (
    AbstractRateLaw as AbstractRateLaw,
    Hill as Hill,
    MassAction as MassAction,
    MichaelisMenten as MichaelisMenten,
    NeuralRate as NeuralRate,
    ProductRate as ProductRate,
    Reaction as Reaction,
    ReactionField as ReactionField,
    rate_constant as rate_constant,
)
