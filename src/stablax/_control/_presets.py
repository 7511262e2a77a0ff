"""The presets of `StiffPID`, as data. The measurements behind them: `benchmarks/presets.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """Gains: factor = safety * err^-((i + p + d)/k) * err_prev^((p + 2d)/k) ...; and the limit of
    growth in the step after a rejected one."""

    pcoeff: float
    icoeff: float
    factormax_after_rejection: float | None = None


@dataclass(frozen=True)
class Preset:
    """Tolerances, and whether the law is the smoother one."""

    rtol: float
    atol: float
    when: str
    smooth: bool = False


# Per solver family the law with the fewest attempts at equal error, and that for `smooth` presets.
LAWS = {
    "rosenbrock": (Law(0.0, 1.0), Law(0.1, 0.8, 1.0)),
    "esdirk": (Law(0.25, 0.5), Law(0.4, 0.3, 1.0)),
    "explicit": (Law(0.4, 0.3), Law(0.4, 0.3, 1.0)),
}

PRESETS = {
    "balanced": Preset(
        1e-6,
        1e-9,
        "the default: six digits; fits and simulations of stiff systems",
    ),
    "robust": Preset(
        1e-6,
        1e-8,
        "a smoother step size, and no growth right after a rejection: where the field is rough, or "
        "'balanced' rejects many steps",
        smooth=True,
    ),
    "precise": Preset(
        1e-9,
        1e-12,
        "nine digits: reference solutions, finite differences, ill-conditioned fits; float64 only "
        "pays off",
    ),
    "fast": Preset(
        1e-3,
        1e-6,
        "three digits: early training, neural fields, noisy data",
    ),
}
