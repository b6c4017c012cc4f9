"""The backend, which turns a partition into the bytes that the device's Core ML delegate reads.

ExecuTorch finds a backend by class name among the direct subclasses of `BackendDetails`, and
`to_edge_transform_and_lower` takes the last one defined. Our class is therefore defined after the stock class, which is
imported through `partitioner.stock`. It passes partitions that our partitioner did not choose to the stock class.
"""

from typing import Any, final

import coremltools as ct
from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from torch.export import ExportedProgram

from partitioner.conversion.convert import ConvertedModel, convert, read_model
from partitioner.conversion.delegate import delegate_blob
from partitioner.conversion.multifunction import can_share, lower_shared
from partitioner.errors import ConversionError
from partitioner.format.package import package_files
from partitioner.options import compile_specs as specs
from partitioner.stock import StockBackend


@final
class CoreMLBackend(BackendDetails):
    """A backend that lowers partitions to Core ML, with the name under which the device's delegate is registered.

    The static methods write and read compile specs. Arguments, keys and bytes are those of ExecuTorch's own backend.
    """

    MODEL_TYPE = specs.ModelType

    @classmethod
    def copy_exported_program_for_preprocess(
        cls, edge_program: ExportedProgram, compile_specs: list[CompileSpec]
    ) -> ExportedProgram:
        """Returns the program itself for our own backend, which never changes it, and a copy for the stock class."""
        if specs.is_marked(compile_specs):
            return edge_program
        return super().copy_exported_program_for_preprocess(edge_program, compile_specs)

    @staticmethod
    def preprocess(edge_program: ExportedProgram, compile_specs: list[CompileSpec]) -> PreprocessResult:
        """Converts a partition.

        Args:
            edge_program: The partition.
            compile_specs: How to convert it; see `generate_compile_specs`.

        Returns:
            The delegate blob. Equal partitions and specs give equal bytes.

        Raises:
            CompileSpecError: The compile specs are unreadable.
            ConversionError: Core ML Tools cannot convert an operation.
            DeploymentTargetError: An operation needs a newer deployment target.
        """
        if not specs.is_marked(compile_specs):
            return StockBackend.preprocess(edge_program, compile_specs)
        options = specs.parse(compile_specs)
        model = convert(edge_program, options)
        specs.note(compile_specs, model.notes)
        return PreprocessResult(processed_bytes=_blob(model, options.model_type), debug_handle_map=model.handles)

    @classmethod
    def preprocess_multimethod(
        cls, edge_programs: dict[str, list[ExportedProgram]], compile_specs: dict[str, list[list[CompileSpec]]]
    ) -> dict[str, list[PreprocessResult]]:
        """Converts the partitions of all methods; see `preprocess`.

        Methods share one model, and therefore their weights, except in three cases: the compile specs say otherwise,
        the deployment target is below iOS18, or the methods have different numbers of partitions.
        """
        everything = [spec for method in compile_specs.values() for spec in method]
        if everything and not any(specs.is_marked(spec) for spec in everything):
            return StockBackend.preprocess_multimethod(edge_programs, compile_specs)
        if everything and all(specs.is_marked(spec) for spec in everything):
            options = {name: [specs.parse(spec) for spec in method] for name, method in compile_specs.items()}
            if can_share(options, explicit=any(specs.states("weight_sharing", spec) for spec in everything)):
                shared, notes = lower_shared(edge_programs, options)
                for name, method in compile_specs.items():
                    specs.note(method[0], notes[name])
                return shared
        return super().preprocess_multimethod(edge_programs, compile_specs)

    @staticmethod
    def preprocess_model(mlmodel: ct.models.MLModel, model_type: specs.ModelType) -> PreprocessResult:
        """Wraps a Core ML model that was converted elsewhere.

        Args:
            mlmodel: An ML program.
            model_type: Whether to store it as it is or compile it here, which needs macOS.
        """
        return PreprocessResult(processed_bytes=_blob(read_model(mlmodel), model_type))

    @staticmethod
    def generate_compile_specs(
        compute_unit: ct.ComputeUnit = ct.ComputeUnit.ALL,
        minimum_deployment_target: ct.target | None = None,
        compute_precision: ct.precision = ct.precision.FLOAT16,
        model_type: specs.ModelType = specs.ModelType.MODEL,
        op_linear_quantizer_config: dict[str, Any] | None = None,
        pass_names: list[str] | None = None,
    ) -> list[CompileSpec]:
        """Writes the compile specs of a lowering.

        Args:
            compute_unit: Where the device may run the model.
            minimum_deployment_target: The oldest system that must run it. None: the oldest system that can run it.
            compute_precision: Half or single precision.
            model_type: An mlpackage, or a model compiled here (macOS only).
            op_linear_quantizer_config: Arguments of ``coremltools.optimize.coreml.OpLinearQuantizerConfig`` to
                quantize weights after conversion.
            pass_names: The MIL passes to run instead of the default ones.
        """
        result = [
            specs.write_option("compute_unit", compute_unit),
            specs.write_option("minimum_deployment_target", minimum_deployment_target),
            specs.write_option("compute_precision", compute_precision),
            specs.write_option("model_type", model_type),
        ]
        if op_linear_quantizer_config is not None:
            result.append(specs.write_option("op_linear_quantizer_config", op_linear_quantizer_config))
        if pass_names is not None:
            result.append(specs.write_option("pass_pipeline", pass_names))
        return result

    @staticmethod
    def generate_model_type_compile_spec(model_type: specs.ModelType) -> CompileSpec:
        """Returns a compile spec that asks for an mlpackage or a compiled model."""
        return specs.write_option("model_type", model_type)

    @staticmethod
    def model_type_from_compile_specs(compile_specs: list[CompileSpec]) -> specs.ModelType:
        """Reads the model type (default: MODEL)."""
        return specs.read_option("model_type", compile_specs)

    @staticmethod
    def generate_compute_precision_compile_spec(compute_precision: ct.precision) -> CompileSpec:
        """Returns a compile spec that asks for half or single precision."""
        return specs.write_option("compute_precision", compute_precision)

    @staticmethod
    def model_compute_precision_from_compile_specs(compile_specs: list[CompileSpec]) -> ct.precision:
        """Reads the compute precision (default: FLOAT16)."""
        return specs.read_option("compute_precision", compile_specs)

    @staticmethod
    def generate_minimum_deployment_target_compile_spec(min_deployment_target: ct.target | None) -> CompileSpec:
        """Returns a compile spec that asks for a model that runs on this target and newer ones."""
        return specs.write_option("minimum_deployment_target", min_deployment_target)

    @staticmethod
    def min_deployment_target_from_compile_specs(compile_specs: list[CompileSpec]) -> ct.target | None:
        """Reads the deployment target (default: None)."""
        return specs.read_option("minimum_deployment_target", compile_specs)

    @staticmethod
    def generate_compute_unit_compile_spec(compute_unit: ct.ComputeUnit) -> CompileSpec:
        """Returns a compile spec that tells the device where it may run the model."""
        return specs.write_option("compute_unit", compute_unit)

    @staticmethod
    def compute_unit_from_compile_specs(compile_specs: list[CompileSpec]) -> ct.ComputeUnit:
        """Reads the compute unit (default: ALL)."""
        return specs.read_option("compute_unit", compile_specs)

    @staticmethod
    def generate_op_linear_quantizer_config_compile_spec(op_linear_quantizer_config: dict[str, Any]) -> CompileSpec:
        """Returns a compile spec that asks Core ML Tools to quantize weights after conversion.

        Args:
            op_linear_quantizer_config: Arguments of ``coremltools.optimize.coreml.OpLinearQuantizerConfig``.
        """
        return specs.write_option("op_linear_quantizer_config", op_linear_quantizer_config)

    @staticmethod
    def op_linear_quantizer_config_from_compile_specs(compile_specs: list[CompileSpec]) -> Any:
        """Reads the OpLinearQuantizerConfig (default: None)."""
        return specs.read_option("op_linear_quantizer_config", compile_specs)

    @staticmethod
    def generate_pass_pipeline_compile_spec(pass_names: list[str]) -> CompileSpec:
        """Returns a compile spec that names the MIL passes to run."""
        return specs.write_option("pass_pipeline", pass_names)

    @staticmethod
    def pass_pipeline_from_compile_specs(compile_specs: list[CompileSpec]) -> ct.PassPipeline:
        """Reads the MIL passes (default: `PassPipeline.DEFAULT`)."""
        return specs.read_option("pass_pipeline", compile_specs) or ct.PassPipeline.DEFAULT

    @staticmethod
    def generate_multimethod_weight_sharing_strategy_compile_spec(strategy: specs.WeightSharing) -> CompileSpec:
        """Returns a compile spec for how methods share weights: POSITIONAL (partition by partition) or DISABLED."""
        return specs.write_option("weight_sharing", strategy)

    @staticmethod
    def multimethod_weight_sharing_strategy_from_compile_specs(
        compile_specs: list[CompileSpec],
    ) -> specs.WeightSharing:
        """Reads the weight sharing (default: POSITIONAL)."""
        return specs.read_option("weight_sharing", compile_specs)

    @staticmethod
    def generate_enumerated_shapes_compile_spec(
        ep: ExportedProgram, enumerated_shapes: dict[str, list[list[int]]]
    ) -> CompileSpec:
        """Returns a compile spec with the shapes that dynamic inputs may take.

        Args:
            ep: A program exported with dynamic shapes.
            enumerated_shapes: Input name -> its shapes. With several inputs (iOS18) the lists have the same length,
                and shapes at the same index belong together.

        Raises:
            CompileSpecError: The shapes do not fit the program's inputs.
        """
        return specs.enumerate_shapes(ep, enumerated_shapes)

    @staticmethod
    def enumerated_shapes_from_compile_specs(compile_specs: list[CompileSpec]) -> Any:
        """Reads the enumerated shapes (default: None)."""
        return specs.read_option("enumerated_shapes", compile_specs)


def _blob(model: ConvertedModel, model_type: specs.ModelType) -> bytes:
    names = model.names
    if not names["outputNames"]:
        raise ConversionError("the partition has no outputs; Core ML runs only models that return something")
    return delegate_blob(package_files(model.spec, model.weights), names, model_type)[1]
