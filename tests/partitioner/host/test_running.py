"""Runs: threads, memory and failures."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from helpers.mil import convert
from helpers.packages import X

from partitioner import host


def test_runs_in_threads_agree():
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)

    def build(x):
        for _ in range(20):
            x = mb.tanh(x=mb.linear(x=x, weight=weight))
        return x

    program = host.load(convert(build, {"x": np.zeros((1, 64), np.float32)}))
    inputs = [torch.full((1, 64), float(index)) for index in range(32)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: program.run([x])[0], inputs))
    for x, result in zip(inputs, together, strict=True):
        assert torch.equal(program.run([x])[0], result)


def test_programs_in_threads_do_not_disturb_each_other():
    x = np.linspace(-2, 2, 64, dtype=np.float32)[None]
    weight = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32) / 8
    builds = [
        lambda x: mb.softmax(x=mb.linear(x=x, weight=weight)),
        lambda x: mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.int8(0), output_dtype="int8"),
    ]
    loaded = [host.load(convert(lambda x, build=build: mb.identity(x=build(x)), {"x": x})) for build in builds[:1]]
    loaded.append(host.load(convert(lambda x: mb.dequantize(input=builds[1](x), scale=np.float32(0.1)), {"x": x})))
    tensor = torch.from_numpy(x)
    alone = [program.run([tensor])[0] for program in loaded]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: loaded[index % 2].run([tensor])[0], range(64)))
    for index, result in enumerate(together):
        assert torch.equal(result, alone[index % 2])


def test_outputs_never_share_memory_with_inputs_or_constants():
    constant = np.full((1, 8), 3.0, np.float32)
    program = host.load(
        convert(lambda x: [mb.identity(x=x, name="same"), mb.add(x=constant, y=0.0, name="c")], {"x": X})
    )
    given = torch.from_numpy(X.copy())
    for _ in range(2):
        same, fixed = program.run([given])
        assert fixed.tolist() == constant.tolist()
        same.fill_(7)
        fixed.fill_(7)
    assert given.tolist() == X.tolist()


def test_values_die_after_their_last_use():
    def build(x):
        for _ in range(4):
            x = mb.exp(x=x)
        return x

    program = host.load(convert(build, {"x": X}))
    program.predict({"x": -X})
    steps = program._plans["main", True][0].body.steps
    assert [step.frees for step in steps] == [(), *[(step.outputs[0],) for step in steps[:-1]]]


def test_failures_name_the_operation():
    index = np.array([9], np.int32)
    program = host.load(convert(lambda x, i: mb.gather(x=x, indices=i, axis=1, name="g"), {"x": X, "i": index}))
    with pytest.raises(host.ExecutionError, match=r"gather 'g' failed on \(indices: int32\[1\], x: float32\[1, 8\]\)"):
        program.predict({"x": X, "i": index})
