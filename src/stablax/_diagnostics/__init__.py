from ._causes import Suggestion as Suggestion
from ._check_gradient import (
    GradientCheck as GradientCheck,
    check_gradient as check_gradient,
)
from ._diagnose import Diagnosis as Diagnosis, diagnose as diagnose
from ._stiffness import (
    Stiffness as Stiffness,
    stiffness as stiffness,
    stiffness_along as stiffness_along,
)
