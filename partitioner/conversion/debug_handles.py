"""Debug handles, which link an operation of the Core ML model to the operation of the exported program it comes from.

ExecuTorch numbers the operations of an edge program. ETRecords hold the numbers, and `Inspector` joins them with what a
delegate logs under an operation's name.
"""

from typing import Any

from coremltools.converters.mil.mil.scope import ScopeSource

HandleMap = dict[str, tuple[int, ...]]


def debug_handles(program: Any) -> HandleMap:
    """Reads the debug handles of a MIL program.

    Args:
        program: The program after all passes.

    Returns:
        The name of an operation's first output -> the handle of the program's operation that has this result. Constants
        and intermediate steps are left out, because `Inspector` would compare them with the result.
    """
    names: dict[int, str] = {}
    for function in program.functions.values():
        for operation in function.operations:
            handle = (operation.scopes.get(ScopeSource.EXIR_DEBUG_HANDLE) or [None])[0]
            if handle is not None and operation.op_type != "const" and operation.outputs:
                names[int(handle)] = operation.outputs[0].name
    return {name: (handle,) for handle, name in names.items()}
