"""The partitioner: which part of an edge program Core ML takes, and what ExecuTorch must keep whole for it."""

import copy
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import coremltools as ct
import torch
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data, tag_mutated_buffer
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import create_op_support

from partitioner.backend import CoreMLBackend
from partitioner.compile_specs import LoweringOptions, ModelType, parse, with_mark
from partitioner.errors import CompileSpecError, UnsupportedOpError
from partitioner.nodes import constant_values
from partitioner.report import LoweringReport, make_report
from partitioner.requirements import check_target, find_requirements, lowest_target, refuse_dynamic_quantization
from partitioner.skip_names import name_problems
from partitioner.support import (
    Rejection,
    crossing_refusals,
    decide,
    refusal,
    refuse_exposed,
    rejections,
)

logger = logging.getLogger(__name__)

# Kept whole they convert badly: triu and tril lose their edge overload, repeat_interleave becomes a slow loop.
_ALWAYS_DECOMPOSED = frozenset(
    {
        torch.ops.aten.triu.default,
        torch.ops.aten.tril.default,
        torch.ops.aten.repeat_interleave.self_int,
        torch.ops.aten.repeat_interleave.self_Tensor,
    }
)


class CoreMLPartitioner(Partitioner):
    """Hands the operations that Core ML can run to `CoreMLBackend`.

    Args:
        skip_ops_for_coreml_delegation: Lower-case names of operations to keep outside Core ML (``"aten.add.tensor"``).
        compile_specs: What `CoreMLBackend.generate_compile_specs` returns. Without a deployment target the lowest
            one that the program needs is used.
        take_over_mutable_buffer: Mutable buffers become Core ML states (iOS18); else they are inputs and outputs.
        lower_full_graph: Refuse the program unless Core ML takes all of it.
        take_over_constant_data: Weights go into the Core ML model; else they are inputs.

    Attributes:
        rejections: What the last lowering kept outside Core ML, and why. `report` has that and more.

    Raises:
        CompileSpecError: Compile specs are unreadable, arguments contradict each other or have the wrong type, or a
            name is that of no registered operator.
    """

    def __init__(
        self,
        *,
        skip_ops_for_coreml_delegation: list[str] | None = None,
        compile_specs: list[CompileSpec] | None = None,
        take_over_mutable_buffer: bool | None = True,
        lower_full_graph: bool = False,
        take_over_constant_data: bool = True,
    ) -> None:
        super().__init__(spec={})
        _check_types(skip_ops_for_coreml_delegation, compile_specs, lower_full_graph)
        self.skip_ops_for_coreml_delegation = list(skip_ops_for_coreml_delegation or [])
        self.compile_specs = list(compile_specs or [])
        self.take_over_mutable_buffer = bool(take_over_mutable_buffer)
        self.lower_full_graph = lower_full_graph
        self.take_over_constant_data = take_over_constant_data
        self.rejections: tuple[Rejection, ...] = ()
        self._reports: tuple[LoweringReport, ...] = ()
        options = parse(self.compile_specs)
        self._check_arguments(options)
        target = options.minimum_deployment_target
        self.delegation_spec = DelegationSpec(CoreMLBackend.__name__, self._marked_specs(target))

    def __repr__(self) -> str:
        specs = ", ".join(f"{spec.key}={spec.value.decode(errors='replace')}" for spec in self.compile_specs)
        return (
            f"{type(self).__name__}(skip_ops_for_coreml_delegation={self.skip_ops_for_coreml_delegation}, "
            f"compile_specs=[{specs}], take_over_mutable_buffer={self.take_over_mutable_buffer}, "
            f"lower_full_graph={self.lower_full_graph}, take_over_constant_data={self.take_over_constant_data})"
        )

    def transform_for_pre_decomposition(self, exported_program: ExportedProgram) -> ExportedProgram:
        """Refuses, before any expensive work, a program that cannot be lowered as asked.

        Returns:
            The program, with its own tables of constants: delegation removes entries from them, and the caller may
            want to lower the program again.

        Raises:
            DeploymentTargetError: The program needs a newer deployment target than the given one.
            UnsupportedOpError: The program quantizes dynamically.
        """
        self.rejections = ()
        self._reports = ()
        self._target_for(exported_program)
        program = copy.copy(exported_program)
        program._state_dict = dict(exported_program.state_dict)
        program._constants = dict(exported_program.constants)
        return program

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[Node], bool] | None]:
        """Names the composite operations of the program that Core ML has as one operation.

        An operation of which Core ML refuses one call is decomposed everywhere: ExecuTorch decides by operation, and
        has no kernels for composite ones.
        """
        skipped, constants = self.skipped, constant_values(ep, self.take_over_constant_data)
        kept: dict[torch._ops.OpOverload, bool] = {}
        for node in ep.graph.nodes:
            target = node.target
            if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
                continue
            if kept.get(target, target not in _ALWAYS_DECOMPOSED and not _is_view(target)):
                kept[target] = refusal(node, skipped, constants) is None
        return [target for target, keep in kept.items() if keep], None

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tags the nodes that Core ML takes.

        Raises:
            DeploymentTargetError: The program needs a newer deployment target than the given one.
            UnsupportedOpError: `lower_full_graph` is set and Core ML cannot take everything, or the program
                quantizes dynamically.
        """
        target = self._target_for(exported_program)
        decisions = decide(exported_program, self.skipped, self.take_over_constant_data)
        groups = _group(exported_program, decisions)
        refused = rejections(decisions)
        self.rejections += tuple(refused)
        for rejection in refused:
            logger.info("kept outside Core ML: %s", rejection)
        if self.lower_full_graph and refused:
            raise UnsupportedOpError(
                "lower_full_graph=True, but Core ML does not take:\n  "
                + "\n  ".join(map(str, refused))
                + "\nUse lower_full_graph=False to run them outside Core ML, or rewrite the model without them"
            )
        if any(rejection.op.startswith("quantized_decomposed.") for rejection in refused):
            import executorch.kernels.quantized  # registers the kernels of what stays outside  # noqa: F401
        self.record(exported_program, decisions, len(groups))
        spec = DelegationSpec(self.delegation_spec.backend_id, self._marked_specs(target))
        tags: dict[str, DelegationSpec] = {}
        for index, nodes in enumerate(groups):
            tags[f"tag{index}"] = spec
            for node in nodes:
                node.meta["delegation_tag"] = f"tag{index}"
        if self.take_over_constant_data:
            tag_constant_data(exported_program)
        if self.take_over_mutable_buffer:
            tag_mutated_buffer(exported_program)
        return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)

    def report(self) -> tuple[LoweringReport, ...]:
        """What the last lowering did, a report for each method that was partitioned; print them to read them."""
        return self._reports

    def record(self, program: ExportedProgram, decisions: Mapping[Node, str | None], partitions: int) -> None:
        """Adds to the report what was decided for a program."""
        needs = find_requirements(program, self.skipped, self.take_over_mutable_buffer)
        given = parse(self.compile_specs).minimum_deployment_target
        target = lowest_target(needs) if given is None else given
        self._reports += (make_report(decisions, partitions, target, needs, given is not None),)

    def specs_for(self, program: ExportedProgram) -> list[CompileSpec]:
        """The compile specs for our backend, with the deployment target that a program gets."""
        return self._marked_specs(self._target_for(program))

    def _marked_specs(self, target: ct.target | None) -> list[CompileSpec]:
        return with_mark(self.compile_specs, target, full_graph=self.lower_full_graph)

    @property
    def skipped(self) -> frozenset[str]:
        """Lower-case names of the operations that the user keeps outside Core ML."""
        return frozenset(name.lower() for name in self.skip_ops_for_coreml_delegation)

    def _check_arguments(self, options: LoweringOptions) -> None:
        problems = []
        if self.lower_full_graph:
            if self.skip_ops_for_coreml_delegation:
                problems.append("skip_ops_for_coreml_delegation must be empty when lower_full_graph=True")
            if not self.take_over_constant_data:
                problems.append("take_over_constant_data must be True when lower_full_graph=True")
            if not self.take_over_mutable_buffer:
                problems.append("take_over_mutable_buffer must be True when lower_full_graph=True")
        elif options.enumerated_shapes is not None:
            problems.append("lower_full_graph must be True when compile_specs enumerate shapes")
        if options.model_type == ModelType.COMPILED_MODEL and sys.platform != "darwin":
            problems.append(
                "model_type COMPILED_MODEL needs macOS, whose Core ML compiles the model; "
                "use CoreMLBackend.MODEL_TYPE.MODEL here and let the device compile it"
            )
        if problems:
            raise CompileSpecError("; ".join(problems))

    def _target_for(self, program: ExportedProgram) -> ct.target | None:
        refuse_dynamic_quantization(program)
        needs = find_requirements(program, self.skipped, self.take_over_mutable_buffer)
        given = parse(self.compile_specs).minimum_deployment_target
        if given is not None:
            check_target(needs, given)
            return given
        lowest = lowest_target(needs)
        if lowest is not None:
            reasons = ", ".join(sorted({need.feature for need in needs if need.target == lowest}))
            logger.info("deployment target %s selected, because the program has %s", lowest.name, reasons)
        return lowest


def _check_types(skipped: Any, compile_specs: Any, lower_full_graph: Any) -> None:
    problems = name_problems(skipped)
    whole = compile_specs is None or (
        isinstance(compile_specs, (list, tuple)) and all(isinstance(spec, CompileSpec) for spec in compile_specs)
    )
    if not whole:
        problems.append(
            f"compile_specs={compile_specs!r} must be a list of CompileSpec, such as the one that "
            "CoreMLBackend.generate_compile_specs() returns"
        )
    if not isinstance(lower_full_graph, bool):
        problems.append(f"lower_full_graph={lower_full_graph!r} must be True or False")
    if problems:
        raise CompileSpecError("; ".join(problems))


def _is_view(target: torch._ops.OpOverload) -> bool:
    arguments = target._schema.arguments
    alias = arguments[0].alias_info if arguments else None
    return alias is not None and not alias.is_write


def _group(program: ExportedProgram, decisions: dict[Node, str | None]) -> Sequence[Sequence[Node]]:
    """Groups the taken nodes into partitions that can each run as one call.

    What would pass from one partition to another in a dtype that no delegate takes is refused, in `decisions`.
    """
    while True:
        groups = _proposed(program, decisions)
        crossing = crossing_refusals(groups) if len(groups) > 1 else {}
        if not crossing:
            return groups
        decisions.update(crossing)
        refuse_exposed(program, decisions)


def _proposed(program: ExportedProgram, decisions: dict[Node, str | None]) -> Sequence[Sequence[Node]]:
    taken = [node for node, reason in decisions.items() if reason is None]
    if len(taken) == len(decisions):
        return [taken] if taken else []
    support = create_op_support(lambda _modules, node: decisions.get(node, "outside") is None)
    proposer = CapabilityBasedPartitioner(program.graph_module, support, allows_single_node_partition=True)
    return [list(partition.nodes) for partition in proposer.propose_partitions()]
