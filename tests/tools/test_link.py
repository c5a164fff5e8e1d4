"""The transport over a wire that is a model of the bridge, and as bad as a test wants."""

import errno
import random

import numpy as np
import pytest

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import REGISTERS, identity
from celosia.rtl.link import MAX_WORDS, PAGE_WORDS, WRITE, Deframer, crc, frame
from celosia.sim.transport import TransportError
from celosia.tools import link, wires
from celosia.tools.errors import BadConfig
from celosia.tools.link import LinkError, LinkTransport, open_link
from celosia.tools.places import Place, check_backend, is_place, parse
from celosia.tools.wires import Wire, WireError

CONFIG = PRESETS["test"]
REFUSED = 0x700000


class ModelWire(Wire):
    """A bridge with memory behind it: the protocol's rules in a few lines. ``lose`` says of each frame whether it gets lost."""

    name, byte_time, hint = "uart:model", 0.0, "is all well"

    def __init__(self, lose=lambda what, number: False, words=None):
        self.lose = lose
        self.words = {REGISTERS[name].offset: value for name, value in identity(CONFIG).items()} if words is None else words
        self.deframer = Deframer()
        self.out = b""
        self.writes = []
        self.frames = 0
        self.last = None, b""
        self.open = True
        self.outstanding = 0

    def send(self, data):
        for body in self.deframer.feed(data):
            self.frames += 1
            if not self.lose("request", self.frames):
                reply = self.execute(body)
                self.out += b"" if self.lose("reply", self.frames) else frame(reply)

    def execute(self, body):
        control, address = body[0], 4 * int.from_bytes(body[1:4], "little")
        if control & WRITE:
            if self.last[0] == control:
                return self.last[1]
            data = np.frombuffer(body[4:], "<u4")
            done = 0
            assert address // 4 % PAGE_WORDS + len(data) <= PAGE_WORDS
            for n, word in enumerate(data):
                if address + 4 * n >= REFUSED:
                    break
                self.words[address + 4 * n] = int(word)
                self.writes.append(address + 4 * n)
                done += 1
            if done < len(data):
                return bytes([control & ~WRITE])
            self.last = control, bytes([control])
            return self.last[1]
        self.last = None, b""
        addresses = [address + 4 * n for n in range(body[4]) if address + 4 * n < REFUSED]
        return bytes([control]) + np.array([self.words.get(place, 0) for place in addresses], "<u4").tobytes()

    def receive(self, timeout):
        data, self.out = self.out, b""
        return data

    def close(self):
        self.open = False


def transport(wire):
    return LinkTransport(wire, patience=0.001)


def test_bursts_of_any_length_come_back():
    wire = ModelWire()
    with transport(wire) as engine:
        for count in (1, MAX_WORDS, MAX_WORDS + 1, 1000):
            data = np.random.default_rng(count).integers(0, 1 << 32, count, dtype=np.uint32)
            engine.write(0x200004, data)
            assert (engine.read(0x200004, count) == data).all()
        assert engine.repeated == 0 and len(engine.read(0, 0)) == 0
    assert not wire.open


@pytest.mark.parametrize("what", ["request", "reply", "both"])
def test_what_is_lost_is_sent_again(what):
    rng = random.Random(3)
    wire = ModelWire(
        lambda kind, number: (
            kind in (what, "request", "reply")[: 1 + 2 * (what == "both")] and rng.random() < (0.15 if what == "both" else 0.3)
        )
    )
    data = np.arange(5000, dtype=np.uint32)
    engine = transport(wire)
    engine.write(0x200000, data)
    assert (engine.read(0x200000, len(data)) == data).all()
    assert engine.repeated > 30


def test_a_doorbell_rings_once_however_often_its_reply_is_lost():
    lost = set()

    def lose(kind, number):
        return kind == "reply" and number in lost

    wire = ModelWire(lose)
    engine = transport(wire)
    for _ in range(3):
        lost |= {wire.frames + n for n in (1, 2, 3)}
        engine.write32(REGISTERS["CONTROL"].offset, 1)
    assert wire.writes == [REGISTERS["CONTROL"].offset] * 3


def test_a_lost_request_is_noticed_by_the_next_reply_without_waiting():
    wire = ModelWire(lambda kind, number: kind == "request" and number == 4)
    engine = LinkTransport(wire, patience=1e6)
    engine.write(0x200000, np.arange(1000, dtype=np.uint32))
    assert engine.repeated == 1 and wire.words[0x200000 + 4 * 200] == 200


