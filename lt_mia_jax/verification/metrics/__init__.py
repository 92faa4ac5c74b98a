"""Numbers of the report card: values of each text first, then aggregates.

Everywhere in this package: `InputError` refuses no items, NaN, values outside the range
that a function names, and inputs of unequal length; `PerItem` holds one float64 an item
in the order of the input.
"""
