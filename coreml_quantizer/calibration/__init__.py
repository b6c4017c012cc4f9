"""Calibration: runs a prepared model on data, so that its observers find ranges."""

from coreml_quantizer.calibration.loop import calibrate

__all__ = ["calibrate"]
