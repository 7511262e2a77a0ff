"""What the reference reads from the sources: links by name, and the signatures of dataclasses.

An extension of griffe, which mkdocstrings reads the sources with; nothing is imported.
"""

import ast
import re
from collections.abc import Iterator

import griffe

_MODULES = ("equinox.Module", "diffrax.", "optimistix.")
_NO_FIELDS = ("typing.ClassVar", "equinox.AbstractVar", "equinox.AbstractClassVar")
_POSITIONAL = griffe.ParameterKind.positional_or_keyword
_KEYWORD = griffe.ParameterKind.keyword_only
_LINK = re.compile(r"\[`([^`\]]+)`\]\[\]")


class Docstrings(griffe.Extension):
    """Qualifies links as [`Newton`][], and shows what a class or a function takes that is written
    as fields of a dataclass."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        objects = list(_objects(pkg))
        # What is public is linked by its public name; else a class by where it is.
        paths = {x.name: x.path for x in objects if x.is_class}
        paths |= {name: f"{pkg.path}.{name}" for name in pkg.members if not name.startswith("_")}
        paths[pkg.name] = pkg.path
        for x in objects:
            if x.docstring:
                x.docstring.value = _LINK.sub(lambda m: _qualified(m, paths), x.docstring.value)
            if x.is_function:
                _show_options(x)
            elif x.is_attribute:
                _describe_problem(x)
            elif x.is_class:
                _add_init(x)
                _add_messages(x)


def _describe_problem(attribute: griffe.Attribute) -> None:
    """A problem is documented by where it is published, or by the call that makes it."""
    made = attribute.value
    if isinstance(made, griffe.ExprCall) and ".problems." in attribute.path:
        named = {getattr(a, "name", ""): a.value for a in made.arguments if hasattr(a, "value")}
        text = f"{ast.literal_eval(str(named['source']))}." if "source" in named else f"`{made}`"
        attribute.docstring = griffe.Docstring(text, parent=attribute)


def _objects(x: griffe.Object) -> Iterator[griffe.Object]:
    yield x
    for member in x.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _qualified(link: re.Match, paths: dict[str, str]) -> str:
    first, *rest = link[1].split(".")
    # An unknown name stays as it is, and the build says that it is.
    return f"[`{link[1]}`][{'.'.join([paths.get(first, first), *rest])}]"


def _bases(cls: griffe.Class) -> set[str]:
    bases = [base for c in (cls, *cls.mro()) for base in c.bases]
    return {getattr(base, "canonical_path", str(base)) for base in bases}


def _add_init(cls: griffe.Class) -> None:
    """Of a module of Equinox, where it is a user who makes one."""
    cls.decorators = []  # else griffe does it for those that are reports, too
    if "__init__" in cls.members or cls.docstring is None or cls.name.startswith("Abstract"):
        return
    is_module = any(base.startswith(_MODULES) for base in _bases(cls))
    if is_module and "**Attributes:**" not in cls.docstring.value:
        init = griffe.Function("__init__", parent=cls)
        init.parameters = griffe.Parameters(griffe.Parameter("self"), *_fields(cls))
        cls.set_member("__init__", init)


def _add_messages(cls: griffe.Class) -> None:
    """The members of an enumeration are documented by the messages that they are."""
    if _bases(cls) & {"equinox.Enumeration", "diffrax.RESULTS"}:
        for member in cls.attributes.values():
            member.docstring = griffe.Docstring(ast.literal_eval(str(member.value)), parent=member)


def _show_options(fn: griffe.Function) -> None:
    """Those of `**options` that the decorator `takes` names."""
    calls = [d.value for d in fn.decorators if d.callable_path.endswith(".takes")]
    kinds = [fn.modules_collection[kind.canonical_path] for x in calls for kind in x.arguments]
    if kinds:
        *own, _ = fn.parameters
        options = {p.name: p for kind in kinds for p in _fields(kind)}
        for p in options.values():
            p.kind = _KEYWORD
        fn.parameters = griffe.Parameters(*own, *options.values())


def _fields(cls: griffe.Class) -> list[griffe.Parameter]:
    """The arguments that a dataclass makes of its fields, those of its bases first."""
    found, positional = {}, True
    for field in (a for c in (*reversed(cls.mro()), cls) for a in c.attributes.values()):
        path = getattr(field.annotation, "canonical_path", None)
        if path == "dataclasses.KW_ONLY":
            positional = False
        elif path and path not in _NO_FIELDS and "instance-attribute" in field.labels:
            options = _options(field.value)
            default = options.get("default")
            if str(default).startswith("_"):  # a private constant: its value
                default = field.modules_collection[default.canonical_path].value
            by_position = positional and "kw_only" not in options
            found.setdefault(field.name, griffe.Parameter(field.name))
            found[field.name].default = default
            found[field.name].kind = _POSITIONAL if by_position else _KEYWORD
    return sorted(found.values(), key=lambda p: p.kind is _KEYWORD)


def _options(value: griffe.Expr | str | None) -> dict[str, griffe.Expr | str | None]:
    """Of a field: those of `eqx.field(...)`, or its value."""
    if isinstance(value, griffe.ExprCall) and value.canonical_path.endswith(".field"):
        return {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
    return {"default": value}
