from ._base import AbstractCoordinates as AbstractCoordinates, innermost as innermost
from ._log import LogField as LogField
from ._scaled import ScaledField as ScaledField
from ._softplus import SoftplusField as SoftplusField
