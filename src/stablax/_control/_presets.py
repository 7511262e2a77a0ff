"""The presets of `StiffPID`, as data. The measurements behind them: `benchmarks/presets.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Tolerances and gains: factor = safety * err^(-(i + p + d)/k) * err_prev^((p + 2d)/k) ..."""

    rtol: float
    atol: float
    pcoeff: float
    icoeff: float
    when: str


PRESETS = {
    "balanced": Preset(
        1e-6,
        1e-9,
        0.0,
        1.0,
        "the default: the elementary controller, six digits; fits and simulations of stiff systems",
    ),
    "robust": Preset(
        1e-6,
        1e-8,
        0.4,
        0.3,
        "PI control with gains 0.4 / 0.3, as stiff practice recommends: a smoother step size "
        "where 'balanced' rejects many steps",
    ),
    "precise": Preset(
        1e-9,
        1e-12,
        0.0,
        1.0,
        "nine digits: reference solutions, finite differences, ill-conditioned fits; float64 only "
        "pays off",
    ),
    "fast": Preset(
        1e-3,
        1e-6,
        0.0,
        1.0,
        "three digits: early training, neural fields, noisy data",
    ),
}
