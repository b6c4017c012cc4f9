"""The partitioner, which chooses what Core ML takes of a program and what ExecuTorch must not decompose."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal
from weakref import WeakValueDictionary

import coremltools as ct
import torch
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.backend.utils import tag_constant_data, tag_mutated_buffer
from torch.export import ExportedProgram
from torch.fx import Node

from partitioner.backend import CoreMLBackend
from partitioner.conversion.trials import failures
from partitioner.errors import UnsupportedOpError
from partitioner.graph.nodes import constant_values
from partitioner.graph.size_ranges import SizeRange, merged, size_ranges, unbounded_sizes
from partitioner.graph.states import detach, initialized_buffers, keep_outside, spread, unfit
from partitioner.options.arguments import check_together, check_types
from partitioner.options.compile_specs import NotedSpecs, parse, with_mark, write_option
from partitioner.options.skip_names import without_effect
from partitioner.refusals import Kind, Refusal
from partitioner.reporting.report import LoweringReport, make_report
from partitioner.reporting.storage_notes import storage_notes
from partitioner.rewrites.adaptive_pools import replace_adaptive_pools
from partitioner.rewrites.contiguous_inputs import copy_strided_inputs
from partitioner.rewrites.floor_division import replace_floor_divisions
from partitioner.rewrites.functional import functional
from partitioner.rewrites.high_ranks import lower_ranks
from partitioner.rewrites.leading_dimensions import merge_leading_dimensions
from partitioner.rewrites.separate_constants import separate_constants
from partitioner.support.composites import decompose, is_at_risk, kept_whole
from partitioner.support.decide import Rejection, decide, rejections
from partitioner.support.groups import Decisions, Groups, group
from partitioner.support.readiness import random_notes, refuse_foreign_weights, refuse_unfinished
from partitioner.support.requirements import check_target, find_requirements, lowest_target, refuse_dynamic_quantization
from partitioner.support.unrunnable import refuse_without_kernels

logger = logging.getLogger(__name__)


class CoreMLPartitioner(Partitioner):
    """A partitioner that hands the operations that Core ML can run to `CoreMLBackend`.

    Args:
        skip_ops_for_coreml_delegation: Lower-case names of operations to keep outside Core ML (``"aten.add.tensor"``).
        compile_specs: What `CoreMLBackend.generate_compile_specs` returns. Without a deployment target the lowest
            one that the program needs is used.
        take_over_mutable_buffer: Whether mutable buffers become Core ML states (iOS18). If not, they are inputs and
            outputs.
        lower_full_graph: Whether to refuse the program unless Core ML takes all of it.
        take_over_constant_data: Whether weights go into the Core ML model. If not, they are inputs.
        on_error: What happens to an operation that Core ML Tools fails to convert. ``"raise"``: the lowering ends with
            an error that names it. ``"fallback"``: it stays outside Core ML, and the report says so. Each partition is
            then converted one more time.
        delegate_islands: Whether Core ML also gets partitions that `partitioner.support.small_groups` finds too small
            for a call.

    Attributes:
        rejections: What the last lowering kept outside Core ML, and why. `report` has that and more.

    Raises:
        CompileSpecError: Compile specs are unreadable, arguments contradict each other or have the wrong type, or no
            registered operator has a given name.
    """

    def __init__(
        self,
        *,
        skip_ops_for_coreml_delegation: list[str] | None = None,
        compile_specs: list[CompileSpec] | None = None,
        take_over_mutable_buffer: bool | None = True,
        lower_full_graph: bool = False,
        take_over_constant_data: bool = True,
        on_error: Literal["raise", "fallback"] = "raise",
        delegate_islands: bool = False,
    ) -> None:
        super().__init__(spec={})
        flags = {"lower_full_graph": lower_full_graph, "delegate_islands": delegate_islands}
        check_types(skip_ops_for_coreml_delegation, compile_specs, on_error, **flags)
        self.skip_ops_for_coreml_delegation = list(skip_ops_for_coreml_delegation or [])
        self.compile_specs = list(compile_specs or [])
        self.take_over_mutable_buffer = bool(take_over_mutable_buffer)
        self.lower_full_graph = lower_full_graph
        self.take_over_constant_data = take_over_constant_data
        self.on_error = on_error
        self.delegate_islands = delegate_islands
        self.rejections: tuple[Rejection, ...] = ()
        self._reports: tuple[LoweringReport, ...] = ()
        self._notes: tuple[list[str], ...] = ()
        self._size_ranges: tuple[SizeRange, ...] = ()
        self._initialized: frozenset[str] = frozenset()
        # Weak, so that a partitioner that is kept for its report does not keep the weights of a program.
        self._constants: WeakValueDictionary[str, torch.Tensor] = WeakValueDictionary()
        options = parse(self.compile_specs)
        check_together(
            options,
            skipped=bool(self.skip_ops_for_coreml_delegation),
            lower_full_graph=lower_full_graph,
            take_over_constant_data=take_over_constant_data,
            take_over_mutable_buffer=self.take_over_mutable_buffer,
            on_error=on_error,
        )
        target = options.minimum_deployment_target
        self.delegation_spec = DelegationSpec(CoreMLBackend.__name__, self._marked_specs(target))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_constants": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _constants=WeakValueDictionary())

    def __repr__(self) -> str:
        specs = ", ".join(f"{spec.key}={spec.value.decode(errors='replace')}" for spec in self.compile_specs)
        return (
            f"{type(self).__name__}(skip_ops_for_coreml_delegation={self.skip_ops_for_coreml_delegation}, "
            f"compile_specs=[{specs}], take_over_mutable_buffer={self.take_over_mutable_buffer}, "
            f"lower_full_graph={self.lower_full_graph}, take_over_constant_data={self.take_over_constant_data}, "
            f"on_error={self.on_error!r}, delegate_islands={self.delegate_islands})"
        )

    def transform_for_pre_decomposition(self, exported_program: ExportedProgram) -> ExportedProgram:
        """Refuses a program that cannot be lowered as asked, before any expensive work, and prepares all others.

        Returns:
            The program in functional form, with its own tables of constants. Delegation removes entries from these
            tables, and the caller may want to lower the program again.

        Raises:
            DeploymentTargetError: The program needs a newer deployment target than the given one.
            UnsupportedOpError: The program quantizes dynamically, was exported in training mode, was prepared for
                quantization and not converted, or has an input that ExecuTorch's runtime does not take.
        """
        refuse_unfinished(exported_program)
        refuse_foreign_weights(exported_program)
        finished = bool(self._reports)  # what is known is of an earlier lowering, not of another method
        self.rejections, self._reports, self._notes = (), (), ()
        self._target_for(exported_program)
        known = () if finished else self._size_ranges
        self._size_ranges = merged((*known, *size_ranges(exported_program)))
        program = functional(exported_program)
        detach(program)
        separate_constants(program)
        copy_strided_inputs(program)
        replace_adaptive_pools(program)
        replace_floor_divisions(program)
        merge_leading_dimensions(program)
        lower_ranks(program)
        program = decompose(program, self.skipped, self.take_over_constant_data)
        self._initialized = initialized_buffers(program) | (frozenset() if finished else self._initialized)
        return program

    def ops_to_not_decompose(
        self, ep: ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Callable[[Node], bool] | None]:
        """Returns the composite operations of the program that Core ML has as one operation.

        If Core ML refuses one call of an operation, all calls of it are decomposed: ExecuTorch decides by operation.
        """
        decisions = decide(ep, self.skipped, self.take_over_constant_data)
        kept = kept_whole(ep, decisions, constant_values(ep, self.take_over_constant_data))
        if self.on_error == "fallback":
            tables = {**ep.constants, **ep.state_dict}
            self._constants.update({name: value for name, value in tables.items() if isinstance(value, torch.Tensor)})
        if self.on_error == "fallback" and kept:
            self._group(ep, decisions)
            failed = {
                node.target
                for node, reason in decisions.items()
                if reason is not None and reason.kind is Kind.CONVERSION
            }
            kept = {target: keep and target not in failed for target, keep in kept.items()}
        return [target for target, keep in kept.items() if keep and is_at_risk(target)], None

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tags the nodes that Core ML takes.

        Raises:
            DeploymentTargetError: The program needs a newer deployment target than the given one.
            UnsupportedOpError: `lower_full_graph` is set and Core ML cannot take everything, ExecuTorch has no kernel
                for what stays outside Core ML, or the program quantizes dynamically.
        """
        self._target_for(exported_program)
        decisions = decide(exported_program, self.skipped, self.take_over_constant_data)
        groups = self._group(exported_program, decisions)
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
        refuse_without_kernels([node for node, reason in decisions.items() if reason is not None], self.skipped)
        if any(rejection.op.startswith("quantized_decomposed.") for rejection in refused):
            import executorch.kernels.quantized  # registers the kernels of what stays outside  # noqa: F401
        for index, nodes in enumerate(groups):
            for node in nodes:
                node.meta["delegation_tag"] = f"tag{index}"
        if self.take_over_constant_data:
            tag_constant_data(exported_program)
        outside = self._tag_states(exported_program)
        self.record(exported_program, decisions, len(groups), outside)
        specs = self._marked_specs(self._target_for(exported_program, outside))
        spec = DelegationSpec(self.delegation_spec.backend_id, specs)
        tags = {f"tag{index}": spec for index in range(len(groups))}
        return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)

    def report(self) -> tuple[LoweringReport, ...]:
        """Returns what the last lowering did: a printable report for each method that was partitioned."""
        return tuple(
            replace(report, notes=tuple(notes)) for report, notes in zip(self._reports, self._notes, strict=True)
        )

    def record(
        self,
        program: ExportedProgram,
        decisions: Mapping[Node, Refusal | None],
        partitions: int,
        outside: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Adds a report on the decisions for a program.

        Args:
            program: The program.
            decisions: Every ``call_function`` node -> the reason why Core ML does not take it, or None.
            partitions: Number of delegate calls.
            outside: Mutable buffers that stay outside Core ML, with reasons.
        """
        needs = find_requirements(program, self.skipped, self._states(program, outside))
        given = parse(self.compile_specs).minimum_deployment_target
        target = lowest_target(needs) if given is None else given
        notes = storage_notes(decisions, constant_values(program, self.take_over_constant_data))
        notes += [f"the mutable buffer {name!r} stays outside Core ML: {reason}" for name, reason in outside.items()]
        notes += [*without_effect(self.skipped, decisions), *unbounded_sizes(program), *random_notes(decisions)]
        self._notes += (notes,)
        self._reports += (make_report(decisions, partitions, target, needs, given is not None),)

    def specs_for(self, program: ExportedProgram) -> list[CompileSpec]:
        """Returns the compile specs for our backend, with the deployment target for a program."""
        return self._marked_specs(self._target_for(program))

    def _marked_specs(self, target: ct.target | None) -> list[CompileSpec]:
        ranges = [write_option("size_ranges", self._size_ranges)] if self._size_ranges else []
        marked = with_mark([*self.compile_specs, *ranges], target, full_graph=self.lower_full_graph)
        return NotedSpecs(marked, self._notes[-1] if self._notes else [])

    @property
    def skipped(self) -> frozenset[str]:
        """Lower-case names of the operations that the user keeps outside Core ML."""
        return frozenset(name.lower() for name in self.skip_ops_for_coreml_delegation)

    def _states(self, program: ExportedProgram, outside: Collection[str] = ()) -> tuple[str, ...]:
        """Returns the names of mutable buffers that Core ML can take over, except those known to stay outside."""
        if not self.take_over_mutable_buffer:
            return ()
        left = {*outside, *unfit(program, self._initialized | initialized_buffers(program))}
        return tuple(name for name in program.graph_signature.buffers_to_mutate.values() if name not in left)

    def _tag_states(self, program: ExportedProgram) -> dict[str, str]:
        """Tags the mutable buffers that Core ML takes over.

        Returns:
            Name of a buffer that Core ML was asked to take over and cannot -> the reason.
        """
        initialized = self._initialized | initialized_buffers(program)
        if not self.take_over_mutable_buffer:
            keep_outside(program, program.graph_signature.buffers_to_mutate.values(), initialized)
            return {}
        tag_mutated_buffer(program)
        outside = {**unfit(program, initialized), **spread(program, self._states(program))}
        keep_outside(program, outside, initialized)
        return outside

    def _group(self, program: ExportedProgram, decisions: Decisions) -> Groups:
        options = parse(self.specs_for(program))
        tried = None if self.on_error == "raise" else partial(failures, program, options, self._constants)
        # What a user separates by name is not judged.
        return group(program, decisions, tried, delegate_islands=self.delegate_islands or bool(self.skipped))

    def _target_for(self, program: ExportedProgram, outside: Collection[str] = ()) -> ct.target | None:
        refuse_dynamic_quantization(program)
        needs = find_requirements(program, self.skipped, self._states(program, outside))
        given = parse(self.compile_specs).minimum_deployment_target
        if given is not None:
            check_target(needs, given)
            return given
        lowest = lowest_target(needs)
        if lowest is not None:
            reasons = ", ".join(sorted({need.feature for need in needs if need.target == lowest}))
            logger.info("deployment target %s selected, because the program has %s", lowest.name, reasons)
        return lowest
