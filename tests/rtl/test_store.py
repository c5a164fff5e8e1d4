"""Store unit: random instructions leave the activation memory as the golden executor does, whatever stalls."""

import gc
import itertools

import numpy as np
import pytest
from amaranth.hdl import Value
from amaranth.sim import Simulator

from celosia.rtl.isa import Combine, ErrorCode, encode
from celosia.rtl.serial_store import SerialStore
from celosia.rtl.store import Store
from celosia.sim.benches.store_cases import CONFIGS, SERIAL, StoreCase, small_config
from celosia.sim.executor import GoldenError

SEED = 6


class Machine:
    """A store unit with models of the memories around it.

    ``idle`` and ``busy_read`` are the probabilities that no instruction is offered and that the operand's read is not accepted; of the serial
    form, ``late`` and ``busy_write`` those that a parameter's read waits and that the write is not accepted. Data ports carry noise whenever they are not specified.
    """

    def __init__(self, case, *, idle=0.0, busy_read=0.0, late=0.0, busy_write=0.0, seed=SEED):
        self.case, self.config = case, case.config
        self.rng = np.random.default_rng(seed)
        self.serial = case.config.lane_cycles > 1
        self.chances = idle, busy_read, late, busy_write
        self.dut = SerialStore(case.config) if self.serial else Store(case.config)
        self.act = case.act.copy()
        self.params = case.params
        self.done, self.errors, self.writes, self.busy_cycles = [], [], [], 0

    def run(self, words=None, *, limit=5000):
        """Run the instructions until the unit is idle (or the limit, or 60 cycles after an error); return the cycles taken."""
        self.words = self.case.encoded if words is None else words
        self.limit = limit
        sim = Simulator(self.dut)
        sim.add_clock(1e-8)
        sim.add_testbench(self._bench)
        sim.run()
        return self.cycles

    def _noise(self, width):
        return int.from_bytes(self.rng.bytes(-(-width // 8)), "little") & (1 << width) - 1

    async def _bench(self, ctx):
        dut, config, case = self.dut, self.config, self.case
        word_bits, acc_bits, param_bits = 8 * config.rows, 32 * config.cols, 32 if self.serial else 64 * config.lanes
        accs, operands, params, tables = [None, None], [None, None], [None], [[0] * config.lanes] * 2
        sent = 0
        offering = even = False
        ends = limit = self.limit
        for self.cycles in range(limit):
            skips = self.rng.random(4) < self.chances
            # An offer stays until it is taken; ready may come and go.
            offering = (offering or not skips[0]) and sent < len(self.words)
            ctx.set(dut.unit.i.valid, offering)
            ctx.set(dut.unit.i.payload.instruction, self.words[sent] if offering else self._noise(256))
            ctx.set(dut.unit.i.payload.index, sent if offering else self._noise(16))
            ctx.set(dut.operand.ready, not skips[1])
            ctx.set(dut.write.ready, not skips[3])
            if self.serial:
                ctx.set(dut.params.ready, even or not skips[2])
            for port, age, bits in ((dut.acc, accs, acc_bits), (dut.operand, operands, word_bits), (dut.params, params, param_bits)):
                value = age.pop(0)
                ctx.set(Value.cast(port.data), self._noise(bits) if value is None else value)
            ctx.set(dut.tables.data.as_value(), int.from_bytes(bytes(tables.pop(0)), "little"))

            accs.append(None)
            if ctx.get(dut.acc.en) and ctx.get(dut.acc.addr) < config.acc_depth:
                entry = case.acc[ctx.get(dut.acc.bank), ctx.get(dut.acc.addr)]
                accs[-1] = int.from_bytes(entry.tobytes(), "little")
            operands.append(None)
            if ctx.get(dut.operand.valid) and not skips[1] and ctx.get(dut.operand.addr) < config.act_depth:
                operands[-1] = int.from_bytes(self.act[ctx.get(dut.operand.addr)].tobytes(), "little")
            address = ctx.get(dut.params.addr)
            if self.serial:
                served = ctx.get(dut.params.valid) and (even or not skips[2])
                even = served and address % 2 == 0
                exists = served and address // 2 < config.param_depth
                params.append(self.params[address // 2] >> 32 * (address % 2) & 0xFFFFFFFF if exists else None)
            else:
                params.append(self.params[address] if address < config.param_depth else None)
            lookups = [ctx.get(dut.tables.addr[lane]) for lane in range(config.lanes)]
            tables.append([case.tables.flat[a] if a < case.tables.size else 0 for a in lookups])

            if ctx.get(dut.unit.done.valid):
                self.done.append((self.cycles, ctx.get(dut.unit.done.signal.as_value())))
            if ctx.get(dut.unit.error.valid):
                self.errors.append((ErrorCode(ctx.get(dut.unit.error.code)), ctx.get(dut.unit.error.index)))
                ends = min(ends, self.cycles + 60)
            if ctx.get(dut.write.valid) and not skips[3]:
                payload = dut.write.payload
                mask = ctx.get(payload.mask)
                data = ctx.get(payload.data.as_value()).to_bytes(config.rows, "little")
                address = ctx.get(payload.addr)
                self.writes.append((self.cycles, address))
                for byte in range(config.rows):
                    if mask >> byte & 1:
                        self.act[address, byte] = np.int8(np.uint8(data[byte]))
            if (sent == len(self.words) and ctx.get(dut.unit.idle)) or self.cycles >= ends:
                return
            if offering and ctx.get(dut.unit.i.ready):
                sent, offering = sent + 1, False
            await ctx.tick()
        raise AssertionError(f"not idle after {limit} cycles, {sent} of {len(self.words)} instructions taken")


def signals(instruction):
    return instruction.signal_load | instruction.signal_execute << 1 | instruction.signal_store << 2


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("idle, busy_read", list(itertools.product([0.0, 0.8], [0.0, 0.6])))
def test_random_instructions_leave_the_memory_as_golden_does(config, idle, busy_read):
    seed = SEED + int(10 * idle + 100 * busy_read)
    case = StoreCase(config, np.random.default_rng(seed), count=16)
    machine = Machine(case, idle=idle, busy_read=busy_read, seed=seed)
    machine.run()
    assert machine.errors == []
    wrong = np.argwhere(machine.act != case.expected)
    assert not len(wrong), f"seed {seed}: {len(wrong)} bytes differ, first (word, byte) {wrong[0]}"
    assert [done for _, done in machine.done] == [signals(instruction) for instruction in case.instructions]
    assert len(machine.writes) == sum(i.blocks * i.tile_rows * i.tile_cols for i in case.instructions)


@pytest.mark.parametrize("config", SERIAL.values(), ids=SERIAL)
@pytest.mark.parametrize("idle, late, busy_write", [(0.0, 0.0, 0.0), (0.8, 0.4, 0.8)])
def test_the_serial_form_leaves_the_memory_as_golden_does(config, idle, late, busy_write):
    seed = SEED + int(10 * idle + 100 * late + 1000 * busy_write)
    case = StoreCase(config, np.random.default_rng(seed), count=3)
    machine = Machine(case, idle=idle, late=late, busy_write=busy_write, seed=seed)
    machine.run(limit=50_000)
    assert machine.errors == []
    wrong = np.argwhere(machine.act != case.expected)
    assert not len(wrong), f"seed {seed}: {len(wrong)} bytes differ, first (word, byte) {wrong[0]}"
    assert [done for _, done in machine.done] == [signals(instruction) for instruction in case.instructions]
    assert len(machine.writes) == sum(i.blocks * i.tile_rows * i.tile_cols for i in case.instructions)


@pytest.mark.parametrize("name", ["store4x4l1", "store4x4l4"])
@pytest.mark.parametrize("combine", [Combine.NONE, None])
def test_constants_leave_no_trace_in_a_later_instruction(name, combine):
    case = StoreCase(CONFIGS[name], np.random.default_rng(SEED))
    kinds = [case.random_instruction() for _ in range(4)]
    fields = ("zero_point", "low", "high", "use_table", "table", "raw")
    for kind in case.rng.integers(0, 4, 50):  # now and then the same ones again
        same = {field: getattr(kinds[kind], field) for field in fields} | ({} if combine is None else {"combine": combine})
        case.instructions.append(case.random_instruction(**same))
    golden = case.machine()
    for number, instruction in enumerate(case.instructions):
        golden.run_store(number, instruction)
    machine = Machine(case)
    machine.run()
    assert np.array_equal(machine.act, golden.act[0])


def test_done_follows_the_last_write():
    case = StoreCase(CONFIGS["store4x4l2"], np.random.default_rng(SEED), count=8)
    machine = Machine(case)
    machine.run()
    pixels = np.cumsum([i.blocks * i.tile_rows * i.tile_cols for i in case.instructions])
    assert [cycle for cycle, _ in machine.done] == [machine.writes[count - 1][0] + 1 for count in pixels]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_pixels_follow_each_other_without_a_bubble(config):
    case = StoreCase(config, np.random.default_rng(SEED))
    tile = case.random_instruction(tile_rows=5, tile_cols=6, blocks=1, acc=3, dest=5, row_step=6, col_step=1, combine=0)
    machine = Machine(case)
    machine.run([encode(tile)] * 3)
    cycles = [cycle for cycle, _ in machine.writes]
    tile_gaps = [config.beats] * 29
    assert np.diff(cycles).tolist() == [*tile_gaps, max(config.beats, 2), *tile_gaps, max(config.beats, 2), *tile_gaps]
    assert cycles[0] == 1 + config.beats - 1 + machine.dut.latency  # taken, the pixel's other beats


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_single_pixel_instructions_follow_each_other_closely(config):
    case = StoreCase(config, np.random.default_rng(SEED))
    pixel = case.random_instruction(tile_rows=1, tile_cols=1, blocks=1, combine=0)
    machine = Machine(case)
    machine.run([encode(pixel)] * 60)
    gaps = np.diff([cycle for cycle, _ in machine.done])
    assert gaps[20:].mean() < max(config.beats, 2) + 0.25


def test_an_operand_is_the_result_of_its_predecessor():
    case = StoreCase(CONFIGS["store4x4l4"], np.random.default_rng(SEED))
    one = {"tile_rows": 1, "tile_cols": 1, "blocks": 1, "low": -128, "high": 127, "use_table": 0}
    case.instructions = [case.random_instruction(dest=9, combine=0, **one)]
    case.instructions += [case.random_instruction(dest=9 + n, operand=8 + n, combine=(n % 4) + 1, **one) for n in range(1, 9)]
    golden = case.machine()
    for number, instruction in enumerate(case.instructions):
        golden.run_store(number, instruction)
    machine = Machine(case)
    machine.run()
    assert np.array_equal(machine.act, golden.act[0])


@pytest.mark.parametrize("fields, code", [
    ({"slot": 1}, ErrorCode.ILLEGAL_FIELD),
    ({"table": 2, "use_table": 1}, ErrorCode.ILLEGAL_FIELD),
    ({"acc": 55, "tile_cols": 6, "tile_rows": 1, "blocks": 1}, ErrorCode.ACC_RANGE),
    ({"params": 99}, ErrorCode.PARAM_RANGE),
    ({"params": 96, "advance": 1, "blocks": 3}, ErrorCode.PARAM_RANGE),
    ({"combine": Combine.ADD, "combine_params": 100}, ErrorCode.PARAM_RANGE),
    ({"dest": 250}, ErrorCode.ACT_RANGE),
    ({"dest": 245, "tile_cols": 6, "col_step": 1}, ErrorCode.ACT_RANGE),
    ({"combine": Combine.MIN, "operand": 65535}, ErrorCode.ACT_RANGE),
    ({"combine": Combine.MUL, "operand": 249, "operand_row_step": 1, "tile_rows": 2, "row_step": 0}, ErrorCode.ACT_RANGE),
    ({"combine": 5}, ErrorCode.ILLEGAL_FIELD),
    ({"raw": 5}, ErrorCode.ILLEGAL_FIELD),
])  # fmt: skip
@pytest.mark.parametrize("serial", [False, True])
def test_access_out_of_range_stops_the_unit(fields, code, serial):
    knobs = {"lanes": 1, "combine": 0, "lane_cycles": 4, "param_depth": 102} if serial else {"lanes": 2}
    if serial and fields.get("combine") in (Combine.MIN, Combine.MUL, Combine.ADD):
        code = ErrorCode.ILLEGAL_FIELD
    config = small_config(rows=4, cols=4, **knobs)
    case = StoreCase(config, np.random.default_rng(SEED))
    small = {"tile_rows": 1, "tile_cols": 1, "blocks": 1, "slot": 0, "combine": 0, "use_table": 0}
    good = case.random_instruction(**small | {"dest": 3})
    bad = case.random_instruction(**small | {"dest": 5, "operand": 0} | fields)
    golden = case.machine()
    with pytest.raises(GoldenError) as caught:
        golden.run_store(1, bad)
    assert caught.value.code is code
    machine = Machine(case)
    machine.run([encode(good), encode(bad), encode(good)])
    assert machine.errors == [(code, 1)]
    assert len(machine.done) == 1
    assert all(address < config.act_depth for _, address in machine.writes)


@pytest.mark.parametrize("fields", [
    {"acc": 54, "tile_cols": 6}, {"params": 94, "advance": 1, "blocks": 3}, {"combine": Combine.ADD, "combine_params": 99},
    {"dest": 244, "tile_cols": 6, "col_step": 1}, {"table": 2, "use_table": 0}, {"operand": 65535, "combine_params": 16383},
    {"combine": Combine.MAX, "operand": 249, "combine_params": 16383, "operand_row_step": 9, "operand_block_step": 9},
])  # fmt: skip
def test_last_place_in_range_is_accepted(fields):
    case = StoreCase(small_config(rows=4, cols=4, lanes=2), np.random.default_rng(SEED))
    small = {"tile_rows": 1, "tile_cols": 1, "blocks": 1, "slot": 0, "combine": 0, "use_table": 0, "dest": 3, "operand": 0}
    case.instructions = [case.random_instruction(**small | fields)]
    golden = case.machine()
    golden.run_store(0, case.instructions[0])
    machine = Machine(case)
    machine.run()
    assert machine.errors == []
    assert np.array_equal(machine.act, golden.act[0])


@pytest.mark.parametrize("fields", [
    {"acc": 58, "tile_cols": 2}, {"params": 92, "advance": 1, "blocks": 2}, {"dest": 248, "tile_cols": 2, "col_step": 1},
])  # fmt: skip
def test_last_place_in_range_is_accepted_by_the_serial_form(fields):
    case = StoreCase(SERIAL["serial4x4l1"], np.random.default_rng(SEED))
    small = {"tile_rows": 1, "tile_cols": 1, "blocks": 1, "slot": 0, "use_table": 0, "dest": 3}
    case.instructions = [case.random_instruction(**small | fields)]
    golden = case.machine()
    golden.run_store(0, case.instructions[0])
    machine = Machine(case)
    machine.run()
    assert machine.errors == []
    assert np.array_equal(machine.act, golden.act[0])


@pytest.mark.filterwarnings("ignore::amaranth.hdl.UnusedElaboratable")
def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match=r"multiplier must be one of portable, ecp5, .*, not 'booth'"):
        Store(CONFIGS["store4x4l1"], multiplier="booth")
    with pytest.raises(TypeError, match="config must be an EngineConfig, not 'mac64'"):
        Store("mac64")
    with pytest.raises(ValueError, match=r"config\.lane_cycles must be 4, not 1"):
        SerialStore(CONFIGS["store4x4l1"])
    gc.collect()  # of the refused component, while its warning is ignored
