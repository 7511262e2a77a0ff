from ._antisymmetric import AntisymmetricField as AntisymmetricField
from ._contracting import ContractingField as ContractingField
from ._damped import DampedField as DampedField
from ._gradient_flow import GradientFlowField as GradientFlowField
from ._lyapunov import LyapunovField as LyapunovField
from ._mlp import MLPField as MLPField
from ._port_hamiltonian import PortHamiltonianField as PortHamiltonianField
from ._quasi_positive import QuasiPositiveField as QuasiPositiveField
from ._scaled import ScaledNeuralField as ScaledNeuralField, Scales as Scales
