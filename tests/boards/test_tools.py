"""The chain of tools of each family, from Amaranth to the bitstream, with an echo in the engine's place."""

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from celosia.boards.catalog import find
from celosia.boards.flow import design_of, facts_of, pack, place, synthesise
from celosia.rtl.uart import Uart

HEADS = {"bit": b"\xff\x00", "bin": b"\xff\x00\x00\xff", "fs": b"1111"}


class Echo(wiring.Component):
    """Sends back what arrives; the LEDs count bytes."""

    rx: In(1)
    tx: Out(1)
    running: Out(1)
    failed: Out(1)

    def elaborate(self, platform):
        m = Module()
        m.submodules.uart = uart = Uart(divisor=20)
        count = Signal(2)
        wiring.connect(m, uart.o, uart.i)
        m.d.comb += [uart.rx.eq(self.rx), self.tx.eq(uart.tx), self.running.eq(count[0]), self.failed.eq(count[1])]
        m.d.sync += count.eq(count + (uart.o.valid & uart.o.ready))
        return m


@pytest.mark.parametrize("name", ["icebreaker", "ulx3s_12f", pytest.param("tang_nano_20k", marks=pytest.mark.slow)])
def test_every_family_comes_to_a_bitstream(name, tmp_path):
    board = find(name)
    design = design_of(board, Echo())
    (tmp_path / "top.il").write_text(design.rtlil)
    (tmp_path / f"top.{board.family.constraints}").write_text(design.constraints)
    cells = synthesise(tmp_path, board.family.synthesis("top"))
    arguments = board.family.placement(board.new_platform())
    report = place(tmp_path, board.family.placer, arguments, seed=1, clock=board.frequency, minutes=10)
    facts = facts_of(report)
    area = board.family.area(report["utilization"], cells)
    assert 40 < area["LUT4"][0] < 300 and 40 < area["FF"][0] < 300
    # The engine's clock is constrained to what the PLL gives.
    assert min(abs(clock["constraint"] - board.frequency) for clock in facts["clocks"].values()) < 0.2
    assert facts["clock"] > board.frequency
    assert pack(tmp_path, board).read_bytes().startswith(HEADS[board.family.bitstream])


@pytest.mark.parametrize("name", ["icebreaker", "ulx3s_12f"])
def test_a_memory_without_meeting_ports_takes_block_ram_only(name, tmp_path):
    m = Module()
    m.submodules.words = words = memory.Memory(shape=16, depth=512, init=[], attrs={"no_rw_check": 1})
    read, write = words.read_port(), words.write_port()
    ports = [read.addr, read.data, write.addr, write.data, write.en]
    (tmp_path / "top.il").write_text(rtlil.convert(m, name="top", ports=ports, emit_src=False))
    cells = synthesise(tmp_path, find(name).family.synthesis("top"))
    assert set(cells) <= {"SB_RAM40_4K", "DP16KD"}, cells
