"""Reads configurations by YAML 1.2's core schema, and writes YAML that any reader understands alike.

PyYAML reads YAML 1.1, in which ``010`` is eight, ``1:30`` ninety, ``on`` true and ``2026-01-01`` a date. Here a number
is decimal (or says ``0x``, ``0o``), true is ``true``, and everything else is text, which a key for numbers refuses.
"""

import re
from typing import Any

import yaml

MAX_VALUES = 100_000

_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_SCHEMA = (  # tag, what it looks like, the characters that it may begin with; the first that fits is taken
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", "<<", "<"),
)


def load_yaml(text: str) -> Any:
    """Read one document.

    Raises:
        yaml.YAMLError: not YAML, a key given twice, or aliases that stand for more than `MAX_VALUES` values.
        ValueError: an integer of thousands of digits.
        RecursionError: nested thousands deep.
    """
    return yaml.load(text, _Loader)


def dump_yaml(values: object) -> str:
    """Plain values as YAML that `load_yaml` and YAML 1.1 read alike: what either takes for a number is quoted."""
    text: str = yaml.dump(values, allow_unicode=True, sort_keys=False, Dumper=_Dumper)
    if load_yaml(text) != values:  # PyYAML folds some characters (U+0085) unless it escapes them
        text = yaml.dump(values, allow_unicode=False, sort_keys=False, Dumper=_Dumper)
    return text


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a repeated key is an error, because the first of two sections would be lost.

    Aliases are counted as the values that they stand for: nine lines of them can stand for a billion.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # not PyYAML's of YAML 1.1

    def compose_document(self) -> yaml.Node | None:
        node = super().compose_document()
        if node is not None and self._count_values(node, {}) > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES} values", node.start_mark)
        return node

    def _count_values(self, node: yaml.Node, known: dict[int, int | None]) -> int:
        count = known.setdefault(id(node), None)
        if count is not None:
            return count
        if not isinstance(node, yaml.CollectionNode):
            return 1
        known[id(node)] = MAX_VALUES + 1  # what it counts as inside of itself
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = total = 1 + sum(self._count_values(child, known) for child in children)
        return total

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def _int(self, node: yaml.ScalarNode) -> int:
        text: str = self.construct_scalar(node)
        return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))

    def _float(self, node: yaml.ScalarNode) -> float:
        text: str = self.construct_scalar(node)
        return float(re.sub(r"\.(?=[inIN])", "", text))  # .inf and .nan


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which here also quotes what only YAML 1.2 takes for a number (``1e5``, ``0o7``)."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._float)
for _tag, _looks, _first in _SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_looks})$"), list(_first))
