"""Checks of the partitioner's arguments: their types, and combinations that contradict each other."""

import sys
from typing import Any

from executorch.exir.backend.compile_spec_schema import CompileSpec

from partitioner.errors import CompileSpecError
from partitioner.options.compile_specs import LoweringOptions, ModelType
from partitioner.options.skip_names import name_problems

ON_ERROR = ("raise", "fallback")


def check_types(skipped: Any, compile_specs: Any, on_error: Any, **flags: Any) -> None:
    """Refuses arguments of the wrong type.

    Args:
        skipped: `skip_ops_for_coreml_delegation`.
        compile_specs: The argument that must be a list of compile specs, or None.
        on_error: The argument that must be one of `ON_ERROR`.
        flags: The arguments that must be True or False, by name.

    Raises:
        CompileSpecError: Some arguments are wrong. The message names each of them and its allowed values.
    """
    problems = name_problems(skipped)
    whole = compile_specs is None or (
        isinstance(compile_specs, (list, tuple)) and all(isinstance(spec, CompileSpec) for spec in compile_specs)
    )
    if not whole:
        problems.append(
            f"compile_specs={compile_specs!r} must be a list of CompileSpec, such as the one that "
            "CoreMLBackend.generate_compile_specs() returns"
        )
    problems += [f"{name}={value!r} must be True or False" for name, value in flags.items() if type(value) is not bool]
    if on_error not in ON_ERROR:
        problems.append(f"on_error={on_error!r} must be one of {', '.join(map(repr, ON_ERROR))}")
    if problems:
        raise CompileSpecError("; ".join(problems))


def check_together(
    options: LoweringOptions,
    *,
    skipped: bool,
    lower_full_graph: bool,
    take_over_constant_data: bool,
    take_over_mutable_buffer: bool,
    on_error: str,
) -> None:
    """Refuses arguments that contradict each other, or that need macOS.

    Raises:
        CompileSpecError: Some arguments contradict each other, or need macOS. The message names every problem.
    """
    required = (
        (not skipped, "skip_ops_for_coreml_delegation must be empty"),
        (take_over_constant_data, "take_over_constant_data must be True"),
        (take_over_mutable_buffer, "take_over_mutable_buffer must be True"),
        (on_error == "raise", 'on_error must be "raise"'),
    )
    problems = []
    if lower_full_graph:
        problems += [f"{rule} when lower_full_graph=True" for holds, rule in required if not holds]
    elif options.enumerated_shapes is not None:
        problems.append("lower_full_graph must be True when compile_specs enumerate shapes")
    if options.model_type == ModelType.COMPILED_MODEL and sys.platform != "darwin":
        problems.append(
            "model_type COMPILED_MODEL needs macOS, whose Core ML compiles the model; "
            "use CoreMLBackend.MODEL_TYPE.MODEL here and let the device compile it"
        )
    if problems:
        raise CompileSpecError("; ".join(problems))
