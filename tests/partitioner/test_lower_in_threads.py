"""`lower` called by several threads at once: the bytes that one thread alone gets."""

import threading

import torch
from torch import Tensor, nn

from partitioner import lower


class Network(nn.Module):
    def __init__(self, seed: int, ends_outside: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
        )
        self.ends_outside = ends_outside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return torch.acosh(y.abs() + 1) if self.ends_outside else y


def test_threads_get_the_bytes_of_one_thread() -> None:
    x = (torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8),)
    programs = [torch.export.export(Network(seed, seed != 0).eval(), x) for seed in range(3)]
    alone = [lower(program).buffer for program in programs]
    found: list[object] = []

    def work(index: int) -> None:
        for _ in range(3):
            try:
                found.append(lower(programs[index]).buffer == alone[index])
            except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                found.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 9
