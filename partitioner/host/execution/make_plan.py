"""Planning: from a function of a program to a `Plan`.

Everything that does not depend on inputs is computed here, once: constants are decoded, compressed weights expanded,
and operations on constants folded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from partitioner.host.errors import ExecutionError, HostError, ProgramFormatError, UnsupportedMilOpError
from partitioner.host.execution.fuse_quantize import block_reads, fold_quantization, step_reads
from partitioner.host.execution.plan import Argument, BlockPlan, Finish, Plan, Step
from partitioner.host.execution.policy import Policy
from partitioner.host.mil.dtypes import FP16, STRING
from partitioner.host.mil.model import Binding, Block, Constant, Function, Op, Ref
from partitioner.host.mil.types import TensorType, ValueType
from partitioner.host.registry import OPS, SEQUENTIAL, OpDef, OpRegistry, Param


def check_supported(functions: Iterable[Function], registry: OpRegistry = OPS) -> None:
    """Checks that every operation has a definition.

    Raises:
        UnsupportedMilOpError: Some have none; all of them are named.
    """
    missing = {
        f"{op.type} ({function.opset.name})"
        for function in functions
        for op in function.body.walk()
        if op.type != "const" and registry.find(op.type, function.opset) is None
    }
    if missing:
        raise UnsupportedMilOpError(missing)


def make_plan(function: Function, policy: Policy, registry: OpRegistry = OPS, *, fold: bool = True) -> Plan:
    """Plans a function under a precision policy.

    Args:
        function: The function.
        policy: Precision policy.
        registry: Definitions of the operations.
        fold: Whether operations may be joined into one step with the same bits; without it, every operation that
            depends on inputs is a step.

    Raises:
        ExecutionError: An operation on constants failed.
        ProgramFormatError: An operation lacks a parameter or has one that is not known.
    """
    planner = _Planner(function, policy, registry, fold)
    parameters = {value.name: planner.slot(value.name) for value in function.parameters}
    body = planner.plan_block(function.body)
    outputs = dict(zip(function.body.outputs, body.outputs, strict=True))
    return Plan(planner.template(body), parameters, outputs, body)


@dataclass
class _Planner:
    function: Function
    policy: Policy
    registry: OpRegistry
    fold: bool
    _slots: dict[str, int] = field(default_factory=dict)
    _constants: dict[int, Any] = field(default_factory=dict)
    _size: int = 0

    def slot(self, name: str) -> int:
        self._slots[name] = self._size
        self._size += 1
        return self._slots[name]

    def template(self, body: BlockPlan) -> tuple[Any, ...]:
        used = set(block_reads(body))
        return tuple(self._constants.get(slot) if slot in used else None for slot in range(self._size))

    def plan_block(self, block: Block) -> BlockPlan:
        visible = dict(self._slots)
        inputs = tuple(self.slot(value.name) for value in block.inputs)
        steps = [step for op in block.ops for step in self._plan_op(op)]
        outputs = tuple(self._slots[name] for name in block.outputs)
        # Constants stay: a loop's body reads them again in its next iteration.
        local = set(range(self._size)) - set(visible.values()) - self._constants.keys()
        self._slots = visible
        if self.fold:
            steps = fold_quantization(steps, outputs)
        return BlockPlan(inputs, _with_frees(steps, local - set(outputs)), outputs)

    def _plan_op(self, op: Op) -> list[Step]:
        if op.type == "const":
            self._constants[self.slot(op.outputs[0].name)] = op.attributes["val"].load()
            return []
        definition = self.registry.find(op.type, self.function.opset)
        if definition is None:
            raise UnsupportedMilOpError([f"{op.type} ({self.function.opset.name})"])
        step = self._make_step(op, definition)
        if step.arguments or step.blocks or not definition.pure:
            return [step]
        self._fold(step)
        return []

    def _make_step(self, op: Op, definition: OpDef) -> Step:
        constants, arguments = self._bind(op, definition)
        if definition.outputs_param:
            constants[definition.outputs_param] = tuple(value.type for value in op.outputs)
        blocks = tuple(self.plan_block(block) for block in op.blocks)
        return Step(
            op,
            self._function_of(op, definition),
            constants,
            tuple(arguments),
            outputs=tuple(self.slot(value.name) for value in op.outputs),
            finishes=tuple(self._finish(value.type, exact=definition.exact) for value in op.outputs),
            frees=(),
            blocks=blocks,
            blocks_param=definition.blocks_param,
        )

    def _function_of(self, op: Op, definition: OpDef) -> Callable[..., Any]:
        halves = all(isinstance(value.type, TensorType) and value.type.dtype is FP16 for value in op.outputs)
        if self.policy.sequential and halves:
            return SEQUENTIAL.get(op.type, definition.function)
        return definition.function

    def _bind(self, op: Op, definition: OpDef) -> tuple[dict[str, Any], list[Argument]]:
        bound: dict[str, tuple[Binding, ...]] = {
            **{name: (constant,) for name, constant in op.attributes.items() if name != "name"},
            **op.inputs,
        }
        _check_parameters(op, definition, bound)
        constants: dict[str, Any] = {}
        arguments: list[Argument] = []
        for name, bindings in bound.items():
            param = definition.params[name]
            values = [self._constant_of(binding) for binding in bindings]
            if all(known for known, _ in values):
                constants[name] = _convert(op, param, [value for _, value in values])
            else:
                slots = tuple(self._slot_of(binding) for binding in bindings)
                arguments.append(Argument(name, slots, param.variadic, param.convert))
        return constants, arguments

    def _constant_of(self, binding: Binding) -> tuple[bool, Any]:
        if isinstance(binding, Constant):
            return True, binding.load()
        slot = self._slots[binding.name]
        return slot in self._constants, self._constants.get(slot)

    def _slot_of(self, binding: Binding) -> int:
        if isinstance(binding, Ref):
            return self._slots[binding.name]
        slot = self._size
        self._size += 1
        self._constants[slot] = binding.load()
        return slot

    def _finish(self, declared: ValueType, *, exact: bool) -> Finish | None:
        if not isinstance(declared, TensorType) or declared.dtype is STRING:
            return None
        if declared.dtype.is_float:
            return None if exact else self.policy.rounding(declared.dtype)
        compute = declared.dtype.compute
        return lambda value: value.to(compute)

    def _fold(self, step: Step) -> None:
        try:
            with torch.no_grad():
                result = step.function(**step.constants)
        except HostError:
            raise
        except Exception as error:
            raise ExecutionError(f"{step.op.type} {step.op.name!r} on constants failed: {error}") from error
        results = result if len(step.outputs) > 1 else (result,)
        for slot, finish, value in zip(step.outputs, step.finishes, results, strict=True):
            self._constants[slot] = value if finish is None else finish(value)


def _check_parameters(op: Op, definition: OpDef, bound: Mapping[str, Sequence[Binding]]) -> None:
    where = f"{op.type} {op.name!r}"
    unknown = sorted(bound.keys() - definition.params.keys())
    if unknown:
        raise ProgramFormatError(
            f"{where}: unknown parameter(s) {unknown}; as of {definition.since.name} it takes "
            f"{sorted(definition.params)}"
        )
    missing = sorted(name for name, param in definition.params.items() if param.required and not bound.get(name))
    if missing:
        raise ProgramFormatError(f"{where}: parameter(s) {missing} are missing")
    crowded = sorted(name for name, given in bound.items() if len(given) != 1 and not definition.params[name].variadic)
    if crowded:
        raise ProgramFormatError(f"{where}: parameter(s) {crowded} take one value each")


def _convert(op: Op, param: Param, values: list[Any]) -> Any:
    if param.variadic:
        return tuple(values)
    if param.convert is None:
        return values[0]
    try:
        return param.convert(values[0])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProgramFormatError(f"{op.type} {op.name!r}: parameter {param.name!r}: {error}") from None


def _with_frees(steps: Sequence[Step], local: set[int]) -> tuple[Step, ...]:
    """Gives every step the slots of this block that are last touched by it."""
    pending = set(local)
    planned: list[Step] = []
    for step in reversed(steps):
        touched = {*step_reads(step), *step.outputs} & pending
        pending -= touched
        planned.append(replace(step, frees=tuple(sorted(touched))))
    return tuple(reversed(planned))
