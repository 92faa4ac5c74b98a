"""Griffe extension: shapes of jaxtyping stay strings, `Float[Array, "B"]`.

Griffe reads a string in an annotation as code, so a shape of one word would become a
name, and a link to whatever has that name.
"""

from dataclasses import fields
from typing import Any

from griffe import Attribute, Expr, ExprSubscript, ExprTuple, Extension, Function

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


class ShapeStrings(Extension):
    """Applies `quote_shapes` to parameters, results and attributes."""

    def on_function_instance(self, *, func: Function, **kwargs: Any) -> None:
        """Quote the shapes of parameters and of what is returned."""
        quote_shapes(func.returns)
        for parameter in func.parameters:
            quote_shapes(parameter.annotation)

    def on_attribute_instance(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Quote the shape of a field, or those of an alias such as `Batch = ...`."""
        quote_shapes(attr.annotation)
        quote_shapes(attr.value)
