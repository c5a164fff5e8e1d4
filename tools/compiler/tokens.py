"""Pass 'tokens': find every pair of steps in different units that touch the same words, weight tiles or parameters, and order it with tokens.

The instructions' addresses are known here, so dependencies are exact: an EXECUTE waits for precisely the STOREs that wrote the words it
reads and the FILLs of its weights, a STORE for the last readers of the words it overwrites, and both for each other's use of an accumulator bank. Each pair
of units has one counter and each unit completes in order, so a step needs at most one token per other unit: that
of the last step it depends on. Only the steps somebody waits for signal, and each wait takes one token: counters are zero at the end.
"""

import functools

import numpy as np

from celosia.rtl.isa import Combine, Memory, Opcode, encode
from celosia.sim.footprint import (
    execute_reads,
    fill_words,
    store_words,
    transfer_entries,
    unfold_bytes,
    unfold_words,
    weight_tiles,
)

__all__ = ["UNITS", "add_tokens", "touched_words"]

UNITS = {
    Opcode.UNFOLD: "load", Opcode.FILL: "load", Opcode.EXECUTE: "execute", Opcode.STORE: "store", Opcode.TRANSFER: "transfer",
}  # fmt: skip


def touched_words(instruction, config):
    """Return ``(reads, writes)``: what an instruction touches, as sorted arrays: activation words, weight tiles counted on from
    ``act_depth``, and parameter entries behind those."""
    return _touched(encode(instruction) >> 32 << 32 | instruction.opcode.value, instruction, config)


class _ByWord:
    """Calls a function once for each first argument."""

    def __init__(self, function):
        self.function, self.known = function, {}
        functools.update_wrapper(self, function)

    def __call__(self, word, instruction, config):
        key = word, config
        if key not in self.known:
            if len(self.known) > 4096:
                self.known.clear()
            self.known[key] = self.function(word, instruction, config)
        return self.known[key]


@_ByWord
def _touched(word, instruction, config):
    i, nothing = instruction, np.zeros(0, np.int64)
    tiles, params = config.act_depth, config.act_depth + config.weight_tiles
    if i.opcode == Opcode.EXECUTE:
        address, inside = execute_reads(i, config)
        return np.concatenate([np.unique(address[inside]), tiles + weight_tiles(i)]), nothing
    if i.opcode == Opcode.STORE:
        dest, operand = store_words(i)
        reads = [] if operand is None else [np.unique(operand)]
        reads.append(params + i.params + np.arange(config.beats * (i.blocks if i.advance else 1)))
        if i.combine == Combine.ADD:
            reads.append(params + i.combine_params + np.arange(max(1, 2 // config.lanes)))
        return np.unique(np.concatenate(reads)), np.unique(dest)
    if i.opcode == Opcode.UNFOLD:
        address, exists = unfold_bytes(i)
        return np.unique(address[exists] // config.rows), np.unique(unfold_words(i))
    if i.opcode == Opcode.FILL:
        return np.unique(fill_words(i, config)), tiles + weight_tiles(i)
    if i.opcode == Opcode.TRANSFER:
        local = np.unique(transfer_entries(i, config)[1])
        if i.memory == Memory.WEIGHTS:
            local = tiles + np.unique(local // config.load_cycles)
        elif i.memory == Memory.PARAMS:
            local = params + local
        return (local, nothing) if i.write else (nothing, local)
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
    size = config.act_depth + config.weight_tiles + config.param_depth
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
