"""Fields: what dy/dt is. Guards, neural fields and those that are stable by construction, other
coordinates, hybrids; and what drives them."""

from ._coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    LogField as LogField,
    ScaledField as ScaledField,
    SoftplusField as SoftplusField,
)
from ._fields import (
    Guard as Guard,
    GuardActivity as GuardActivity,
    Guarded as Guarded,
    GuardedField as GuardedField,
    Input as Input,
)
from ._hybrids import (
    HybridField as HybridField,
)
from ._neural import (
    AntisymmetricField as AntisymmetricField,
    ContractingField as ContractingField,
    DampedField as DampedField,
    GradientFlowField as GradientFlowField,
    LyapunovField as LyapunovField,
    MLPField as MLPField,
    PortHamiltonianField as PortHamiltonianField,
    QuasiPositiveField as QuasiPositiveField,
    ScaledNeuralField as ScaledNeuralField,
    Scales as Scales,
)
from ._reactions import (
    ReactionField as ReactionField,
)
