"""The observers of a prepared graph."""

import torch
from torch import nn
from torch.fx import GraphModule

from coreml_quantizer.errors import CalibrationError, QuantizerError
from coreml_quantizer.estimators import RangeObserver
from coreml_quantizer.graph.nodes import module_stack
from coreml_quantizer.placement.decisions import decisions_of

Observers = dict[str, RangeObserver]
"""Observers by the name under which the graph has them, in graph order."""


def observers_of(prepared: GraphModule) -> Observers:
    """Returns all observers of `prepared`, including those of weights; none if its configuration quantizes nothing.

    Raises:
        CalibrationError: `prepared` was not prepared by this package, or is converted already.
    """
    found = find_observers(prepared)
    if not found and not _stays_float(prepared):
        raise CalibrationError(
            "This graph has no observers of CoreMLQuantizer. Pass what prepare_pt2e(graph, CoreMLQuantizer(...)) "
            "returned, before convert_pt2e."
        )
    return found


def _stays_float(prepared: nn.Module) -> bool:
    try:
        return isinstance(prepared, GraphModule) and all(d.outcome == "float" for d in decisions_of(prepared))
    except QuantizerError:
        return False


def find_observers(prepared: nn.Module) -> Observers:
    """Returns the observers of any graph; an empty dict if it has none, or is not a graph."""
    found: Observers = {}
    for node in prepared.graph.nodes if isinstance(prepared, GraphModule) else ():
        if node.op == "call_module":
            module = prepared.get_submodule(str(node.target))
            if isinstance(module, RangeObserver):
                found[str(node.target)] = module
    return found


def name_modules(prepared: GraphModule) -> None:
    """Sets the `module_name` of every observer to the module that makes its tensor, for messages."""
    for node in prepared.graph.nodes:
        if node.op == "call_module":
            module = prepared.get_submodule(str(node.target))
            source = node.args[0]
            if isinstance(module, RangeObserver) and source.op == "call_function":
                stack = module_stack(source)
                module.module_name = stack[-1][0] if stack else ""


def check_finite(observers: Observers) -> None:
    """Checks all ranges at once.

    Raises:
        CalibrationError: An observer saw not-a-number or infinite values. The message names the first in graph order,
            because the values began there.
    """
    watching = [observer for observer in observers.values() if observer.observes]
    if not watching:
        return
    low = torch.stack([observer.min_val for observer in watching])
    high = torch.stack([observer.max_val for observer in watching])
    # An observer that saw nothing has the range from inf to -inf, which is fine here.
    fine = (low > -torch.inf) & (high < torch.inf)
    if not bool(fine.all()):
        first = int((~fine).nonzero()[0, 0])
        raise CalibrationError(watching[first].why_no_range())
