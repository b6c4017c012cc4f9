"""Errors for failed conversions: the operation, its line in the model, and how to keep it out of Core ML."""

import re
from collections.abc import Callable

import coremltools as ct
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.conversion.bisection import first_failing
from partitioner.conversion.session import Position
from partitioner.errors import ConversionError, DeploymentTargetError
from partitioner.graph.nodes import op_name, source_line
from partitioner.options.compile_specs import LoweringOptions
from partitioner.support.kernels import runs_if_skipped

_NO_STATES = "take_over_mutable_buffer=False"
_OPSET_ERROR = re.compile(r"No available version for (\S+) in the .* opset.*at least coremltools\.target\.(\w+)")


def needed_target(error: Exception) -> ct.target | None:
    """Returns the lowest deployment target with the operation that a conversion lacked; None for another error."""
    found = _OPSET_ERROR.search(str(error))
    return ct.target[found.group(2)] if found else None


def failure(
    error: Exception,
    position: Position,
    program: ExportedProgram,
    options: LoweringOptions,
    attempt: Callable[[ExportedProgram], None],
) -> DeploymentTargetError | ConversionError:
    """Returns an error that says which operation made a conversion fail, and what to do about it.

    Args:
        error: What Core ML Tools raised.
        position: How far the conversion was when it failed.
        program: The partition.
        options: How the partition was converted.
        attempt: Converts a part of the partition. It is called to find the operation when a MIL pass failed.

    Returns:
        The error to raise, with `error` as its cause.
    """
    stage = _stage(position)
    node = _node_at(position, program)
    if node is None and position.begun:
        node = first_failing(program, attempt)
    place = _describe(node, stage)
    needed = needed_target(error)
    failed: DeploymentTargetError | ConversionError
    if needed is not None:
        target = options.minimum_deployment_target
        failed = DeploymentTargetError(
            f"{place} needs the deployment target {needed.name}; it is {target.name if target else 'not set'}. Use "
            f"CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.{needed.name})"
        )
    else:
        cause = f"{type(error).__name__}: {error}"
        failed = ConversionError(f"Core ML Tools could not convert {place}: {cause}\n{_remedy(node, program, options)}")
    failed.node = None if node is None else node.name
    return failed


def _remedy(node: Node | None, program: ExportedProgram, options: LoweringOptions) -> str:
    if options.enumerated_shapes is not None:
        return "Enumerated shapes need the whole program in Core ML: rewrite the model without the operation"
    whole = "lower_full_graph=False, " if options.lower_full_graph else ""
    choices = []
    if node is not None and runs_if_skipped(node):
        choices.append(f"CoreMLPartitioner({whole}skip_ops_for_coreml_delegation=[{op_name(node).lower()!r}])")
        if not options.on_trial:
            choices.append(f'CoreMLPartitioner({whole}on_error="fallback") for whatever fails')
    lines = [f"To keep the operation out of Core ML: {', or '.join(choices)}"] if choices else []
    if node is not None and not choices:
        lines.append(
            "ExecuTorch has no kernel for the operation and no decomposition of it: write the model without it"
        )
    if node is None and program.graph_signature.buffers_to_mutate:
        lines.append(f"To keep the mutable buffers out of Core ML: CoreMLPartitioner({whole}{_NO_STATES})")
    if node is None:
        lines.append(
            f"To keep an operation out of Core ML: CoreMLPartitioner({whole}skip_ops_for_coreml_delegation=[...])"
        )
    return "\n".join(lines)


def _node_at(position: Position, program: ExportedProgram) -> Node | None:
    """Returns the node that was being converted; None when the MIL passes run, because they see the whole program."""
    if position.node is None:
        return None
    return next((node for node in program.graph.nodes if node.name == position.node.name), None)


def _stage(position: Position) -> str | None:
    """Returns what was being done when the frontend was not converting an operation; otherwise None."""
    if position.pass_name is not None:
        return f"MIL pass {position.pass_name!r}"
    return None if position.node is not None else "its outputs" if position.begun else "its inputs and constants"


def _describe(node: Node | None, stage: str | None) -> str:
    if node is None:
        return f"the partition ({stage})"
    line = source_line(node.meta.get("stack_trace"))
    details = [f"node {node.name!r}", *([line] if line else []), *([f"in {stage}"] if stage else [])]
    return f"{op_name(node)} ({', '.join(details)})"
