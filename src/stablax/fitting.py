"""From data to a fit: parameters with names, series of measurements, objectives,
and the search for parameters."""

from ._fits import Fit as Fit, fit as fit
from ._objectives import (
    AbstractNoise as AbstractNoise,
    Evaluation as Evaluation,
    LaplaceNoise as LaplaceNoise,
    LogNormalNoise as LogNormalNoise,
    NormalNoise as NormalNoise,
    Objective as Objective,
    Observable as Observable,
    Solved as Solved,
)
from ._parameters import (
    AbstractPrior as AbstractPrior,
    LaplacePrior as LaplacePrior,
    LogNormalPrior as LogNormalPrior,
    NormalPrior as NormalPrior,
    Parameter as Parameter,
    Parameters as Parameters,
    UniformPrior as UniformPrior,
    natural as natural,
    parameters as parameters,
)
from ._series import Series as Series
