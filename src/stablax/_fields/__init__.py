from ._activity import GuardActivity as GuardActivity
from ._aside import Aside as Aside
from ._check_jacobian import check_jacobian as check_jacobian
from ._declared import (
    conserved_by as conserved_by,
    declared_conserved as declared_conserved,
    declared_jacobian as declared_jacobian,
    declared_species as declared_species,
    names_of as names_of,
)
from ._guard import Guard as Guard
from ._guarded import (
    Guarded as Guarded,
    GuardedField as GuardedField,
    as_guarded as as_guarded,
    bare as bare,
    evaluate as evaluate,
    evaluate_aside as evaluate_aside,
    evaluate_ungated as evaluate_ungated,
)
from ._input import (
    KNOTS as KNOTS,
    Input as Input,
    inputs_in as inputs_in,
    knots_of as knots_of,
)
