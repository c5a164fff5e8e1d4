"""Carries at the ends of an ECP5 netlist's adders: nextpnr spends two LUTs on each that has a net, even if nothing reads it."""

__all__ = ["drop_unused_carries"]


def drop_unused_carries(netlist):
    """Disconnect the carry outputs of ``CCU2C`` cells that nothing reads.

    Parameters
    ----------
    netlist : dict
        What Yosys' ``write_json`` writes; changed in place.

    Returns
    -------
    int
        How many were disconnected.
    """
    dropped = 0
    for module in netlist["modules"].values():
        cells = module.get("cells", {}).values()
        read = {bit for port in module.get("ports", {}).values() for bit in port["bits"]}
        for cell in cells:
            for port, bits in cell["connections"].items():
                if cell["port_directions"][port] != "output":
                    read.update(bits)
        for cell in cells:
            carry = cell["connections"].get("COUT", ["x"])[0]
            if cell["type"] == "CCU2C" and carry != "x" and carry not in read:
                cell["connections"]["COUT"] = ["x"]
                dropped += 1
    return dropped
