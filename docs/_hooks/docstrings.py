"""What the reference reads from the sources: links by name, and the signatures of dataclasses.

An extension of griffe, which mkdocstrings reads the sources with; nothing is imported.
"""

import ast
import re
from collections.abc import Iterator

import griffe

_LINK = re.compile(r"\[`([^`\]]+)`\]\[\]")


class Docstrings(griffe.Extension):
    """Qualifies links as [`Newton`][], and shows what a class or a function takes that is written
    as fields of a dataclass."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        objects = list(_objects(pkg))
        # What is public is linked by its public name; else a class by where it is.
        paths = {x.name: x.path for x in objects if x.is_class}
        paths |= {name: f"{pkg.path}.{name}" for name in pkg.exports or pkg.members}
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
    """Of a dataclass or a module of Equinox, where a user makes one: its docstring says with which
    arguments."""
    is_dataclass, cls.decorators = bool(cls.decorators), []  # griffe shows all of them
    if "__init__" in cls.members or not (is_dataclass or "equinox.Module" in _bases(cls)):
        return
    if cls.docstring and "**Arguments:**" in cls.docstring.value:
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
    kinds = [d.value for d in fn.decorators if d.callable_path.endswith(".takes")]
    for kind in (name for call in kinds for name in call.arguments):
        last = next(p.name for p in fn.parameters if p.kind is griffe.ParameterKind.var_keyword)
        options = _fields(fn.modules_collection[kind.canonical_path])
        every = [p for p in fn.parameters if p.name != last]
        every += [p for p in options if p.name not in {q.name for q in every}]
        for p in every[len(every) - len(options) :]:
            p.kind = griffe.ParameterKind.keyword_only
        fn.parameters = griffe.Parameters(*every, fn.parameters[last])
    if kinds:
        del fn.parameters[last]


def _fields(cls: griffe.Class) -> list[griffe.Parameter]:
    """The arguments that a dataclass makes of its fields, those of its bases first."""
    kind, found = griffe.ParameterKind.positional_or_keyword, {}
    for attribute in (a for c in (*reversed(cls.mro()), cls) for a in c.attributes.values()):
        if str(attribute.annotation) == "dataclasses.KW_ONLY":
            kind = griffe.ParameterKind.keyword_only
        elif attribute.annotation is not None and "property" not in attribute.labels:
            default = _default(attribute.value)
            before = found.get(attribute.name)
            if before is not None:
                before.default = default
            else:
                found[attribute.name] = griffe.Parameter(
                    attribute.name, annotation=attribute.annotation, kind=kind, default=default
                )
    return list(found.values())


def _default(value: griffe.Expr | str | None) -> griffe.Expr | str | None:
    """Of a field: its value, or the `default` of `eqx.field(...)`."""
    if isinstance(value, griffe.ExprCall) and value.canonical_path.endswith(".field"):
        named = {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
        return named.get("default")
    return value
