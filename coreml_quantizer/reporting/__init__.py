"""The placement report: what became of every operator, and why."""

from coreml_quantizer.reporting.report import Report, Share, make_report

__all__ = ["Report", "Share", "make_report"]
