from ._banded import Banded as Banded
from ._banded_lu import BandedLU as BandedLU
from ._base import (
    AbstractFactorisation as AbstractFactorisation,
    AbstractJacobian as AbstractJacobian,
    Factored as Factored,
    FlatField as FlatField,
)
from ._dense import (
    Dense as Dense,
    JacobianLike as JacobianLike,
    as_jacobian as as_jacobian,
)
from ._lu import DenseLU as DenseLU, EquilibratedLU as EquilibratedLU
from ._mass import Mass as Mass, as_mass as as_mass
from ._matrix_free import Iterative as Iterative, MatrixFree as MatrixFree
from ._null_space import (
    combination as combination,
    echelon as echelon,
    left_null_space as left_null_space,
    row_projector as row_projector,
)
from ._sparse import ReorderedLU as ReorderedLU, Sparse as Sparse
