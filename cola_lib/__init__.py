"""Choose calibration data for compressing a language model, and see what the choice costs."""

__version__ = "0.1.0"
