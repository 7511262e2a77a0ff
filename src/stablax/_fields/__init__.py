from ._activity import GuardActivity as GuardActivity
from ._guard import Guard as Guard
from ._guarded import (
    Guarded as Guarded,
    GuardedField as GuardedField,
    as_guarded as as_guarded,
    evaluate as evaluate,
    evaluate_aside as evaluate_aside,
)
from ._mlp import MLPField as MLPField
