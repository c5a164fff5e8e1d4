"""Verilog models of ECP5 primitives for which Yosys has none, as far as the engine uses them."""

__all__ = ["dp16kd", "mult18x18d"]


def mult18x18d():
    """Return a model of ``MULT18X18D``, for signed operands and with all of its registers on ``CLK0``, ``CE0``, ``RST0``.

    Operands to product take three cycles, as in Lattice's sysDSP guide (TN1267). Simulation stops if a register is not used.
    """
    inputs = [f"{name}{n}" for name in "ABC" for n in range(18)]
    inputs += [f"{line}{n}" for line in ("CLK", "CE", "RST") for n in range(4)] + ["SIGNEDA", "SIGNEDB", "SOURCEA", "SOURCEB"]
    outputs = [f"P{n}" for n in range(36)]
    registers = [f"REG_{name}_{line}" for name in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT") for line in ("CLK", "CE", "RST")]
    used = [f'{name} == "{name.rpartition("_")[2]}0"' for name in registers]
    return "\n".join([
        f"module MULT18X18D(input {', '.join(inputs)}, output {', '.join(outputs)});",
        *(f'parameter {name} = "NONE";' for name in registers),
        'parameter GSR = "ENABLED";',
        'parameter SOURCEB_MODE = "B_SHIFT";',
        f"initial if (!({' && '.join(used)})) begin $display(\"a register is not used\"); $fatal; end",
        "reg signed [17:0] a = 0, b = 0;",
        "reg signed [35:0] product = 0, p = 0;",
        f"assign {_bus('P', 36)} = p;",
        "always @(posedge CLK0)",
        "  if (RST0 || !SIGNEDA || !SIGNEDB || SOURCEA || SOURCEB) begin a <= 0; b <= 0; product <= 0; p <= 0; end",
        f"  else if (CE0) begin a <= {_bus('A', 18)}; b <= {_bus('B', 18)}; product <= a * b; p <= product; end",
        "endmodule",
        "",
    ])  # fmt: skip


def dp16kd():
    """Return a model of ``DP16KD``, without its output registers, of any widths, write modes and initial content.

    Source: Lattice's memory usage guide (FPGA-TN-02204). Words of 1, 2 and 4 bits use eight of the nine bits of a byte; the lowest
    address bits of wider ones are byte enables. A port of 36 bits takes the data lines of both: port A's are the lower half. Simulation
    stops where the primitive is set up otherwise, is reset without a clock, or both ports write to the same 36 bits.
    """
    inputs = [f"DI{port}{n}" for port in "AB" for n in range(18)] + [f"AD{port}{n}" for port in "AB" for n in range(14)]
    inputs += [f"CS{port}{n}" for port in "AB" for n in range(3)]
    inputs += [f"{line}{port}" for port in "AB" for line in ("CLK", "CE", "OCE", "WE", "RST")]
    outputs = [f"DO{port}{n}" for port in "AB" for n in range(18)]
    fixed = {f"{name}_{port}": value for port in "AB" for name, value in (("REGMODE", "NOREG"), ("CSDECODE", "0b000"))}
    fixed |= {f"CLK{port}MUX": f"CLK{port}" for port in "AB"}
    wrong = [f'{name} != "{value}"' for name, value in fixed.items()]
    content = [f"INITVAL_{n:02X}" for n in range(64)]
    return "\n".join([
        f"module DP16KD(input {', '.join(inputs)}, output {', '.join(outputs)});",
        "parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18;",
        'parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL";',
        'parameter RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC", GSR = "DISABLED";',
        *(f'parameter {name} = "{value}";' for name, value in fixed.items()),
        *(f"parameter [319:0] {name} = 0;" for name in content),
        f"initial if ({' || '.join(wrong)}) begin $display(\"not as modelled\"); $fatal; end",
        "reg [35:0] rows [0:511];",
        # Each 20 bits of these parameters hold 18 bits.
        f"localparam [{320 * 64 - 1}:0] CONTENT = {{{', '.join(reversed(content))}}};",
        "integer n;",
        "initial for (n = 0; n < 512; n = n + 1) rows[n] = {CONTENT[40 * n + 20 +: 18], CONTENT[40 * n +: 18]};",
        *_port("A", "B"),
        *_port("B", "A"),
        f"assign {_bus('DOA', 18)} = DATA_WIDTH_B == 36 ? outB[17:0] : outA[17:0];",
        f"assign {_bus('DOB', 18)} = DATA_WIDTH_B == 36 ? outB[35:18] : outB[17:0];",
        'always @(posedge CLKA) if (writeA && writeB && rowA == rowB || RESETMODE != "SYNC" && (RSTA || RSTB))',
        "  begin $display(\"not as modelled\"); $fatal; end",
        "endmodule",
        "",
    ])  # fmt: skip


def _port(port, other):
    """Return the statements of one port: which bits of which row it takes, and what its clock does."""
    high = f"{_bus(f'DI{other}', 18)}, " if port == "A" else "18'd0, "
    return [
        f"localparam W{port} = DATA_WIDTH_{port};",
        f"wire [13:0] addr{port} = {_bus(f'AD{port}', 14)};",
        f"wire [8:0] row{port} = addr{port}[13:5];",
        f"wire [5:0] byte{port} = W{port} == 36 ? 0 : W{port} == 18 ? 18 * addr{port}[4] : 9 * addr{port}[4:3];",
        f"wire [5:0] bit{port} = W{port} == 4 ? 4 * addr{port}[2] : W{port} == 2 ? 2 * addr{port}[2:1] : W{port} == 1 ? addr{port}[2:0] : 0;",
        f"wire [5:0] shift{port} = byte{port} + bit{port};",
        f"wire [3:0] enable{port} = W{port} == 36 ? addr{port}[3:0] : W{port} == 18 ? addr{port}[1:0] : 1;",
        f"wire [35:0] bytes{port} = {{{', '.join(f'{{9{{enable{port}[{n}]}}}}' for n in reversed(range(4)))}}};",
        f"wire [35:0] mask{port} = (bytes{port} & (36'd1 << W{port}) - 36'd1) << shift{port};",
        f"wire [35:0] data{port} = {{{high}{_bus(f'DI{port}', 18)}}} << shift{port};",
        f"wire select{port} = CE{port} && !CS{port}0 && !CS{port}1 && !CS{port}2;",
        f"wire write{port} = select{port} && WE{port} && !RST{port};",
        f"wire [35:0] old{port} = rows[row{port}], new{port} = old{port} & ~mask{port} | data{port} & mask{port};",
        f"reg [35:0] out{port} = 0;",
        f"always @(posedge CLK{port}) begin",
        f"  if (write{port}) rows[row{port}] <= new{port};",
        f"  if (RST{port}) out{port} <= 0;",
        f"  else if (select{port} && (!WE{port} || WRITEMODE_{port} != \"NORMAL\"))",
        f"    out{port} <= (WE{port} && WRITEMODE_{port} == \"WRITETHROUGH\" ? new{port} : old{port}) >> shift{port};",
        "end",
    ]  # fmt: skip


def _bus(name, width):
    return "{" + ", ".join(f"{name}{n}" for n in reversed(range(width))) + "}"
