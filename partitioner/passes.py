"""MIL passes that every lowering ends with, whichever passes its compile specs name."""

from typing import Any

from coremltools.converters.mil.mil import Builder as mb  # noqa: N813
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY
from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

_NAMESPACE = "partitioner"

# An operation of an exported program must state where it comes from; None says that no line of the model made it.
_NO_ORIGIN = tuple(
    ScopeInfo(source=source, data=[None]) for source in (ScopeSource.EXIR_STACK_TRACE, ScopeSource.EXIR_DEBUG_HANDLE)
)


class DistinctOutputs(AbstractGraphPass):
    """Gives every output a value, and so a name, of its own.

    Removing operations that do nothing, or repeat another one, can leave two outputs with one value, or an output that
    is an input. A model description names each of its inputs and outputs once.
    """

    def apply(self, prog: Any) -> None:
        """Copies, in place, each output that is an input or an earlier output."""
        for function in prog.functions.values():
            taken = set(function.inputs.values())
            outputs = []
            with function, mb.scope(*_NO_ORIGIN):
                for position, output in enumerate(function.outputs):
                    repeated = output in taken
                    outputs.append(mb.identity(x=output, name=f"{output.name}_as_{position}") if repeated else output)
                    taken.add(output)
            function.set_outputs(outputs)


PASS_REGISTRY.add(_NAMESPACE, DistinctOutputs, override=True, name=None)

FINAL_PASSES = (f"{_NAMESPACE}::{DistinctOutputs.__name__}",)
