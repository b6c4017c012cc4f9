"""The placement report: what happened to every operator, and why."""

from coreml_quantizer.reporting.report import Report, Share, make_report

__all__ = ["Report", "Share", "make_report"]
