from ._activity import GuardActivity as GuardActivity
from ._gate import off_the_walls as off_the_walls
from ._guard import Guard as Guard
from ._guarded import (
    Guarded as Guarded,
    GuardedField as GuardedField,
    as_guarded as as_guarded,
    evaluate as evaluate,
    evaluate_aside as evaluate_aside,
    evaluate_ungated as evaluate_ungated,
)
from ._mlp import MLPField as MLPField
