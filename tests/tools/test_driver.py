"""The driver against a real engine in Verilator, and against a stand-in whose registers say what a test wants."""

import dataclasses

import numpy as np
import pytest

from celosia.rtl.config import PRESETS, EngineConfig
from celosia.rtl.csr import REGISTERS, WINDOWS, identity
from celosia.rtl.isa import ErrorCode, Instruction, Opcode, Unit, encode
from celosia.sim.events import EVENT
from celosia.sim.executor import Executor
from celosia.sim.transport import Transport
from celosia.tools.driver import Driver, create_transport
from celosia.tools.errors import BadInput, BadProgram, DoesNotFit, EngineError
from celosia.tools.program import Layer, Port, Program

CONFIG = PRESETS["test"]
END = Instruction(Opcode.END)
LAYER = Layer(name="conv", operator="Conv", sources=("conv",), output="y", macs=1, instructions=(0, 2))

EXECUTE = Instruction(
    Opcode.EXECUTE, tile_rows=3, tile_cols=3, kernel_y=1, kernel_x=1, blocks=2, in_height=3, in_width=3, stride_y=1, stride_x=1,
    row_step=4, block_step=12, signal_store=1,
)  # fmt: skip
STORE = Instruction(
    Opcode.STORE, tile_rows=3, tile_cols=3, blocks=1, row_step=3, col_step=1, dest=100, low=-128, high=127, wait_execute=1
)


def port(name, address, channels, row_step=3, height=3, **facts):
    facts = {"shape": (channels, height, 3), "unsigned": False, "layout": "blocked", "block_step": height * row_step} | facts
    return Port(name=name, address=address, channels=channels, height=height, width=3, row_step=row_step, **facts)


def make_program(*words, **facts):
    words = [encode(word) if isinstance(word, Instruction) else word for word in words or (EXECUTE, STORE, END)]
    rng = np.random.default_rng(7)
    base = {
        "name": "small.onnx", "digest": CONFIG.digest, "config": CONFIG.to_json(),
        "instructions": np.array([[word >> 32 * n & 0xFFFFFFFF for n in range(8)] for word in words], np.uint32),
        "weights": rng.integers(-128, 128, (2, 4, 1, 4), np.int8), "params": np.array([[9, 0x18800000] * 2] * 2, np.uint32),
        "tables": np.zeros((1, 256), np.uint8), "inputs": (port("x", 0, 6, row_step=4),), "outputs": (port("y", 100, 3),),
        "layers": (LAYER,),
    }  # fmt: skip
    return Program(**(base | facts))


class StandIn(Transport):
    """Memory that answers as an engine; ``after`` are the registers once it has been started."""

    def __init__(self, config=CONFIG, **after):
        self.words = {REGISTERS[name].offset: value for name, value in identity(config).items()}
        self.after = after
        self.bursts = []

    def write(self, address, words):
        self.bursts.append((address, len(words)))
        self.words |= {address + 4 * n: int(word) for n, word in enumerate(words)}

    def read(self, address, count):
        return np.array([self.words.get(address + 4 * n, 0) for n in range(count)], np.uint32)

    def wait(self, limit):
        self.words |= {REGISTERS[name].offset: value for name, value in self.after.items()}
        return self.after.get("STATUS", 0) & 6 != 0

    def record(self, on):
        pass

    def events(self):
        return np.zeros(0, EVENT)

    def close(self):
        pass


@pytest.fixture(scope="module")
def transport():
    with create_transport("verilator", CONFIG) as transport:
        yield transport


def pack(name, **fields):
    return REGISTERS[name].pack(**fields)


def test_a_program_gives_the_golden_integers_and_its_cycles(transport):
    driver, program = Driver(transport, CONFIG), make_program()
    driver.load(program)
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(3):
        x = rng.integers(-128, 128, (6, 3, 3), np.int8)
        outputs, stats = driver.run({"x": x})
        assert (outputs["y"] == Executor(CONFIG, program).run({"x": x})["y"]).all()
        seen.add(stats.cycles)
    assert len(seen) == 1 and 20 < stats.cycles < 200
    assert stats.instructions == 3
    assert [event[:2] for event in stats.events] == [("execute", 0), ("store", 1)]
    assert all(0 <= start < end <= stats.cycles for *_, start, end in stats.events)
    assert stats.units["store"].wait > 0


