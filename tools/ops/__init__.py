"""The operators the engine runs: one file per family, with its constraints and its lowering.

``FAMILIES`` is what `celosia ops` and the documentation show, ``FORMS`` finds the family of an operation.
"""

from celosia.tools.ops import convolution, elementwise, integer, interpolation, movement, places, pooling, product, reduction
from celosia.tools.ops.family import Family, Features, Lowered, Refused, View, sentence, suggestion

__all__ = ["FAMILIES", "FORMS", "Family", "Features", "Lowered", "Refused", "View", "rows", "sentence", "suggestion"]

FAMILIES = (
    *convolution.FAMILIES,
    *product.FAMILIES,
    *integer.FAMILIES,
    *pooling.FAMILIES,
    *reduction.FAMILIES,
    *elementwise.FAMILIES,
    *places.FAMILIES,
    *movement.FAMILIES,
    *interpolation.FAMILIES,
)
FORMS = {form: family for family in FAMILIES for form in family.forms}


def rows():
    """Return the supported-operator table: ``(family, operators, ((sentence, suggestion), …))`` of each family."""
    return tuple(
        (family.name, family.operators, tuple((sentence(rule), suggestion(rule)) for rule in family.constraints))
        for family in FAMILIES
    )
