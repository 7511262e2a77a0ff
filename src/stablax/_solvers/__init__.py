from ._esdirk import kencarp4 as kencarp4, kvaerno3 as kvaerno3, kvaerno5 as kvaerno5
from ._explicit import is_repeatable as is_repeatable, repeat_explicit as repeat_explicit
from ._finite_steps import FiniteSteps as FiniteSteps
from ._gate import gated as gated
from ._patient_chord import PatientChord as PatientChord
from ._prepare import for_forward_mode as for_forward_mode, prepare as prepare
from ._rosenbrock import (
    AbstractRosenbrock as AbstractRosenbrock,
    Rodas4 as Rodas4,
    Rodas5P as Rodas5P,
    Rosenbrock23 as Rosenbrock23,
    family_of as family_of,
    is_implicit as is_implicit,
)
from ._slopes import (
    as_settled as as_settled,
    has_algebraic as has_algebraic,
    mass_of as mass_of,
    right_side_of as right_side_of,
    settle as settle,
    slope_of as slope_of,
)
from ._tableaus import RosenbrockTableau as RosenbrockTableau
from ._wrapped import AbstractWrapped as AbstractWrapped
