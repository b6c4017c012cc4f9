"""What the fuzzer corrupts: small programs in every container, and a few arrays that run them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Builder as mb
from helpers import pte_models
from helpers.mil import convert

from partitioner.format.blob import write_blob

_SEED = 0


@dataclass(frozen=True)
class Subject:
    """One program.

    Attributes:
        kind: ``"pte"``, ``"blob"`` or ``"package"``.
        files: Relative path -> content; one file named ``"program"`` unless it is a package.
    """

    kind: str
    files: Mapping[str, bytes]


def _layers(x: object) -> object:
    rng = np.random.default_rng(_SEED)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    y = mb.conv(x=x, weight=weight, bias=np.arange(4, dtype=np.float32), pad_type="same")
    y = mb.max_pool(x=mb.relu(x=y), kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid")
    y = mb.upsample_nearest_neighbor(x=y, scale_factor_height=2, scale_factor_width=2)
    y = mb.pad(x=y, pad=[0, 0, 0, 0, 1, 1, 1, 1], mode="constant", constant_val=np.float32(0))
    y = mb.tile(x=mb.reduce_mean(x=y, axes=[2], keep_dims=True), reps=[1, 1, 2, 1])
    y = mb.reshape(x=mb.transpose(x=y, perm=[0, 2, 3, 1]), shape=[-1, 4])
    shifted = mb.add(x=y, y=mb.fill(shape=mb.shape(x=y), value=np.float32(0.5)))
    return mb.concat(values=[mb.gather(x=shifted, indices=[0, 2], axis=0), shifted], axis=0)


def _recurrent(x: object) -> object:
    rng = np.random.default_rng(_SEED)
    ih, hh = rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((20, 5)).astype(np.float32)
    start = np.zeros((2, 5), np.float32)
    y, _, _ = mb.lstm(x=x, initial_h=start, initial_c=start, weight_ih=ih, weight_hh=hh, output_sequence=True)
    flag = mb.greater(x=mb.reduce_sum(x=y), y=np.float32(0))
    y = mb.cond(pred=flag, _true_fn=lambda: mb.exp(x=y), _false_fn=lambda: mb.tanh(x=y))
    values, _ = mb.topk(x=y, k=2, axis=-1)
    return mb.softmax(x=values, axis=-1)


def _compressed(x: object, memory: object) -> object:
    rng = np.random.default_rng(_SEED)
    lut = rng.standard_normal((1, 1, 16, 1)).astype(np.float16)
    indices = rng.integers(0, 16, (8, 4)).astype(np.uint8)
    palettized = mb.constexpr_lut_to_dense(indices=indices.astype(_uint4()), lut=lut)
    data = rng.integers(-8, 8, (8, 4)).astype(_int4())
    blocks = mb.constexpr_blockwise_shift_scale(data=data, scale=np.full((8, 2), 0.1, np.float16))
    mask = np.ones((8, 4), np.uint8).astype(_uint1())
    sparse = mb.constexpr_sparse_to_dense(nonzero_data=np.ones(32, np.float16), mask=mask)
    y = mb.add(x=mb.linear(x=x, weight=palettized), y=mb.linear(x=x, weight=blocks))
    y = mb.add(x=y, y=mb.linear(x=x, weight=sparse))
    return mb.coreml_update_state(state=memory, value=mb.add(x=mb.read_state(input=memory), y=y))


def _uint4() -> object:
    return ct.converters.mil.mil.types.np_uint4_dtype


def _int4() -> object:
    return ct.converters.mil.mil.types.np_int4_dtype


def _uint1() -> object:
    return ct.converters.mil.mil.types.np_uint1_dtype


def _package_files(model: ct.models.MLModel) -> dict[str, bytes]:
    root = Path(model.package_path)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _as_blob(files: Mapping[str, bytes]) -> bytes:
    metadata = b'{"identifier":"fuzz"}'
    return write_blob({"metadata.json": metadata, **{f"model.mlpackage/{path}": data for path, data in files.items()}})


def subjects() -> list[Subject]:
    """Every subject, the same in every process."""
    half = np.zeros((2, 4), np.float16)
    packages = [
        _package_files(convert(_layers, {"x": np.zeros((1, 3, 4, 4), np.float32)})),
        _package_files(convert(_recurrent, {"x": np.zeros((3, 2, 3), np.float32)})),
        _package_files(convert(_compressed, {"x": half}, ios=18, states={"memory": (2, 8)})),
    ]
    ptes = [case().pte for case in (pte_models.two_outputs, pte_models.split, pte_models.two_methods)]
    return [
        *(Subject("package", files) for files in packages),
        *(Subject("blob", {"program": _as_blob(files)}) for files in packages),
        *(Subject("pte", {"program": bytes(pte)}) for pte in ptes),
    ]
