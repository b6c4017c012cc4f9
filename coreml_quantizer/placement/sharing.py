"""Sharing groups: which values of a graph have quantization parameters, and which of them share one set."""

from dataclasses import dataclass

from torch.fx import Node

from coreml_quantizer.specs import FixedSpec, Scheme, TensorSpec

Place = Node | tuple[Node, Node]
"""The place of a quantizer: the output of a node, or the edge (producer, consumer)."""


@dataclass
class _Group:
    first: Place
    order: tuple[int, int]
    spec: TensorSpec | FixedSpec


class SharingGroups:
    """Places grouped by the quantization parameters they share: a union-find that knows each group's earliest place.

    torchao creates the observer of a group at its first place in graph order, so that place must carry the spec.
    """

    def __init__(self, positions: dict[Node, int]) -> None:
        self._positions = positions
        self._parent: dict[Place, Place] = {}
        self._group: dict[Place, _Group] = {}
        self._adopted: set[Place] = set()

    def __contains__(self, place: Place) -> bool:
        return place in self._parent

    def define(self, place: Place, spec: TensorSpec | FixedSpec) -> None:
        """Gives `place` its own quantization parameters."""
        self._parent[place] = place
        self._group[place] = _Group(place, self._order(place), spec)

    def adopt(self, place: Place, spec: TensorSpec | FixedSpec) -> None:
        """Notes that another quantizer has given `place` parameters, which others may share but nothing may change."""
        self.define(place, spec)
        self._adopted.add(place)

    def share(self, place: Place, with_place: Place) -> None:
        """Gives `place` the quantization parameters of `with_place`."""
        root = self._root(with_place)
        self._parent[place] = root
        group = self._group[root]
        order = self._order(place)
        if order < group.order:
            group.first, group.order = place, order

    def spec(self, place: Place) -> TensorSpec | FixedSpec:
        """Returns the spec of the group of `place`."""
        return self._group[self._root(place)].spec

    def first(self, place: Place) -> Place:
        """Returns the earliest place of the group of `place`."""
        return self._group[self._root(place)].first

    def mergeable(self, places: list[Place]) -> bool:
        """Returns whether the groups of `places` can become one.

        Their specs must differ only in scheme, or be one and the same fixed spec.
        """
        roots = {self._root(place) for place in places}
        if len(roots) > 1 and roots & self._adopted:
            return False
        specs = [self.spec(place) for place in places]
        if any(isinstance(spec, FixedSpec) for spec in specs):
            return len(set(specs)) == 1
        return len({spec.affine() for spec in specs if isinstance(spec, TensorSpec)}) == 1

    def merge(self, places: list[Place]) -> None:
        """Merges the groups of `places` into one, which is symmetric when any of them is.

        Source of the scheme: coremltools' LinearQuantizer, combination operators under the symmetric scheme.
        """
        roots = list(dict.fromkeys(self._root(place) for place in places))
        groups = [self._group[root] for root in roots]
        symmetric = [g.spec for g in groups if isinstance(g.spec, TensorSpec) and g.spec.scheme is Scheme.SYMMETRIC]
        earliest = min(groups, key=lambda group: group.order)
        merged = _Group(earliest.first, earliest.order, symmetric[0] if symmetric else earliest.spec)
        for root in roots[1:]:
            self._parent[root] = roots[0]
            del self._group[root]
        self._group[roots[0]] = merged

    def _order(self, place: Place) -> tuple[int, int]:
        return (self._positions[place[1]], 0) if isinstance(place, tuple) else (self._positions[place], 1)

    def _root(self, place: Place) -> Place:
        root = place
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[place] != root:
            self._parent[place], place = root, self._parent[place]
        return root
