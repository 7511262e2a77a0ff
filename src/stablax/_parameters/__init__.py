from ._declares import (
    Declares as Declares,
    Deferred as Deferred,
    declared as declared,
    natural as natural,
)
from ._parameter import Parameter as Parameter, ParameterScale as ParameterScale
from ._priors import (
    AbstractPrior as AbstractPrior,
    LaplacePrior as LaplacePrior,
    LogNormalPrior as LogNormalPrior,
    NormalPrior as NormalPrior,
    UniformPrior as UniformPrior,
)
from ._table import Parameters as Parameters, parameters as parameters, table_of as table_of