def test_a_refused_access_names_its_address():
    with transport(ModelWire()) as engine:
        with pytest.raises(TransportError, match="refused to write address 0x700000"):
            engine.write(REFUSED - 400, np.zeros(1000, np.uint32))
        with pytest.raises(TransportError, match="refused to read address 0x700000"):
            engine.read(REFUSED - 4, 2)
        assert engine.read32(REGISTERS["ID"].offset) == identity(CONFIG)["ID"]


def test_nobody_noise_and_silence_after_a_while_are_told_apart():
    wire = ModelWire(lambda kind, number: True)
    with pytest.raises(LinkError, match=r"uart:model: nobody answers; is the board connected .*, and is all well"):
        transport(wire)
    assert not wire.open
    wire.receive = lambda timeout: b"OK\r\n"
    with pytest.raises(
        LinkError, match="uart:model: what comes back is no reply of an engine; is this its port, and is all well"
    ):
        transport(wire)
    wire = ModelWire(lambda kind, number: number > 5)
    engine = transport(wire)
    with pytest.raises(LinkError, match="uart:model: the engine no longer answers: 6 times"):
        engine.write(0x200000, np.zeros(5000, np.uint32))


def test_a_line_over_which_only_short_requests_get_is_given_up(monkeypatch):
    monkeypatch.setattr(link, "REQUEST_TRIES", 10)
    engine = transport(wire := ModelWire())
    wire.lose = lambda kind, number: kind == "request" and number > 8 and number % 2 == 0
    execute = wire.execute
    wire.execute = lambda body: execute(body) if body[4] != 7 else b""
    with pytest.raises(LinkError, match=r"the line is too bad|no longer answers"):
        engine.write(0x200000, np.full(2000, 7, np.uint32))


def test_replies_that_do_not_belong_to_a_request_are_ignored():
    wire = ModelWire()
    engine = transport(wire)
    for rest in (b"", b"\x01", b"\x00\x01", b"x" * 40, bytes(8)):
        mine = (engine._sequence + 1) % 128
        wire.out += b"".join(frame(bytes([control]) + rest) for control in range(256) if control != mine)
        wire.out += frame(bytes([mine]) + b"123456") + frame(bytes([mine]) + bytes(8))  # no words, and too many
        assert engine.read32(REGISTERS["ID"].offset) == identity(CONFIG)["ID"]


def test_waiting_polls_until_the_interrupt_or_the_limit():
    wire = ModelWire()
    engine = transport(wire)
    offsets = {name: REGISTERS[name].offset for name in ("STATUS", "IRQ_ENABLE", "IRQ_STATUS", "CYCLES")}
    execute = wire.execute

    def clocked(body):
        wire.words[offsets["CYCLES"]] += 40
        if wire.words[offsets["CYCLES"]] >= wire.end:
            wire.words |= {offsets["STATUS"]: 2, offsets["IRQ_STATUS"]: 1}
        return execute(body)

    wire.execute = clocked
    for end, limit, interrupt in ((400, 1000, True), (4000, 1000, False)):
        wire.words |= {offsets["STATUS"]: 1, offsets["IRQ_ENABLE"]: 3, offsets["IRQ_STATUS"]: 0, offsets["CYCLES"]: 0}
        wire.end = end
        assert engine.wait(limit) is interrupt
    wire.words |= {offsets["STATUS"]: 0, offsets["IRQ_STATUS"]: 0, offsets["CYCLES"]: 0}
    wire.end = 10_000
    assert engine.wait(5000) is False  # nothing runs: there is nothing to wait for


# Which engine, which port ---------------------------------------------------------------------------------------------


def changed(**registers):
    words = {REGISTERS[name].offset: value for name, value in identity(CONFIG).items()}
    return words | {REGISTERS[name].offset: value for name, value in registers.items()}


@pytest.mark.parametrize("words, sentence", [
    (changed(ID=0), "uart:x: something answers, but it is no Celosia engine: its register ID holds 0x00000000"),
    (changed(VERSION=1), "uart:x: the engine has instruction set version 1, not .*: build and load its bitstream again"),
    (changed(DIGEST=PRESETS["mac64"].digest), "uart:x: the board has engine 'mac64', not 'test': give --engine mac64"),
    (changed(DIGEST=1), "uart:x: the board has an engine of digest 0x00000001, not 'test': give --engine the configuration"),
])  # fmt: skip
def test_another_engine_is_named(words, sentence, monkeypatch):
    wire = ModelWire(words=words)
    wire.name = "uart:x"
    monkeypatch.setattr(link, "open_wire", lambda place: wire)
    with pytest.raises(LinkError, match=sentence):
        open_link("uart:x", CONFIG)
    assert not wire.open


