from ._hybrid import HybridField as HybridField
