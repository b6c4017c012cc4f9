"""One Core ML model for several methods, so that they share their weights.

The first partitions of all methods become the functions of one model; so do the second ones, and so on. The model is
stored once, as named data of the program. Each method's delegate holds a reference (``CMJR`` and JSON) to it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import coremltools as ct
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.backend_details import PreprocessResult
from torch.export import ExportedProgram

from partitioner.conversion.convert import ConvertedModel, convert
from partitioner.conversion.debug_handles import HandleMap
from partitioner.conversion.delegate import delegate_blob, write_files
from partitioner.conversion.session import quiet_conversion
from partitioner.errors import CompileSpecError, DeploymentTargetError
from partitioner.format.package import package_files
from partitioner.format.paths import WEIGHT_FILE
from partitioner.format.reference import write_reference
from partitioner.options.compile_specs import LoweringOptions, WeightSharing

_FIRST_TARGET = ct.target.iOS18
_DISABLE = (
    "CoreMLBackend.generate_multimethod_weight_sharing_strategy_compile_spec"
    "(MULTIMETHOD_WEIGHT_SHARING_STRATEGY.DISABLED)"
)

Programs = Mapping[str, Sequence[ExportedProgram]]
Options = Mapping[str, Sequence[LoweringOptions]]


def can_share(options: Options, explicit: bool) -> bool:
    """Returns whether the methods can and should share one model.

    Args:
        options: Method -> the options of each partition.
        explicit: Whether the user asked for weight sharing, instead of leaving it at its default.

    Raises:
        CompileSpecError: The user asked for sharing, but the methods have different numbers of partitions.
        DeploymentTargetError: The user asked for sharing, but the deployment target is below iOS18.
    """
    everything = [item for method in options.values() for item in method]
    if len(options) < 2 or any(item.weight_sharing == WeightSharing.DISABLED for item in everything):
        return False
    counts = {name: len(method) for name, method in options.items()}
    if len(set(counts.values())) > 1:
        if explicit:
            listing = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise CompileSpecError(
                f"weight sharing pairs the partitions of methods by position, but they have different numbers of "
                f"partitions ({listing}); use {_DISABLE}"
            )
        return False
    targets = [item.minimum_deployment_target for item in everything]
    low = [target for target in targets if target is not None and target < _FIRST_TARGET]
    if low and explicit:
        raise DeploymentTargetError(
            f"methods that share weights need the deployment target {_FIRST_TARGET.name}; it is "
            f"{min(low).name}. Use CoreMLBackend.generate_compile_specs("
            f"minimum_deployment_target=ct.target.{_FIRST_TARGET.name}), or {_DISABLE}"
        )
    return not low


def lower_shared(
    programs: Programs, options: Options
) -> tuple[dict[str, list[PreprocessResult]], dict[str, list[str]]]:
    """Converts all methods, with one model for each position of a partition.

    Args:
        programs: Method -> its partitions, the same number for every method.
        options: Method -> the options of each partition.

    Returns:
        Two dicts: method -> the reference to the shared model for each partition, and method -> notes for its report.
    """
    store = NamedDataStore()
    keys = []
    notes: dict[str, list[str]] = {name: [] for name in programs}
    handles: dict[str, list[HandleMap]] = {name: [] for name in programs}
    for position in range(len(next(iter(programs.values())))):
        models = {
            name: convert(program[position], _at_least_first_target(options[name][position]))
            for name, program in programs.items()
        }
        for name, model in models.items():
            notes[name].extend(model.notes)
            handles[name].append(model.handles)
        names = {"methods": {name: model.names for name, model in models.items()}}
        model_type = next(iter(options.values()))[position].model_type
        identifier, blob = delegate_blob(_combine(models), names, model_type)
        keys.append(f"coreml_{identifier}")
        store.add_named_data(keys[-1], blob)
    data = store.get_named_data_store_output()
    results = {
        name: [
            PreprocessResult(processed_bytes=write_reference(key, name), debug_handle_map=known, data_store_output=data)
            for key, known in zip(keys, handles[name], strict=True)
        ]
        for name in programs
    }
    return results, notes


def _at_least_first_target(options: LoweringOptions) -> LoweringOptions:
    target = options.minimum_deployment_target
    return replace(options, minimum_deployment_target=_FIRST_TARGET if target is None else target)


def _combine(models: Mapping[str, ConvertedModel]) -> dict[str, bytes]:
    """Merges single-function models into the files of one multifunction package."""
    with tempfile.TemporaryDirectory(prefix="coreml_") as name, quiet_conversion():
        directory = Path(name)
        functions = ct.utils.MultiFunctionDescriptor()
        for index, (method, model) in enumerate(models.items()):
            path = directory / f"{index}.mlpackage"
            # The merge wants a weight file, even an empty one.
            write_files(path, package_files(model.spec, model.weights or b""))
            functions.add_function(str(path), src_function_name="main", target_function_name=method)
        functions.default_function_name = next(iter(models))
        combined = directory / "combined.mlpackage"
        ct.utils.save_multifunction(functions, str(combined))
        weights = combined / WEIGHT_FILE
        content = weights.read_bytes() if weights.is_file() else b""
        return package_files(ct.utils.load_spec(str(combined)), content or None)