def test_only_inputs_and_outputs_move_between_inferences():
    engine = StandIn(STATUS=2)
    driver = Driver(engine, CONFIG)
    driver.load(make_program())
    engine.bursts.clear()
    driver.run({"x": np.zeros((6, 3, 3), np.int8)})
    memories = [(address, count) for address, count in engine.bursts if address >> 20]
    assert memories == [(WINDOWS["activations"].base + 4 * word, 3) for word in (0, 4, 8, 12, 16, 20)]


@pytest.mark.parametrize("facts", [
    {}, {"row_step": 5}, {"unsigned": True}, {"matrix": True, "shape": (9, 6)}, {"matrix": True, "shape": (9, 6), "unsigned": True},
    {"layout": "dense"}, {"layout": "dense", "unsigned": True},
])  # fmt: skip
def test_outputs_are_the_inputs_where_both_ports_are_the_same_place(facts):
    driver = Driver(StandIn(STATUS=2), CONFIG)
    inside, outside = port("x", 20, 6, **facts), port("y", 20, 6, **facts)
    driver.load(make_program(inputs=(inside,), outputs=(outside,)))
    values = np.arange(54).astype(np.uint8 if inside.unsigned else np.int8).reshape(inside.shape)
    outputs, _ = driver.run({"x": values})
    if facts == {"layout": "dense", "unsigned": True}:  # stored as they are, but results are int8 less 128
        values = values ^ 128
    assert outputs["y"].dtype == values.dtype and (outputs["y"] == values).all()


@pytest.mark.parametrize(
    "facts", [{}, {"unsigned": True}, {"matrix": True, "shape": (9, 6)}, {"row_step": 5}, {"layout": "dense"}]
)
def test_ports_lie_where_the_golden_executor_has_them(facts):
    engine = StandIn(STATUS=2)
    inside = port("x", 20, 6, **facts)
    program = make_program(END, inputs=(inside,), outputs=(), layers=())
    driver, golden = Driver(engine, CONFIG), Executor(CONFIG, program)
    driver.load(program)
    rng = np.random.default_rng(5)
    values = rng.integers(0, 256, inside.shape, np.uint8).view(np.uint8 if inside.unsigned else np.int8)
    driver.run({"x": values})
    golden.run({"x": values})
    words = engine.read(WINDOWS["activations"].base, 200).view(np.int8).reshape(200, 4)
    assert (words == golden.act[0, :200]).all()


def test_another_engine_is_refused():
    other = EngineConfig.from_json(CONFIG.to_json().replace('"tables": 8', '"tables": 4'))
    with pytest.raises(EngineError, match=r"must be of configuration 'test', but its register DIGEST holds 0x"):
        Driver(StandIn(other), CONFIG)
    nothing = StandIn()
    nothing.words.clear()
    with pytest.raises(EngineError, match="its register ID holds 0x00000000, not 0x4f4c4543"):
        Driver(nothing, CONFIG)


def test_a_program_for_another_engine_is_refused():
    with pytest.raises(BadProgram, match=r"small\.onnx: compiled for another engine \(digest 0x00000001, not 0x"):
        Driver(StandIn(), CONFIG).load(make_program(digest=1))


def test_what_an_engine_does_not_count_or_show_is_not_reported_as_zero():
    lean = dataclasses.replace(CONFIG, counters=0, debug=0)
    x = {"x": np.zeros((6, 3, 3), np.int8)}
    driver = Driver(StandIn(lean, STATUS=2, CYCLES=70, INSTRUCTIONS=3), lean)
    driver.load(make_program(digest=lean.digest))
    stats = driver.run(x)[1]
    assert (stats.cycles, stats.instructions, stats.units) == (70, 3, None)
    driver = Driver(StandIn(lean, STATUS=4, ERROR=pack("ERROR", code=ErrorCode.DEADLOCK.value, unit=3, index=1)), lean)
    driver.load(make_program(digest=lean.digest))
    with pytest.raises(EngineError, match=r"DEADLOCK.*; what its units wait for cannot be read \(knob debug = 0\)$"):
        driver.run(x)


