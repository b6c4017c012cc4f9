"""The conversion of an edge program to a Core ML model, with Core ML Tools."""

import logging
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize as cto
from torch.export import ExportedProgram

import partitioner.lowerings  # registers the converters  # noqa: F401
from partitioner.conversion.debug_handles import HandleMap, debug_handles
from partitioner.conversion.failures import failure, needed_target
from partitioner.conversion.mil_model import convert_to_spec
from partitioner.conversion.pipelines import complete, default_pipeline
from partitioner.conversion.session import quiet_conversion
from partitioner.errors import ConversionError, DeploymentTargetError, PartitionerError
from partitioner.format.paths import WEIGHT_FILE_NAME
from partitioner.graph.size_ranges import with_size_ranges
from partitioner.graph.states import initialized_buffers, unfit
from partitioner.half_precision import Findings, watch
from partitioner.options.compile_specs import LoweringOptions
from partitioner.stock import enumerated_inputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertedModel:
    """A converted model in memory.

    Attributes:
        spec: The ``Model`` protobuf.
        weights: The content of the weight file, or None when there is none.
        notes: What the conversion did about numbers that float16 cannot hold.
        handles: Name of an operation -> the debug handle of the program's operation that it comes from.
    """

    spec: Any
    weights: bytes | None
    notes: tuple[str, ...] = ()
    handles: HandleMap = field(default_factory=dict)

    @property
    def names(self) -> dict[str, list[str]]:
        """The input and output names, in the order of the delegate call's arguments and results."""
        description = self.spec.description
        return {
            "inputNames": [feature.name for feature in description.input],
            "outputNames": [feature.name for feature in description.output],
        }


def convert(program: ExportedProgram, options: LoweringOptions) -> ConvertedModel:
    """Converts one partition.

    Args:
        program: The partition as an edge program.
        options: How to convert. Without a deployment target, the conversion uses the lowest one that has every
            operation.

    Returns:
        The model, not loaded.

    Raises:
        ConversionError: Core ML Tools failed; the message names the operation and its source line. Or a mutable buffer
            of the partition cannot be a Core ML state.
        DeploymentTargetError: An operation needs a newer deployment target than the given one.
    """
    _check_states(program)
    is_open = options.minimum_deployment_target is None
    with tempfile.TemporaryDirectory(prefix="coreml_") as directory, quiet_conversion() as position:
        while True:
            position.restart()
            try:
                return _convert_into(Path(directory) / "model.mlpackage", program, options)
            except PartitionerError:
                raise
            except Exception as error:  # Core ML Tools raises every kind
                needed = needed_target(error)
                if needed is None or not is_open or needed == options.minimum_deployment_target:
                    raise failure(error, position, program, options, partial(_try, options=options)) from error
                logger.info("deployment target %s selected, because %s", needed.name, error)
                options = replace(options, minimum_deployment_target=needed)


def _check_states(program: ExportedProgram) -> None:
    """Refuses mutable buffers that cannot be Core ML states.

    `to_backend` hides the values of buffers from the partitioner, so that the partitioner cannot refuse them.
    """
    wrong = unfit(program, initialized_buffers(program))
    if wrong:
        raise ConversionError(
            "these mutable buffers cannot be Core ML states:\n"
            + "\n".join(f"  {name!r}: {reason}" for name, reason in wrong.items())
            + "\nUse to_edge_transform_and_lower, which leaves them outside, in place of to_edge and to_backend; or "
            "CoreMLPartitioner(take_over_mutable_buffer=False)"
        )


def _convert_into(path: Path, program: ExportedProgram, options: LoweringOptions) -> ConvertedModel:
    program = with_size_ranges(program, options.size_ranges)
    pipeline = complete(options.pass_pipeline or default_pipeline())
    findings = watch(pipeline) if options.compute_precision == ct.precision.FLOAT16 else Findings()
    model = _convert_with(pipeline, path, program, options)
    return replace(model, notes=findings.notes)


