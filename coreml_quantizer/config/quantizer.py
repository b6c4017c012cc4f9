"""`QuantizerConfig`: the whole configuration of how a model is quantized."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from coreml_quantizer.config import checks
from coreml_quantizer.config.checks import Check
from coreml_quantizer.config.display import ShortRepr
from coreml_quantizer.config.keys import function_key, op_key, same_keys, type_key
from coreml_quantizer.config.layer_checks import layer_problems
from coreml_quantizer.config.layers import LayerConfig

ENDS = ("as_configured", "weight_only", "float")
BOUNDARIES = ("quantized", "float")
KNOWN_RANGES = ("observed", "fixed")

Layers = Mapping[str, LayerConfig | None]


@dataclass(frozen=True, repr=False)
class Skip(ShortRepr):
    """Modules and operators that stay in floating point, even if the configuration also names them elsewhere.

    Attributes:
        modules: Module paths; each includes everything inside the module.
        patterns: Regular expressions that match a whole module path.
        types: Module types.
        ops: Operators.
    """

    modules: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        checks.refuse(_skip_problems(given))
        for name, value in given.items():
            object.__setattr__(self, name, tuple(_KEYS[name](key) for key in value))


@dataclass(frozen=True, repr=False)
class QuantizerConfig(ShortRepr):
    """The quantization of every layer of a model; the fields are the same in Python, in a dict, and in YAML.

    Precedence: skip, then modules, patterns, types, ops, default; then `first_layer` and `last_layer`, and `inputs` and
    `outputs`, which can only leave more in floating point. Within modules the innermost path wins, within patterns the
    first that matches, within types the innermost module. `None` for a layer leaves it in floating point.

    Attributes:
        default: Layer for everything that no field below names.
        modules: Layers by module path, such as "encoder.layer.0"; each holds for everything inside.
        patterns: Layers by regular expression, which must match a whole module path; each holds for everything inside.
        types: Layers by class: the class itself, its full name ("torch.nn.Linear") or its bare name ("Linear"). A
            subclass is another type, as in coremltools.
        ops: Layers by ATen operator ("aten.add"), or by function ("torch.add" or `torch.add` itself).
        skip: Modules and operators that stay in floating point.
        first_layer: How layers with weights that have no other such layer before them are quantized: "as_configured",
            "weight_only" or "float".
        last_layer: The same for layers with weights that have no other such layer after them.
        inputs: Whether values that enter the model are quantized where they are read: "quantized" or "float".
        outputs: Whether values that leave the model are quantized: "quantized" or "float".
        known_ranges: How outputs of sigmoid, hardsigmoid, softmax and tanh are quantized. "observed" takes the range
            that calibration finds; its steps are finer if the values do not fill [0, 1] or [-1, 1]. "fixed" takes
            coremltools' parameters for the whole interval; they need no observing, and do not clip values that
            calibration did not see.

    Raises:
        ConfigError: Something is wrong; the message lists everything.
    """

    default: LayerConfig | None = field(default_factory=LayerConfig)
    modules: Layers = field(default_factory=dict)
    patterns: Layers = field(default_factory=dict)
    types: Layers = field(default_factory=dict)
    ops: Layers = field(default_factory=dict)
    skip: Skip = field(default_factory=Skip)
    first_layer: str = "as_configured"
    last_layer: str = "as_configured"
    inputs: str = "quantized"
    outputs: str = "quantized"
    known_ranges: str = "observed"

    def __post_init__(self) -> None:
        checks.refuse(_problems(vars(self), layer=_layer_object, skip=_skip_object))
        for name in _SCOPES:
            scope = getattr(self, name)
            object.__setattr__(self, name, {_KEYS[name](key): layer for key, layer in scope.items()})

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "QuantizerConfig":
        """Reads a dict of the attributes above, in which every layer is a dict or None.

        Raises:
            ConfigError: Something is wrong; the message lists everything, each with its path, what is allowed, and
                near matches.
        """
        checks.refuse(_problems(config, layer=_layer_dict, skip=_skip_problems))
        read: dict[str, Any] = dict(config)
        for name in _SCOPES:
            read[name] = {key: _read_layer(layer) for key, layer in config.get(name, {}).items()}
        if "default" in config:
            read["default"] = _read_layer(config["default"])
        read["skip"] = Skip(**config.get("skip", {}))
        return cls(**read)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict that `from_dict` reads, made of dicts, lists, strings, numbers and None."""
        written: dict[str, Any] = {"default": _write_layer(self.default)}
        for name in _SCOPES:
            written[name] = {key: _write_layer(layer) for key, layer in getattr(self, name).items()}
        written["skip"] = {item.name: list(getattr(self.skip, item.name)) for item in fields(Skip)}
        return {**written, **{name: getattr(self, name) for name in _CHOICES}}

    @classmethod
    def from_yaml(cls, source: str | Path) -> "QuantizerConfig":
        """Reads YAML from a path, or from the text itself.

        A string is taken as text if it has a line break or a colon before a space, or ends with a colon.

        Raises:
            ConfigError: The text is not YAML, or not a valid configuration.
        """
        text = _text_of(source)
        try:
            config = yaml.load(text, Loader=_UniqueKeys)
        except yaml.YAMLError as error:
            checks.refuse([f" is no YAML: {error}"])
        return cls.from_dict({} if config is None else config)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Returns the configuration as YAML, and writes it to `path` if given."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses a key that a mapping has twice; YAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Builds a dict."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands here twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_SCOPES = ("modules", "patterns", "types", "ops")
