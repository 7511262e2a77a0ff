from ._check_gradient import check_gradient as check_gradient
from ._diagnose import Diagnosis as Diagnosis, diagnose as diagnose
from ._gradient_check import GradientCheck as GradientCheck
from ._stiffness import (
    Stiffness as Stiffness,
    stiffness as stiffness,
    stiffness_along as stiffness_along,
)
from ._suggestion import Suggestion as Suggestion
