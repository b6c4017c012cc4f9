"""The origin of MIL operations that do not come from a line of the model.

Core ML Tools requires an origin for every operation of an exported program.
"""

from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

NO_ORIGIN = tuple(
    ScopeInfo(source=source, data=[None]) for source in (ScopeSource.EXIR_STACK_TRACE, ScopeSource.EXIR_DEBUG_HANDLE)
)
"""Arguments of `mb.scope`, for the scope in which our own operations are built."""
