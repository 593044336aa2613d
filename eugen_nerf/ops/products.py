"""The factors of a chain's matrices, and which of them are multiplied, in the form that native runners take."""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from eugen_nerf.layers.factor_products import Product

# As in src/products.h; enough for a network of `tiles.MAX_STAGES` stages, each with offsets and a norm of its own.
MAX_PRODUCTS, MAX_FACTORS = 48, 64
FIELDS = ("left", "right", "constant", "rows", "inner", "columns")  # of a product in a list of places


class ProductPlace(ctypes.Structure):
    """struct Product of src/products.h."""

    _fields_ = tuple((name, ctypes.c_int) for name in (*FIELDS, "start"))


@dataclass(frozen=True, eq=False)
class ProductTable:
    """Where the factors and the values of products lie."""

    places: ctypes.Array[ProductPlace]
    values: int  # of all products


def describe(products: Sequence[Product]) -> tuple[list[Tensor], tuple[int, ...]]:
    """The factors of products, each of them once, and the products' places.

    Returns:
        The contiguous factors, and for each product the six numbers `FIELDS`: positions of its factors, -1 for none,
        and the sizes of left [rows, inner] and right [inner, columns]; 1 column if right is a vector.

    Raises:
        ValueError: the shapes of a product's factors do not fit together.
    """
    positions: dict[int, int] = {}
    factors: list[Tensor] = []
    places: list[int] = []
    for product in products:
        for factor in (product.left, product.right, product.constant):
            if factor is None:
                places.append(-1)
                continue
            position = positions.setdefault(id(factor), len(factors))
            if position == len(factors):
                factors.append(factor.contiguous())
            places.append(position)
        inner, columns = (*product.right.shape, 1)[:2]
        rows = inner if product.left is None else product.left.shape[0]
        if product.left is not None and product.left.shape[1] != inner:
            raise ValueError(f"{list(product.left.shape)} and {list(product.right.shape)} cannot be multiplied")
        if product.constant is not None and (columns, *product.constant.shape) != (1, rows):
            raise ValueError(f"the constant of a product must be [{rows}], not {list(product.constant.shape)}")
        places += (rows, inner, columns)
    return factors, tuple(places)


def empty_gradients(factors: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Memory for the gradients of contiguous factors; an empty tensor where none is needed."""
    return [factor.new_empty(factor.shape if need else 0) for factor, need in zip(factors, needed, strict=True)]


@functools.cache
def product_table(places: tuple[int, ...]) -> ProductTable:
    """Lay the products' values one behind the other."""
    rows = [places[i : i + len(FIELDS)] for i in range(0, len(places), len(FIELDS))]
    sizes = [row[FIELDS.index("rows")] * row[FIELDS.index("columns")] for row in rows]
    starts = itertools.accumulate(sizes, initial=0)
    table = [ProductPlace(*row, start) for row, start in zip(rows, starts, strict=False)]
    return ProductTable((ProductPlace * len(table))(*table), sum(sizes))