@pytest.mark.parametrize("text, place", [
    ("uart:/dev/ttyUSB0", Place("uart", "/dev/ttyUSB0", 1_000_000)),
    ("uart:COM4:115200", Place("uart", "COM4", 115_200)),
    ("uart:/dev/serial/by-path/pci-0:1.0-port0:9600", Place("uart", "/dev/serial/by-path/pci-0:1.0-port0", 9600)),
    ("usb:0403:6010", Place("usb", "0403:6010", 1_000_000)),
    ("usb:0403:6010:3000000", Place("usb", "0403:6010", 3_000_000)),
    ("spi:ftdi://ftdi:2232h/1", Place("spi", "ftdi://ftdi:2232h/1", 1_000_000)),
    ("spi:ftdi://ftdi:2232h/1:6000000", Place("spi", "ftdi://ftdi:2232h/1", 6_000_000)),
])  # fmt: skip
def test_places_are_parsed(text, place):
    assert parse(text) == place and is_place(text) and check_backend(text) == text


@pytest.mark.parametrize("text, sentence", [
    ("uart", "'uart' names no port: it must be uart:PORT.:BAUD., for example uart:/dev/ttyUSB0"),
    ("uart:", "'uart:' names no port"),
    ("uart:/dev/ttyUSB0:0", "the rate of 'uart:/dev/ttyUSB0:0' must be a positive number of bits per second"),
    ("uart:/dev/ttyUSB0:", "the rate of 'uart:/dev/ttyUSB0:' must be"),
    ("usb:ulx3s", "'usb:ulx3s' must hold vendor and product of the USB device"),
    ("spi:1", "'spi:1' must hold a URL as pyftdi has them"),
    ("ttyUSB0", "on must be one of verilator, icarus, amaranth, golden, not 'ttyUSB0'; a board is given as uart:PORT"),
])  # fmt: skip
def test_wrong_forms_are_explained(text, sentence):
    with pytest.raises(BadConfig, match=sentence):
        check_backend(text)


class Port:
    def __init__(self, device, serial_number, location, vid=0x0403):
        self.device, self.serial_number, self.location, self.vid, self.pid = device, serial_number, location, vid, 0x6010


@pytest.mark.parametrize("ports, found", [
    ([Port("/dev/ttyUSB0", "A", "1-1:1.0"), Port("/dev/ttyUSB1", "A", "1-1:1.1"), Port("/dev/ttyS0", None, None, None)], "/dev/ttyUSB1"),
    ([Port("/dev/ttyUSB0", "A", "1-1:1.0"), Port("/dev/ttyUSB1", "B", "1-2:1.0")], "several such USB devices are there: /dev/ttyUSB0, /dev/ttyUSB1"),
    ([Port("/dev/ttyS0", None, None, None)], "no serial port belongs to a USB device 0403:6010; ports found: /dev/ttyS0"),
    ([], "no serial port was found at all"),
])  # fmt: skip
def test_the_serial_port_of_a_usb_device_is_found(ports, found, monkeypatch):
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: ports)
    if found.startswith("/dev"):
        assert wires._usb_port("0403:6010") == found
    else:
        with pytest.raises(WireError, match=found):
            wires._usb_port("0403:6010")


@pytest.mark.parametrize("error, sentence", [
    (OSError(errno.EACCES, "Permission denied"), "you may not use this port; become a member of its group"),
    (OSError(errno.EBUSY, "Device or resource busy"), "another program uses this port; end it"),
    (ValueError("Invalid baud rate: 7"), "the port cannot be set to 7 baud: Invalid baud rate: 7"),
    (OSError(errno.EIO, "Input/output error"), "the port cannot be opened: .*Input/output error"),
])  # fmt: skip
def test_a_port_that_cannot_be_opened_is_explained(error, sentence, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("serial.Serial", fail)
    with pytest.raises(LinkError, match=f"^uart:/dev/ttyX:7: {sentence}"):
        open_link("uart:/dev/ttyX:7", CONFIG)


def test_a_port_that_is_not_there_is_explained():
    with pytest.raises(LinkError, match=r"^uart:/dev/no-such-port: there is no such port; (ports found: |no serial port)"):
        open_link("uart:/dev/no-such-port", CONFIG)


def test_crc_is_part_of_every_reply():
    wire = ModelWire()
    engine = transport(wire)
    send = wire.send

    def damaged(data):
        send(data)
        if wire.frames % 3 == 1:
            wire.out = wire.out.replace(b"CELO", b"CELL")

    wire.send = damaged
    assert crc(b"CELO") != crc(b"CELL")
    for _ in range(5):
        assert engine.read32(REGISTERS["ID"].offset) == identity(CONFIG)["ID"]
    assert engine.repeated >= 1
