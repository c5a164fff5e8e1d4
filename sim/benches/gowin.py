"""Verilog models of the Gowin primitives that the engine instantiates: those that ship with Yosys are black boxes."""

__all__ = ["multipliers"]


def multipliers():
    """Return models of ``MULT9X9`` and ``MULT18X18``, for signed operands, with input, pipeline and output registers.

    Operands to product take three cycles, as in Gowin's DSP user guide (UG287). Simulation stops if a register is not used.
    """
    return "".join(_model(width) for width in (9, 18))


def _model(width):
    registers = ("AREG", "BREG", "PIPE_REG", "OUT_REG")
    bus, wide = f"[{width - 1}:0]", f"[{2 * width - 1}:0]"
    return "\n".join([
        f"module MULT{width}X{width}(input {bus} A, SIA, B, SIB, input ASIGN, BSIGN, ASEL, BSEL, CE, CLK, RESET,",
        f"  output {wide} DOUT, output {bus} SOA, SOB);",
        *(f"parameter {name} = 1'b0;" for name in (*registers, "ASIGN_REG", "BSIGN_REG", "SOA_REG")),
        'parameter MULT_RESET_MODE = "SYNC";',
        f"initial if (!({' && '.join(registers)})) begin $display(\"a register is not used\"); $fatal; end",
        f"reg signed {bus} a = 0, b = 0;",
        f"reg signed {wide} product = 0, p = 0;",
        "assign DOUT = p;",
        "always @(posedge CLK)",
        "  if (RESET || !ASIGN || !BSIGN || ASEL || BSEL) begin a <= 0; b <= 0; product <= 0; p <= 0; end",
        "  else if (CE) begin a <= A; b <= B; product <= a * b; p <= product; end",
        "endmodule",
        "",
    ])  # fmt: skip
