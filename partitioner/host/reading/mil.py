"""A parser of the protobuf messages of an ML Program; it builds `partitioner.host.mil.model`."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from partitioner.host.errors import ProgramFormatError
from partitioner.host.mil.model import Binding, Block, Constant, Feature, Function, MilProgram, Op, Opset, Ref, Value
from partitioner.host.mil.types import StateType, TensorType
from partitioner.host.reading.constants import read_constant, read_type
from partitioner.host.reading.features import read_features
from partitioner.host.reading.weights import WeightFile

OpenWeights = Callable[[str], WeightFile]


def parse_model(model: Any, open_weights: OpenWeights) -> MilProgram:
    """Reads a ``Model_pb2.Model`` that holds an ML Program.

    Args:
        model: The message.
        open_weights: Opens the weight file that the program names.

    Raises:
        ProgramFormatError: The program is inconsistent.
    """
    described = _described_functions(model.description)
    functions = {
        name: _parse_function(name, function, described, open_weights)
        for name, function in sorted(model.mlProgram.functions.items())
    }
    default = model.description.defaultFunctionName or "main"
    if default not in functions:
        raise ProgramFormatError(f"the program has no function {default!r}; it has {sorted(functions)}")
    return MilProgram(functions, default)


def check_kind(model: Any) -> None:
    """Checks that a model holds an ML Program.

    Raises:
        ProgramFormatError: It is of another kind.
    """
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise ProgramFormatError(
            f"not an ML Program: the model is of type {kind or 'unknown'}; convert with convert_to='mlprogram'"
        )


def _described_functions(description: Any) -> dict[str | None, Any]:
    """Returns function name -> interface; the key None stands for the only function of a model."""
    if description.functions:
        return {function.name: function for function in description.functions}
    return {None: description}


def _parse_function(
    name: str, function: Any, described: Mapping[str | None, Any], open_weights: OpenWeights
) -> Function:
    where = f"function {name!r}"
    opset = _parse_opset(function.opset, where)
    if function.opset not in function.block_specializations:
        raise ProgramFormatError(
            f"{where}: no block for its opset {function.opset!r}; it has {sorted(function.block_specializations)}"
        )
    parameters = tuple(_parse_value(value, where) for value in function.inputs)
    scope = _Scope(open_weights, where)
    scope.define(parameters)
    body = scope.parse_block(function.block_specializations[function.opset])
    interface = described.get(name, described.get(None))
    if interface is None:
        raise ProgramFormatError(f"{where}: the model's description has no interface for it")
    types = {value.name: value.type for value in parameters}
    inputs = read_features(interface.input, f"inputs of {where}", types)
    _check_interface(where, parameters, inputs, scope)
    outputs = read_features(interface.output, f"outputs of {where}", scope.types)
    _check_outputs(where, body.outputs, outputs)
    states = read_features(interface.state, f"states of {where}", types)
    return Function(name, opset, parameters, body, inputs, outputs, states)


def _parse_opset(text: str, where: str) -> Opset:
    digits = text.removeprefix("CoreML")
    if not (text.startswith("CoreML") and digits.isdecimal() and len(digits) < 4):
        raise ProgramFormatError(f"{where}: unknown opset {text!r}")
    known = [opset for opset in Opset if opset == int(digits)]
    if not known:
        raise ProgramFormatError(
            f"{where}: opset {text!r}; this runtime knows CoreML{min(Opset)} to CoreML{max(Opset)}"
        )
    return known[0]


def _check_interface(where: str, parameters: Iterable[Value], inputs: Iterable[Feature], scope: "_Scope") -> None:
    given = {feature.name for feature in inputs}
    taken = {value.name for value in parameters if not isinstance(value.type, StateType)}
    if given != taken:
        raise ProgramFormatError(
            f"{where}: the description's inputs {sorted(given)} are not the program's {sorted(taken)}"
        )


def _check_outputs(where: str, defined: Iterable[str], outputs: Iterable[Feature]) -> None:
    missing = sorted({feature.name for feature in outputs} - set(defined))
    if missing:
        raise ProgramFormatError(f"{where}: described outputs {missing} are not outputs of its block")


def _parse_value(message: Any, where: str) -> Value:
    return Value(message.name, read_type(message.type, f"{where}: value {message.name!r}"))


class _Scope:
    """A parser of one block, with the names that are visible in it."""

    def __init__(self, open_weights: OpenWeights, where: str) -> None:
        self.types: dict[str, Any] = {}
        self._open_weights = open_weights
        self._where = where

    def define(self, values: Iterable[Value]) -> None:
        for value in values:
            if value.name in self.types:
                raise ProgramFormatError(f"{self._where}: value {value.name!r} is defined twice")
            self.types[value.name] = value.type

    def parse_block(self, block: Any) -> Block:
        inputs = tuple(_parse_value(value, self._where) for value in block.inputs)
        self.define(inputs)
        ops = tuple(self._parse_op(op) for op in block.operations)
        outputs = tuple(block.outputs)
        unknown = sorted(set(outputs) - self.types.keys())
        if unknown:
            raise ProgramFormatError(f"{self._where}: block outputs {unknown} are not defined")
        return Block(inputs, ops, outputs)

    def _parse_op(self, op: Any) -> Op:
        first = op.outputs[0].name if op.outputs else "?"
        where = f"{self._where}: {op.type} {first!r}"
        inputs = {
            parameter: tuple(self._parse_binding(binding, f"{where}, {parameter}") for binding in argument.arguments)
            for parameter, argument in sorted(op.inputs.items())
        }
        attributes = {
            key: self._parse_constant(value, f"{where}, {key}") for key, value in sorted(op.attributes.items())
        }
        blocks = tuple(self._parse_nested(block) for block in op.blocks)
        outputs = tuple(_parse_value(value, where) for value in op.outputs)
        if op.type == "const" and ("val" not in attributes or len(outputs) != 1):
            raise ProgramFormatError(f"{where}: a const needs the attribute 'val' and one output")
        self.define(outputs)
        return Op(op.type, _op_name(attributes, first), inputs, attributes, outputs, blocks)

    def _parse_nested(self, block: Any) -> Block:
        outer = dict(self.types)
        parsed = self.parse_block(block)
        # Names of a nested block end with it; two branches may use the same ones.
        self.types = outer
        return parsed

    def _parse_binding(self, binding: Any, where: str) -> Binding:
        if binding.WhichOneof("binding") == "value":
            return self._parse_constant(binding.value, where)
        if binding.name not in self.types:
            raise ProgramFormatError(f"{where}: value {binding.name!r} is used before it is defined")
        return Ref(binding.name)

    def _parse_constant(self, value: Any, where: str) -> Constant:
        if value.WhichOneof("value") != "blobFileValue":
            return read_constant(value, where)
        declared = read_type(value.type, where)
        count = declared.count() if isinstance(declared, TensorType) else None
        if not isinstance(declared, TensorType) or count is None:
            raise ProgramFormatError(f"{where}: a weight must be a tensor of known shape, not {declared}")
        shape = declared.fixed_shape() or ()
        blob = self._open_weights(value.blobFileValue.fileName).checked_blob(
            value.blobFileValue.offset, declared.dtype, math.prod(shape)
        )
        compute = declared.dtype.compute
        return Constant(declared, lambda: blob.tensor(shape).to(compute), len(blob.raw))


def _op_name(attributes: Mapping[str, Constant], fallback: str) -> str:
    name = attributes["name"].load() if "name" in attributes else None
    return name if isinstance(name, str) else fallback
