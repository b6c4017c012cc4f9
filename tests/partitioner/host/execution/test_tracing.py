import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Builder as mb
from executorch.devtools import Inspector
from executorch.runtime import Runtime
from helpers import pte_models as programs
from helpers.mil import convert

from partitioner import host

X = np.array([[-1.0, 0.3, 2.0]], np.float32)


def build(x):
    scale, zero_point = np.float32(0.25), np.int8(1)
    levels = mb.quantize(input=x, scale=scale, zero_point=zero_point, output_dtype="int8", name="levels")
    values = mb.dequantize(input=levels, scale=scale, zero_point=zero_point, name="values")
    flag = mb.greater(x=mb.reduce_sum(x=values, name="total"), y=np.float32(0), name="flag")
    return mb.cond(pred=flag, _true_fn=lambda: mb.exp(x=values, name="grown"), _false_fn=lambda: values, name="result")


def test_every_operation_is_traced_with_its_value():
    program = host.load(convert(build, {"x": X}), policy="float32")
    traces = {trace.name: trace for trace in program.trace({"x": X})}
    assert [name for name in traces if name in ("levels", "values", "total", "flag", "grown", "result")] == [
        *("levels", "values", "total", "flag", "grown", "result")
    ]
    assert traces["levels"].type == "quantize"
    assert traces["levels"].outputs["levels"].tolist() == [[-3, 2, 9]]
    assert traces["values"].outputs["values"].tolist() == [[-1.0, 0.25, 2.0]]
    np.testing.assert_allclose(traces["grown"].outputs["grown"], np.exp([[-1.0, 0.25, 2.0]]), rtol=1e-6)
    np.testing.assert_array_equal(traces["result"].outputs["result"], program.predict({"x": X})["result"])
    assert all(0 <= trace.seconds < 10 for trace in traces.values())


def test_traces_hold_declared_types_and_copies():
    program = host.load(convert(lambda x: mb.relu(x=mb.square(x=x, name="s"), name="y"), {"x": X}, half=True))
    first = program.trace({"x": X})
    square = next(trace for trace in first if trace.type == "square").outputs
    assert {values.dtype for values in square.values()} == {np.dtype(np.float16)}
    next(iter(square.values()))[:] = 0
    again = next(trace for trace in program.trace({"x": X}) if trace.type == "square").outputs
    np.testing.assert_array_equal(next(iter(again.values())), (X.astype(np.float16) ** 2))


def test_an_operation_that_fails_ends_a_trace_as_it_ends_a_run():
    model = convert(lambda x, i: mb.gather(x=x, indices=i, axis=1, name="y"), {"x": X, "i": np.array([0], np.int32)})
    with pytest.raises(host.ExecutionError, match="gather 'y' failed"):
        host.load(model).trace({"x": X, "i": np.array([7], np.int32)})


def test_inspector_shows_time_and_value_of_every_operation(tmp_path, request):
    pytest.importorskip("partitioner.host._delegate")
    case = programs.two_outputs()
    host.enable(policy="float32")
    request.addfinalizer(host.enable)
    loaded = Runtime.get().load_program(case.pte, enable_etdump=True, debug_buffer_size=1 << 20)
    outputs = loaded.load_method("forward").execute(case.inputs)
    dump, values = str(tmp_path / "dump.etdp"), str(tmp_path / "values.bin")
    loaded.write_etdump_result_to_file(dump, values)
    blocks = Inspector(etdump_path=dump, debug_buffer_path=values).event_blocks
    events = {event.name: event for block in blocks for event in block.events if event.is_delegated_op}

    program = host.load(case.pte, policy="float32")
    named = {feature.name: tensor.numpy() for feature, tensor in zip(program.inputs, case.inputs, strict=True)}
    traces = program.trace(named)
    assert set(events) == {trace.name for trace in traces}
    for trace in traces:
        assert events[trace.name].perf_data.raw[0] >= 0
        (logged,) = events[trace.name].debug_data
        np.testing.assert_array_equal(logged.numpy(), trace.outputs[trace.name])
    torch.testing.assert_close(outputs, program.run(case.inputs), rtol=0, atol=0)
