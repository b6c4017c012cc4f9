"""Corrupts programs at random and checks that each is a clear error or runs.

    python tests/fuzz/programs.py [--count 10000] [--seed 0]

Every case must end in an error of the host runtime's hierarchy or in a run, within seconds, within four times the
program's size (and what a process needs anyway) of memory, and without opening a file outside its package. Cases run in
processes of their own, a few hundred each, so that a crash is seen and attributed.
"""
# ruff: noqa: T201  (its output is what it is for)

import argparse
import json
import multiprocessing
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SECONDS = 20.0
MEMORY_FACTOR = 4
ALLOWANCE = 48 << 20
_BATCH = 500
_ABSURD = (2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)
_VARINTS = (b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x10")
_DEPTH = 20_000
OUTSIDE = "outside.bin"


def _truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _flip_bits(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _overwrite(data: bytearray, rng: random.Random) -> bytearray:
    place, count = rng.randrange(len(data)), rng.randint(1, 16)
    data[place : place + count] = rng.choice([b"\x00", b"\xff", rng.randbytes(1)]) * count
    return data


def _absurd_size(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    if rng.random() < 0.5:
        value = rng.choice(_VARINTS)
    else:
        value = rng.choice(_ABSURD).to_bytes(8, "little")[: rng.choice([4, 8])]
    data[place : place + len(value)] = value
    return data


def _drop(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, 64)]
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    place, count = rng.randrange(len(data)), rng.randint(1, 256)
    data[place:place] = data[place : place + count]
    return data


def _nest(data: bytearray, rng: random.Random) -> bytearray:
    """Deep nesting: of JSON at the end or in place of the file, of length-delimited protobuf fields inside."""
    kind = rng.randrange(3)
    if kind == 0:
        return bytearray(b"[" * _DEPTH + b"]" * _DEPTH)
    if kind == 1:
        return data + b'{"a":'[::-1] * _DEPTH
    nested = b""
    for _ in range(rng.choice([90, 200, 2000])):
        nested = b"\x0a" + _varint(len(nested)) + nested
    place = rng.randrange(len(data))
    return data[:place] + nested + data[place:]


def _escape(data: bytearray, rng: random.Random) -> bytearray:
    """Paths of the program lead to a file outside its folder, at equal length where lengths are stored."""
    names = [b"weights/weight.bin", b"com.apple.CoreML", b"model.mlmodel", b"weight.bin", b"Manifest.json"]
    found = [name for name in names if name in data]
    if not found:
        return _flip_bits(data, rng)
    name = rng.choice(found)
    target = rng.choice(["../" * 8, "/tmp/", "../../", "..\\..\\"]) + OUTSIDE
    path = target.encode()[: len(name)] if rng.random() < 0.5 else target.encode().rjust(len(name), b".")
    return bytearray(bytes(data).replace(name, path))


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


MUTATIONS: tuple[Callable[[bytearray, random.Random], bytearray], ...] = (
    _truncate,
    _flip_bits,
    _overwrite,
    _absurd_size,
    _drop,
    _repeat,
    _nest,
    _escape,
)


def corrupted(subject: Any, rng: random.Random) -> tuple[dict[str, bytes], str]:
    """The subject's files with one of them changed, and what was done."""
    files = dict(subject.files)
    path = rng.choice(sorted(files))
    mutation = rng.choice(MUTATIONS)
    files[path] = bytes(mutation(bytearray(files[path]), rng))
    return files, f"{subject.kind} {path} {mutation.__name__}"


def run_case(subject: Any, files: Mapping[str, bytes], folder: Path) -> str:
    """Loads and runs a corrupted program: ``"ran"`` or the name of the error."""
    import numpy as np
    import torch

    from partitioner import host
    from partitioner.errors import PartitionerError
    from partitioner.host.pte.reader import read_pte

    try:
        if subject.kind == "package":
            for path, data in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
            program = host.load(folder)
        elif subject.kind == "pte":
            for name, method in read_pte(files["program"]).methods.items():
                inputs = [torch.ones(spec.shape) for spec in method.inputs if spec.kind == "Tensor"]
                host.run(files["program"], *inputs, method=name)
            return "ran"
        else:
            program = host.load(files["program"])
        inputs = {
            feature.name: np.ones([1 if size is None else size for size in feature.shape or ()], np.float32)
            for feature in program.inputs
        }
        program.predict(inputs, program.make_state() if program.mil.functions[program.functions[0]].states else None)
    except PartitionerError as error:
        return type(error).__name__
    return "ran"


def watch_files(folder: Path, seen: list[str]) -> None:
    """Records every file that is opened beside the packages, and the one that corrupted paths lead to."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str):
            return
        path = os.path.realpath(arguments[0])
        inside = f"{path}/".startswith((f"{folder}/package/", f"{folder}/warm/"))
        if not inside and (path.startswith(str(folder)) or OUTSIDE in path):
            seen.append(path)

    sys.addaudithook(hook)


def peak_bytes(*, reset: bool = False) -> int:
    """Peak of resident memory since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


def worker(pickled: bytes, seed: int, first: int, count: int, report: Connection) -> None:
    """Runs cases and reports ``(index, description, outcome)`` before (outcome None) and after each."""
    subjects = pickle.loads(pickled)
    seen: list[str] = []
    root = Path(tempfile.mkdtemp())
    (root / OUTSIDE).write_bytes(b"secret")
    # What fails in the native runtime is logged there, for every case.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    watch_files(root, seen)
    for subject in subjects:
        run_case(subject, subject.files, root / "warm")
        shutil.rmtree(root / "warm", ignore_errors=True)
    try:
        for index in range(first, first + count):
            rng = random.Random(f"{seed}/{index}")
            subject = rng.choice(subjects)
            files, description = corrupted(subject, rng)
            report.send((index, description, None))
            report.send((index, description, _outcome(subject, files, root / "package", seen)))
            shutil.rmtree(root / "package", ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _outcome(subject: Any, files: Mapping[str, bytes], folder: Path, seen: list[str]) -> str:
    before = peak_bytes(reset=True)
    try:
        outcome = run_case(subject, files, folder)
    except Exception as error:  # the point is to find any  # noqa: BLE001
        return f"BAD: {type(error).__name__}: {error}"
    used = peak_bytes() - before
    if seen:
        return f"BAD: opened {seen.pop()}"
    if used > MEMORY_FACTOR * sum(map(len, files.values())) + ALLOWANCE:
        return f"BAD: took {used >> 20} MiB"
    return outcome


def fuzz(count: int, seed: int, subjects: Any) -> tuple[Counter[str], list[str]]:
    """Outcomes of ``count`` cases, and a line for each bad one."""
    context = multiprocessing.get_context("spawn")
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    done = 0
    while done < count:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (pickle.dumps(subjects), seed, done, min(_BATCH, count - done), sender)
        process = context.Process(target=worker, args=arguments)
        process.start()
        sender.close()
        done = _follow(process, receiver, done, outcomes, problems)
    return outcomes, problems


def _follow(process: Any, receiver: Connection, done: int, outcomes: Counter[str], problems: list[str]) -> int:
    """Reads a worker's reports until it ends; the index of the first case that is left."""
    running: tuple[int, str] | None = None
    while True:
        try:
            # Starting a process and importing everything takes longer than a case.
            if not receiver.poll(SECONDS if running else 300):
                process.kill()
                outcome = f"BAD: no answer within {SECONDS} s"
                break
            index, description, reported = receiver.recv()
        except EOFError:
            process.join()
            outcome = f"BAD: the process ended with {process.exitcode}"
            break
        if reported is None:
            running = (index, description)
            continue
        running = None
        done = index + 1
        outcomes[reported.partition(":")[0]] += 1
        if reported.startswith("BAD"):
            problems.append(f"case {index}: {description}: {reported}")
    process.join()
    if running is None:
        if process.exitcode:
            raise RuntimeError(f"a fuzzing process failed outside of a case, with {process.exitcode}")
        return done
    outcomes["BAD"] += 1
    problems.append(f"case {running[0]}: {running[1]}: {outcome}")
    return running[0] + 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from fuzz.subjects import subjects

    begin = time.perf_counter()
    outcomes, problems = fuzz(options.count, options.seed, subjects())
    print(*problems, sep="\n")
    print(json.dumps(dict(outcomes.most_common())), f"{time.perf_counter() - begin:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
