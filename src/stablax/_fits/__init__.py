from ._fit import Fit as Fit, fit as fit
