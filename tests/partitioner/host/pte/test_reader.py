import math
import pickle
import random
import subprocess
import sys

import pytest
import torch
from executorch.exir._serialize import _deserialize_pte_binary
from executorch.exir.schema import KernelCall, Tensor
from helpers import pte_models as programs
from helpers.pte_damage import changed, mutations, program_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from partitioner import host
from partitioner.format.blob import read_blob
from partitioner.host.errors import ProgramFormatError
from partitioner.host.pte.flatbuffer import Table, read_root
from partitioner.host.pte.reader import delegate_blobs, read_pte

BUILDERS = [
    programs.two_outputs,
    programs.split,
    programs.portable_convolution,
    programs.two_methods,
    programs.dynamic,
    programs.accumulator,
]
every_program = pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)


def plain(value):
    """ExecuTorch's dataclasses and our tables in one form."""
    if isinstance(value, Table):
        return {name: plain(field) for name, field in value.fields.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return bytes(value) if isinstance(value, memoryview) else value


@every_program
def test_reading_agrees_with_executorch(build):
    pte = build().pte
    reference = _deserialize_pte_binary(pte).program
    program = read_root(memoryview(pte)[: program_bytes(pte)], "Program")
    for plan, want in zip(program["execution_plan"], reference.execution_plan, strict=True):
        assert plan["name"] == want.name
        assert plan["inputs"] == want.inputs
        assert plan["outputs"] == want.outputs
        assert plan["non_const_buffer_sizes"] == want.non_const_buffer_sizes
        for value, expected in zip(plan["values"], want.values, strict=True):
            assert value["val"].kind == type(expected.val).__name__
            if isinstance(expected.val, Tensor):
                assert value["val"]["sizes"] == expected.val.sizes
                assert value["val"]["scalar_type"] == expected.val.scalar_type
        calls = [plain(entry["instr_args"]) for entry in plan["chains"][0]["instructions"]]
        for call, instruction in zip(calls, want.chains[0].instructions, strict=True):
            arguments = instruction.instr_args
            index = arguments.op_index if isinstance(arguments, KernelCall) else arguments.delegate_index
            assert list(call.values()) == [index, arguments.args]


@every_program
def test_blobs_are_those_that_executorch_finds(build):
    pte = build().pte
    file = _deserialize_pte_binary(pte).program
    want = [
        file.backend_delegate_data[delegate.processed.index].data
        for plan in file.execution_plan
        for delegate in plan.delegates
    ]
    assert [blob for blob, _ in delegate_blobs(pte)] == want
    for blob in want:
        assert "metadata.json" in read_blob(blob)


def test_methods_that_share_a_model_refer_to_named_data():
    blobs = list(delegate_blobs(programs.shared_methods().pte))
    assert [bytes(blob[:4]) for blob, _ in blobs] == [b"CMJR"] * 2
    assert len({key for _, named_data in blobs for key in named_data}) == 1


def test_methods_state_what_they_take_and_return():
    method = read_pte(programs.two_outputs().pte).methods["forward"]
    assert [spec.shape for spec in method.inputs] == [(2, 8), (2, 4)]
    assert [spec.shape for spec in method.outputs] == [(2, 4), (2, 8)]
    assert not any(spec.dynamic for spec in (*method.inputs, *method.outputs))
    assert read_pte(programs.dynamic().pte).methods["forward"].inputs[0].dynamic
    assert read_pte(programs.split().pte).methods["forward"].operators == ("aten::relu.out",)
    assert read_pte(programs.split().pte).methods["forward"].wiring is None
    assert sorted(read_pte(programs.two_methods().pte).methods) == ["double", "triple"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "only 0 bytes"),
        (b"\x00" * 7, "only 7 bytes"),
        (b"PK\x03\x04" + b"\x00" * 100, "not a .pte"),
        (b"\x40\x00\x00\x00ET11" + b"\x00" * 100, "not a .pte"),
        (b"\x00\x00\x00\x00ET12", "corrupt"),
        (b"\xff\xff\xff\xffET12" + b"\x00" * 64, "corrupt"),
        (b"\x08\x00\x00\x00ET12eh00", "inside its header"),
    ],
)
def test_what_is_no_program_is_refused(data, problem):
    with pytest.raises(ProgramFormatError, match=problem):
        read_pte(data)
    with pytest.raises(ProgramFormatError, match=r"write it again"):
        host.run(data, torch.zeros(1))


def test_every_truncation_is_refused():
    pte = programs.split().pte
    generator = random.Random(0)
    lengths = {0, 1, len(pte) - 1, program_bytes(pte), *(generator.randrange(len(pte)) for _ in range(200))}
    for length in lengths:
        with pytest.raises(ProgramFormatError):
            read_pte(pte[:length])


def test_several_problems_are_reported_together():
    pte = bytearray(programs.split().pte)
    program = read_root(memoryview(pte)[: program_bytes(pte)], "Program")
    arguments = program["execution_plan"][0]["chains"][0]["instructions"][2]["instr_args"]["args"]
    stored = b"".join(value.to_bytes(4, "little") for value in arguments)
    start = pte.index(len(arguments).to_bytes(4, "little") + stored) + 4
    pte[start : start + 8] = (77).to_bytes(4, "little") + (78).to_bytes(4, "little")
    with pytest.raises(ProgramFormatError, match=r"instruction 2: arguments refer to values \[77, 78\] of 6"):
        read_pte(bytes(pte))


@every_program
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_programs_are_read_or_refused(build, data):
    pte = build().pte
    damaged = changed(pte, data.draw(mutations(program_bytes(pte))))
    try:
        program = read_pte(damaged)
    except ProgramFormatError:
        return
    for method in program.methods.values():
        assert all(math.prod(spec.shape) >= 0 for spec in method.inputs)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data):
    with pytest.raises(ProgramFormatError):
        read_pte(b"\x28\x00\x00\x00ET12" + data)


FUZZ = """
import os, pickle, sys
sys.path[:0] = {path!r}
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from helpers.pte_damage import changed, mutations, program_bytes
from partitioner import host
from partitioner.host.pte.reader import read_pte
from partitioner.host.executorch.inputs import DTYPES

def zeros(spec):
    return torch.zeros(spec.shape, dtype=DTYPES[spec.scalar_type]) if spec.kind == "Tensor" else 0

for pte in pickle.load(sys.stdin.buffer):
    accepted = 0

    @settings(max_examples={examples}, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))
    @given(mutations(program_bytes(pte)))
    def fuzz(changes):
        global accepted
        damaged = changed(pte, changes)
        try:
            program = read_pte(damaged)
            accepted += 1
            for name, method in program.methods.items():
                print(changes, file=sys.stderr, flush=True)
                host.run(damaged, *map(zeros, method.inputs), method=name)
        except host.HostError:
            pass

    fuzz()
    print(accepted)
"""


def test_no_damaged_program_ends_the_process():
    """What the reader accepts goes to the native runtime, in a process that may die of it."""
    code = FUZZ.format(path=[entry for entry in sys.path if entry], examples=150)
    ptes = pickle.dumps([programs.split().pte, programs.portable_convolution().pte])
    done = subprocess.run([sys.executable, "-c", code], input=ptes, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    accepted = [int(count) for count in done.stdout.split()]
    assert len(accepted) == 2
    assert min(accepted) >= 10
