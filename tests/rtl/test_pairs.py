"""Two products from one multiplication: exact for every activation and every pair of weights."""

import gc

import numpy as np
import pytest

from celosia.rtl.array import Array
from celosia.rtl.pairs import CARRY_BITS, LOW_BITS


def test_both_products_are_exact_for_all_operands():
    numbers = np.arange(-128, 128)
    w0, w1 = (weights.reshape(-1) for weights in np.meshgrid(numbers, numbers))
    factor = 1023 * w1 + w0
    assert factor.min() == -(1 << 17) and factor.max() < 1 << 17
    for a in numbers:
        product = a * factor
        high, low = product >> LOW_BITS, product % (1 << LOW_BITS)
        carry = (high - a * w1) % (1 << CARRY_BITS)
        carry -= (carry >> CARRY_BITS - 1) << CARRY_BITS
        assert -(1 << 25) <= product.min() and product.max() < 1 << 25
        assert (high - carry == a * w1).all()
        assert ((carry << LOW_BITS) + low + a * w1 == a * w0).all()


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
@pytest.mark.parametrize("wrong, text", [
    ({"multiplier": "ecp5_pairs", "image_rows": 2}, "image_rows must be 0 with ecp5_pairs"),
    ({"multiplier": "ecp5", "dsps": 8}, "dsps is for ecp5_mixed only"),
    ({"multiplier": "booth"}, "multiplier must be one of portable, ecp5, .*, not 'booth'"),
    ({"multiplier": "ecp5_pairs", "cols": 1}, "cols must be even for ecp5_pairs, not 1"),
    ({"multiplier": "ice40", "cols": 1}, "cols must be even for ice40, not 1"),
])  # fmt: skip
def test_arrays_that_cannot_be_built_are_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        Array(**({"rows": 4, "cols": 4, "weight_rows": 1} | wrong))
    gc.collect()
