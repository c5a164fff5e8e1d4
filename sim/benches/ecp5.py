"""Verilog models of the ECP5 primitives that the engine instantiates, for simulating those forms."""

__all__ = ["mult18x18d"]


def mult18x18d():
    """Return a model of ``MULT18X18D``, for signed operands and with all of its registers on ``CLK0``, ``CE0``, ``RST0``.

    Operands to product take three cycles, as in Lattice's sysDSP guide (TN1267). Simulation stops if a register is not used.
    """
    inputs = [f"{bus}{n}" for bus in "ABC" for n in range(18)]
    inputs += [f"{line}{n}" for line in ("CLK", "CE", "RST") for n in range(4)] + ["SIGNEDA", "SIGNEDB", "SOURCEA", "SOURCEB"]
    outputs = [f"P{n}" for n in range(36)]
    registers = [f"REG_{name}_{line}" for name in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT") for line in ("CLK", "CE", "RST")]

    def bus(name, width):
        return "{" + ", ".join(f"{name}{n}" for n in reversed(range(width))) + "}"

    used = [f'{name} == "{name.rpartition("_")[2]}0"' for name in registers]
    return "\n".join([
        f"module MULT18X18D(input {', '.join(inputs)}, output {', '.join(outputs)});",
        *(f'parameter {name} = "NONE";' for name in registers),
        'parameter GSR = "ENABLED";',
        'parameter SOURCEB_MODE = "B_SHIFT";',
        f"initial if (!({' && '.join(used)})) begin $display(\"a register is not used\"); $fatal; end",
        "reg signed [17:0] a = 0, b = 0;",
        "reg signed [35:0] product = 0, p = 0;",
        f"assign {bus('P', 36)} = p;",
        "always @(posedge CLK0)",
        "  if (RST0 || !SIGNEDA || !SIGNEDB || SOURCEA || SOURCEB) begin a <= 0; b <= 0; product <= 0; p <= 0; end",
        f"  else if (CE0) begin a <= {bus('A', 18)}; b <= {bus('B', 18)}; product <= a * b; p <= product; end",
        "endmodule",
        "",
    ])  # fmt: skip
