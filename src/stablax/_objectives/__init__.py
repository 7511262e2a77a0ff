from ._evaluation import Evaluation as Evaluation
from ._noise import (
    AbstractNoise as AbstractNoise,
    LaplaceNoise as LaplaceNoise,
    LogNormalNoise as LogNormalNoise,
    NormalNoise as NormalNoise,
)
from ._objective import Objective as Objective
from ._observable import Observable as Observable
from ._solved import Solved as Solved
