"""The origin of MIL operations that no line of the model made.

Core ML Tools asks every operation of an exported program where it comes from.
"""

from coremltools.converters.mil.mil.scope import ScopeInfo, ScopeSource

NO_ORIGIN = tuple(
    ScopeInfo(source=source, data=[None]) for source in (ScopeSource.EXIR_STACK_TRACE, ScopeSource.EXIR_DEBUG_HANDLE)
)
"""Arguments of `mb.scope` under which our own operations are built."""
