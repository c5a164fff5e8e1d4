"""Pass 'tokens': find every pair of steps in different units that touch the same words or weight tiles, and order it with tokens.

The instructions' addresses are known here, so dependencies are exact: an EXECUTE waits for precisely the STOREs that wrote the words it
reads and the FILLs of its weights, a STORE for the last readers of the words it overwrites, and both for each other's use of an accumulator bank. Each pair
of units has one counter and each unit completes in order, so a step needs at most one token per other unit: that
of the last step it depends on. Only the steps somebody waits for signal, and each wait takes one token: counters are zero at the end.
"""

import numpy as np

from celosia.rtl.isa import Opcode
from celosia.sim.footprint import execute_reads, fill_words, store_words, unfold_bytes, unfold_words, weight_tiles

__all__ = ["UNITS", "add_tokens", "touched_words"]

UNITS = {Opcode.UNFOLD: "load", Opcode.FILL: "load", Opcode.EXECUTE: "execute", Opcode.STORE: "store"}


def touched_words(instruction, config):
    """Return ``(reads, writes)``: what an instruction touches, as sorted arrays: activation words, and weight tiles counted on from
    ``act_depth``."""
    nothing = np.zeros(0, np.int64)
    if instruction.opcode == Opcode.EXECUTE:
        address, inside = execute_reads(instruction, config)
        return np.concatenate([np.unique(address[inside]), config.act_depth + weight_tiles(instruction)]), nothing
    if instruction.opcode == Opcode.STORE:
        dest, operand = store_words(instruction)
        return nothing if operand is None else np.unique(operand), np.unique(dest)
    if instruction.opcode == Opcode.UNFOLD:
        address, exists = unfold_bytes(instruction)
        return np.unique(address[exists] // config.rows), np.unique(unfold_words(instruction))
    if instruction.opcode == Opcode.FILL:
        return np.unique(fill_words(instruction, config)), config.act_depth + weight_tiles(instruction)
    return nothing, nothing


def add_tokens(instructions, config):
    """Return the instructions with their ``wait`` and ``signal`` fields set.

    Parameters
    ----------
    instructions : list of Instruction
        In program order, without tokens, without ``END``.
    config : EngineConfig
    """
    needs = _dependencies(instructions, config)
    clocks = []  # per instruction: the last step of each unit known to be complete when it starts
    last = {unit: {other: -1 for other in UNITS.values()} for unit in UNITS.values()}
    waits = [{} for _ in instructions]
    signals = [{} for _ in instructions]
    for index, instruction in enumerate(instructions):
        unit = UNITS[instruction.opcode]
        clock = dict(last[unit])
        for other in sorted(needs[index], key=needs[index].get, reverse=True):  # later steps know more
            step = needs[index][other]
            if other == unit or step <= clock[other]:
                continue
            waits[index][f"wait_{other}"] = 1
            signals[step][f"signal_{unit}"] = 1
            clock[other] = step
            for third, known in clocks[step].items():
                clock[third] = max(clock[third], known)
        clocks.append(clock)
        last[unit] = clock
    return [
        instruction.replace(**waits[index], **signals[index]) if waits[index] or signals[index] else instruction
        for index, instruction in enumerate(instructions)
    ]


def _dependencies(instructions, config):
    """Return for each instruction ``{unit: last step of that unit it depends on}``."""
    size = config.act_depth + config.weight_tiles
    written = {unit: np.full(size, -1) for unit in UNITS.values()}
    read = {unit: np.full(size, -1) for unit in UNITS.values()}
    filled, drained = [-1, -1], [-1, -1]  # accumulator banks: the last EXECUTE and STORE
    needs = []
    for index, instruction in enumerate(instructions):
        unit = UNITS[instruction.opcode]
        reads, writes = touched_words(instruction, config)
        need = {}

        def after(other, step, need=need):
            if step >= 0:
                need[other] = max(need.get(other, -1), int(step))

        for other in UNITS.values():
            if reads.size:
                after(other, written[other][reads].max())
            if writes.size and other != unit:
                after(other, max(written[other][writes].max(), read[other][writes].max()))
        if unit == "execute":
            after("store", drained[instruction.bank])
            filled[instruction.bank] = index
        elif unit == "store":
            after("execute", filled[instruction.bank])
            drained[instruction.bank] = index
            if need.get("store", -1) >= 0:
                # Its operand comes from an earlier STORE, which must have completed: let the EXECUTE before it wait for that.
                needs[filled[instruction.bank]].setdefault("store", -1)
                needs[filled[instruction.bank]]["store"] = max(need["store"], needs[filled[instruction.bank]]["store"])
        needs.append(need)
        written[unit][writes] = index
        read[unit][reads] = index
    return needs
