"""Griffe extension: shapes stay strings, and `Example:` is code.

Griffe reads a string in an annotation as code, so a shape of one word, as in
`Float[Array, "B"]`, would become a name, and a link to whatever has that name. It knows
`Examples:` as a section of doctests; `Example:` would be read as Markdown.
"""

from dataclasses import fields
from typing import Any

from griffe import (
    Attribute,
    Expr,
    ExprSubscript,
    ExprTuple,
    Extension,
    Function,
    Object,
)

ARRAYS = {"Bool", "Complex", "Float", "Inexact", "Int", "Integer", "Key", "Num"}
ARRAYS |= {"PRNGKeyArray", "Real", "Shaped", "UInt", "UInt8", "UInt16", "UInt32"}


def quote_shapes(value: Any) -> None:
    """Put the shape of every array annotation below an expression in quotes."""
    if isinstance(value, ExprSubscript) and str(value.left) in ARRAYS:
        if isinstance(value.slice, ExprTuple):
            shape = str(value.slice.elements[-1]).strip("'\" ")
            value.slice.elements[-1] = f'"{shape}"'
    elif isinstance(value, Expr):
        for field in fields(value):
            inner = getattr(value, field.name)
            for item in inner if isinstance(inner, list | tuple) else [inner]:
                quote_shapes(item)


class Docstrings(Extension):
    """Applies `quote_shapes` to parameters, results and attributes."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Make doctests a section that is shown as code."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")

    def on_function_instance(self, *, func: Function, **kwargs: Any) -> None:
        """Quote the shapes of parameters and of what is returned."""
        quote_shapes(func.returns)
        for parameter in func.parameters:
            quote_shapes(parameter.annotation)

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Quote the shape of a field, or those of an alias such as `Batch = ...`."""
        quote_shapes(attr.annotation)
        quote_shapes(attr.value)
