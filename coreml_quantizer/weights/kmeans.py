"""One-dimensional k-means, which finds a table with a small squared error to the values of a weight."""

import torch
from torch import Tensor

_ROUNDS = 100


def cluster(values: Tensor, count: int) -> Tensor:
    """Returns `count` ascending centers, float64: the best result of Lloyd's algorithm from three starts.

    The starts are evenly spaced by rank, by value, and by the cube root of density, which is optimal for many centers
    (Panter and Dite 1951).

    On sorted values with running sums, a round costs `count * log(len(values))`. Rounds are therefore repeated until no
    center moves, but at most 100 times.

    Args:
        values: One-dimensional; at least one value.
        count: Number of centers; with fewer distinct values, some centers coincide.
    """
    ordered = values.detach().to("cpu", torch.float64).sort().values
    spread = torch.linspace(0, 1, 2 * count + 1, dtype=torch.float64)[1::2]
    by_rank = ordered[(spread * (len(ordered) - 1)).round().long()]
    by_value = ordered[0] + spread * (ordered[-1] - ordered[0])
    starts = (by_rank, by_value, _by_density(ordered, spread))
    return min((_refine(ordered, start) for start in starts), key=lambda centers: _error(ordered, centers))


def nearest(values: Tensor, centers: Tensor) -> Tensor:
    """Returns for each value the index of the nearest center, uint8; `centers` are ascending."""
    borders = (centers[1:] + centers[:-1]) / 2
    return torch.bucketize(values.detach().to("cpu", torch.float64), borders).to(torch.uint8)


def _by_density(ordered: Tensor, spread: Tensor) -> Tensor:
    # The density around a gap between neighbours is its inverse, so a gap of d holds d**(2/3) of the cube root.
    mass = torch.cat([ordered.new_zeros(1), ordered.diff().pow(2 / 3).cumsum(0)])
    index = torch.searchsorted(mass, spread * mass[-1])
    return ordered[index.clamp(max=len(ordered) - 1)]


def _refine(ordered: Tensor, centers: Tensor) -> Tensor:
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    for _ in range(_ROUNDS):
        borders = torch.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        ends = torch.cat([borders.new_zeros(1), borders, borders.new_full((1,), len(ordered))])
        members = ends.diff()
        moved = torch.where(members > 0, sums[ends].diff() / members.clamp(min=1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved.sort().values
    return centers


def _error(ordered: Tensor, centers: Tensor) -> float:
    return float((centers[nearest(ordered, centers).long()] - ordered).square().sum())