def _convert_with(
    pipeline: ct.PassPipeline, path: Path, program: ExportedProgram, options: LoweringOptions
) -> ConvertedModel:
    if options.op_linear_quantizer_config is not None:
        return _convert_and_quantize(path, program, options, pipeline)
    with tempfile.TemporaryDirectory(prefix="weights_", dir=path.parent) as weights:
        spec, handles = convert_to_spec(
            program,
            _inputs(program, options),
            pipeline,
            options.compute_precision,
            options.minimum_deployment_target,
            Path(weights),
        )
        return ConvertedModel(spec, _content(Path(weights)), handles=handles)


def _convert_and_quantize(
    path: Path, program: ExportedProgram, options: LoweringOptions, pipeline: ct.PassPipeline
) -> ConvertedModel:
    model = ct.convert(
        program,
        source="pytorch",
        convert_to="mlprogram",
        inputs=_inputs(program, options),
        pass_pipeline=pipeline,
        compute_precision=options.compute_precision,
        minimum_deployment_target=options.minimum_deployment_target,
        compute_units=options.compute_unit,
        package_dir=str(path),
        skip_model_load=True,
    )
    compressed = _quantize_weights(model, options)
    try:
        return replace(read_model(compressed), handles=debug_handles(compressed._mil_program))
    finally:
        shutil.rmtree(compressed.package_path, ignore_errors=True)


def _inputs(program: ExportedProgram, options: LoweringOptions) -> list[Any] | None:
    if options.enumerated_shapes is None:
        return None
    inputs = enumerated_inputs(program, options.enumerated_shapes)
    dynamic = [feature.name for feature in inputs if isinstance(feature.shape, ct.EnumeratedShapes)]
    target = options.minimum_deployment_target
    if len(dynamic) > 1 and (target is None or target < ct.target.iOS18):
        raise DeploymentTargetError(
            f"inputs {', '.join(dynamic)} all have enumerated shapes, which needs the deployment target iOS18; it is "
            f"{target.name if target else 'not set'}. Use "
            "CoreMLBackend.generate_compile_specs(minimum_deployment_target=ct.target.iOS18)"
        )
    return inputs


def _quantize_weights(model: Any, options: LoweringOptions) -> Any:
    """Quantizes weights after conversion, except tables that only gathers read: these are embeddings.

    A table that a gather shares with another operation gets one configuration for both, because Core ML Tools refuses
    a constant whose users have different configurations.
    """
    config = options.op_linear_quantizer_config
    shared = dict.fromkeys(_gathers_with_shared_tables(model._mil_program), config)
    optimization = cto.coreml.OptimizationConfig(
        global_config=config, op_type_configs={"gather": None}, op_name_configs=shared
    )
    return cto.coreml.linear_quantize_weights(model, config=optimization)


def _gathers_with_shared_tables(program: Any) -> list[str]:
    gathers = [
        operation
        for function in program.functions.values()
        for operation in function.operations
        if operation.op_type == "gather"
    ]
    return [
        gather.name
        for gather in gathers
        if gather.x.op is not None
        and gather.x.op.op_type == "const"
        and any(user.op_type != "gather" for user in gather.x.child_ops)
    ]


def read_model(model: Any) -> ConvertedModel:
    """Returns the protobuf and the weights of an `MLModel`."""
    spec = type(model.get_spec())()
    spec.CopyFrom(model.get_spec())
    return ConvertedModel(spec, _content(Path(model.weights_dir)) if model.weights_dir else None)


def _content(weights: Path) -> bytes | None:
    file = weights / WEIGHT_FILE_NAME
    return (file.read_bytes() if file.is_file() else None) or None


def _try(part: ExportedProgram, options: LoweringOptions) -> None:
    """Converts a part of a program, without enumerated shapes: its inputs are not the program's inputs."""
    with tempfile.TemporaryDirectory(prefix="coreml_") as directory, quiet_conversion():
        _convert_into(Path(directory) / "part.mlpackage", part, replace(options, enumerated_shapes=None))
