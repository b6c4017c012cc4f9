"""Calibration: shows data to the observers of a prepared model."""

from coreml_quantizer.calibration.loop import calibrate

__all__ = ["calibrate"]
