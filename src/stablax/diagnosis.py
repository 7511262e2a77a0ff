"""Why a solve fails or is slow, and whether a gradient is right."""

from ._diagnostics import (
    Diagnosis as Diagnosis,
    GradientCheck as GradientCheck,
    Stiffness as Stiffness,
    Suggestion as Suggestion,
    check_gradient as check_gradient,
    diagnose as diagnose,
    stiffness as stiffness,
    stiffness_along as stiffness_along,
)
