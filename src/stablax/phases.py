"""What happens when: phases and doses."""

from ._models import (
    AbstractDose as AbstractDose,
    AddDose as AddDose,
    DoseFunction as DoseFunction,
    Phase as Phase,
    ScaleDose as ScaleDose,
    SetDose as SetDose,
    SimulatePhases as SimulatePhases,
)
