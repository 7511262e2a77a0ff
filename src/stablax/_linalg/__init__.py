from ._banded import Banded as Banded
from ._dense import (
    Dense as Dense,
    Equilibrated as Equilibrated,
    as_jacobian as as_jacobian,
    linearise as linearise,
)
from ._jacobian import AbstractJacobian as AbstractJacobian, Factored as Factored
from ._matrix_free import MatrixFree as MatrixFree
from ._null_space import (
    combination as combination,
    echelon as echelon,
    left_null_space as left_null_space,
    row_projector as row_projector,
)
from ._sparse import Sparse as Sparse
