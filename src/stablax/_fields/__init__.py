from ._activity import GuardActivity as GuardActivity
from ._antisymmetric import AntisymmetricField as AntisymmetricField
from ._aside import Aside as Aside
from ._constants import rate_constant as rate_constant
from ._contracting import ContractingField as ContractingField
from ._coordinates import (
    AbstractCoordinates as AbstractCoordinates,
    LogField as LogField,
    ScaledField as ScaledField,
    SoftplusField as SoftplusField,
    innermost as innermost,
)
from ._damped import DampedField as DampedField
from ._declared import declared_conserved as declared_conserved
from ._gradient_flow import GradientFlowField as GradientFlowField
from ._guard import Guard as Guard
from ._guarded import (
    Guarded as Guarded,
    GuardedField as GuardedField,
    as_guarded as as_guarded,
    evaluate as evaluate,
    evaluate_aside as evaluate_aside,
    evaluate_ungated as evaluate_ungated,
)
from ._hybrid import HybridField as HybridField
from ._lyapunov import LyapunovField as LyapunovField
from ._mlp import MLPField as MLPField
from ._port_hamiltonian import PortHamiltonianField as PortHamiltonianField
from ._quasi_positive import QuasiPositiveField as QuasiPositiveField
from ._rate_laws import (
    AbstractRateLaw as AbstractRateLaw,
    Hill as Hill,
    MassAction as MassAction,
    MichaelisMenten as MichaelisMenten,
    NeuralRate as NeuralRate,
    ProductRate as ProductRate,
)
from ._reaction import Reaction as Reaction
from ._reaction_field import ReactionField as ReactionField
from ._scaled import ScaledNeuralField as ScaledNeuralField, Scales as Scales
