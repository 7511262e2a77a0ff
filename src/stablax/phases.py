"""What happens when: phases, doses and events."""

from ._models import (
    AbstractDose as AbstractDose,
    AddDose as AddDose,
    Dose as Dose,
    DoseFunction as DoseFunction,
    Event as Event,
    EventLog as EventLog,
    Infusion as Infusion,
    Patients as Patients,
    PeriodicState as PeriodicState,
    Phase as Phase,
    Reset as Reset,
    ScaleDose as ScaleDose,
    Schedule as Schedule,
    SetDose as SetDose,
    SimulatePhases as SimulatePhases,
    find_periodic_state as find_periodic_state,
)