def test_an_image_larger_than_its_memory_is_refused():
    with pytest.raises(DoesNotFit, match="the tables memory is 256 bytes too small: 2,304 needed, 2,048 available"):
        Driver(StandIn(), CONFIG).load(make_program(tables=np.zeros((9, 256), np.uint8)))


def test_running_without_a_program_is_refused():
    with pytest.raises(EngineError, match="no program has been loaded"):
        Driver(StandIn(), CONFIG).run({})


@pytest.mark.parametrize("inputs, sentence", [
    ({}, "input 'x' is missing"),
    ({"x": np.zeros((6, 3, 3), np.uint8)}, "input 'x' must be int8, not uint8"),
    ({"x": np.zeros((6, 9), np.int8)}, r"input 'x' must have shape \[6, 3, 3\], not \[6, 9\]"),
])  # fmt: skip
def test_a_wrong_input_is_refused(inputs, sentence):
    driver = Driver(StandIn(), CONFIG)
    driver.load(make_program())
    with pytest.raises(BadInput, match=sentence):
        driver.run(inputs)


def test_an_error_names_code_unit_instruction_and_layer_and_the_engine_goes_on(transport):
    driver = Driver(transport, CONFIG)
    x = {"x": np.zeros((6, 3, 3), np.int8)}
    driver.load(make_program(EXECUTE, STORE.replace(dest=4095), END))
    with pytest.raises(
        EngineError,
        match=r"stopped at instruction 1 \(STORE, layer 'conv'\) in the store unit: ACT_RANGE, an address lies outside",
    ):
        driver.run(x)
    driver.load(make_program(EXECUTE, 0))
    with pytest.raises(EngineError, match=r"stopped at instruction 1 \(layer 'conv'\) in the sequencer unit: ILLEGAL_OPCODE"):
        driver.run(x)
    driver.load(make_program())
    assert driver.run(x)[1].cycles > 0


def test_a_deadlock_says_which_instruction_waits_for_what(transport):
    driver = Driver(transport, CONFIG)
    driver.load(make_program(EXECUTE, STORE.replace(wait_execute=3), END))
    with pytest.raises(
        EngineError, match=r"DEADLOCK.*; instruction 1 \(STORE, layer 'conv'\) waits for tokens: 3 from execute \(has 1\)$"
    ):
        driver.run({"x": np.zeros((6, 3, 3), np.int8)})


def test_a_run_that_does_not_end_says_what_the_units_do(transport):
    driver = Driver(transport, CONFIG)
    long = EXECUTE.replace(kernel_y=60, kernel_x=60, hold=1)
    driver.load(make_program(long, STORE, END))
    x = {"x": np.zeros((6, 3, 3), np.int8)}
    with pytest.raises(
        EngineError,
        match=r"not finished after 500 cycles: the execute unit works; .*STORE.* waits for tokens: 1 from execute \(has 0\)$",
    ):
        driver.run(x, limit=500)
    driver.load(make_program())
    assert driver.run(x)[1].cycles > 0


def test_every_error_code_has_a_sentence():
    for code in ErrorCode:
        if code is not ErrorCode.NONE:
            engine = StandIn(STATUS=4, ERROR=pack("ERROR", code=code.value, unit=Unit.STORE.value, index=1))
            driver = Driver(engine, CONFIG)
            driver.load(make_program())
            with pytest.raises(
                EngineError, match=rf"instruction 1 \(STORE, layer 'conv'\) in the store unit: {code.name}, \w+ "
            ):
                driver.run({"x": np.zeros((6, 3, 3), np.int8)})


def test_an_entry_that_is_no_power_of_two_of_words_is_padded():
    config = dataclasses.replace(CONFIG, cols=1, lanes=1)
    engine = StandIn(config)
    Driver(engine, config).load(make_program(digest=config.digest, weights=np.arange(8, dtype=np.int8).reshape(2, 4, 1, 1)))
    assert engine.read(WINDOWS["weights"].base, 9).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]


def test_an_unknown_transport_is_refused():
    with pytest.raises(ValueError, match="kind must be verilator, icarus or amaranth, not 'paper'"):
        create_transport("paper", CONFIG)
