from ._finite_steps import FiniteSteps as FiniteSteps
from ._kvaerno import PatientChord as PatientChord, kvaerno5 as kvaerno5
