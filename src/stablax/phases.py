"""What happens when: phases, doses and events."""

from ._models import (
    AbstractDose as AbstractDose,
    AddDose as AddDose,
    DoseFunction as DoseFunction,
    Event as Event,
    EventLog as EventLog,
    Phase as Phase,
    ScaleDose as ScaleDose,
    SetDose as SetDose,
    SimulatePhases as SimulatePhases,
)
