"""Bench of :class:`celosia.rtl.carry.DigitProduct`: every number times every digit.

Options: ``width``, ``product_width``, ``signed_digit``.
"""

import cocotb
from cocotb.triggers import Timer

from celosia.sim.benches.clocked import options


@cocotb.test()
async def products(dut):
    given = options(width=8, product_width=10, signed_digit=False)
    width, modulus = given["width"], 1 << given["product_width"]
    for x in range(-(1 << width - 1), 1 << width - 1):
        for digit in range(4):
            dut.x.value, dut.digit.value = x, digit
            await Timer(1, "ns")
            factor = digit - 4 if given["signed_digit"] and digit > 1 else digit
            assert dut.product.value.to_unsigned() == x * factor % modulus, f"{x} * {factor}"