_CHOICES = {
    "first_layer": ENDS,
    "last_layer": ENDS,
    "inputs": BOUNDARIES,
    "outputs": BOUNDARIES,
    "known_ranges": KNOWN_RANGES,
}
_KEYS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {"modules": str, "patterns": str, "types": type_key, "ops": op_key}
)


def _key_problem(scope: str, key: Any) -> str | None:
    """Returns what is wrong with the key of a layer, None if nothing is."""
    if scope == "patterns" and isinstance(key, str):
        try:
            re.compile(key)
        except re.error as error:
            return f"is no regular expression: {error}"
        return None
    if isinstance(key, str) or (scope == "types" and isinstance(key, type)):
        return None
    if scope == "ops" and isinstance(key, type):
        return "is a class; put it under 'types'"
    if scope == "ops" and callable(key):
        known = function_key(key) is not None
        return None if known else "is no ATen operator; name one of those that torch.export makes of it"
    return "must be a string" + {"types": " or a class", "ops": " or a function"}.get(scope, "")


def _scope(name: str, layer: Check) -> Check:
    def check(entries: Any) -> list[str]:
        if not isinstance(entries, Mapping):
            return [f"={entries!r}: must be a dict from a key to a layer or None."]
        wrong = ((key, _key_problem(name, key)) for key in entries)
        found = [f"[{key!r}]: {problem}." for key, problem in wrong if problem is not None]
        found = found or list(same_keys(entries, _KEYS[name]))
        return found + [f"[{key!r}]{line}" for key, value in entries.items() for line in layer(value)]

    return check


def _skip_problems(skip: Any) -> list[str]:
    return checks.problems(skip, {name: _names(name) for name in _SCOPES})


def _names(scope: str) -> Check:
    def check(names: Any) -> list[str]:
        if isinstance(names, str) or not isinstance(names, list | tuple):
            return [f"={names!r}: must be a list."]
        wrong = ((key, _key_problem(scope, key)) for key in names)
        return [f": {key!r} {problem}." for key, problem in wrong if problem is not None]

    return check


def _problems(config: Any, layer: Check, skip: Check) -> list[str]:
    scopes = {name: _scope(name, layer) for name in _SCOPES}
    choices = {name: checks.one_of(allowed) for name, allowed in _CHOICES.items()}
    return checks.problems(config, {"default": layer, "skip": skip, **scopes, **choices})


def _layer_dict(layer: Any) -> list[str]:
    return [] if layer is None else layer_problems(layer)


def _layer_object(layer: Any) -> list[str]:
    fine = layer is None or isinstance(layer, LayerConfig)
    return [] if fine else [f"={layer!r}: must be a LayerConfig or None; QuantizerConfig.from_dict reads dicts."]


def _skip_object(skip: Any) -> list[str]:
    return [] if isinstance(skip, Skip) else [f"={skip!r}: must be a Skip; QuantizerConfig.from_dict reads dicts."]


def _read_layer(layer: Mapping[str, Any] | None) -> LayerConfig | None:
    return None if layer is None else LayerConfig.from_dict(layer)


def _write_layer(layer: LayerConfig | None) -> dict[str, Any] | None:
    return None if layer is None else layer.to_dict()


def _text_of(source: str | Path) -> str:
    if isinstance(source, str) and ("\n" in source or ": " in source or source.rstrip().endswith(":")):
        return source
    return Path(source).read_text(encoding="utf-8")
