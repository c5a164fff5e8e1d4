"""The protocol's software: frames as bytes, written down by hand and over noise."""

import numpy as np
import pytest

from celosia.rtl.link import CRC, ESCAPE, FLAG, MAX_WORDS, Deframer, crc, frame, read_request, write_request


def test_frames_are_these_bytes():
    assert frame(read_request(1, 0x2000FC, 2)).hex(" ") == "7e 01 3f 00 08 02 15 4e 7e"
    assert frame(write_request(5, 0, np.array([0x04037D7E], np.uint32))).hex(" ") == "7e 85 00 00 00 7d 5e 7d 5d 03 04 14 5f 7e"


def test_the_fast_crc_is_that_of_the_hardware():
    rng = np.random.default_rng(1)
    for size in (0, 1, 2, 7, 250):
        data = bytes(rng.integers(0, 256, size, dtype=np.uint8))
        assert crc(data) == CRC.compute(data)
    assert crc(b"123456789") == 0xD64E  # the catalogue's check value


def test_frames_are_found_in_pieces_and_between_flags():
    bodies = [bytes([FLAG, ESCAPE, n]) * n for n in range(1, 9)]
    line = b"\x7e\x7e" + b"".join(map(frame, bodies)) + b"\x7e"
    for size in (1, 2, 3, 1000):
        deframer = Deframer()
        found = [body for n in range(0, len(line), size) for body in deframer.feed(line[n : n + size])]
        assert found == bodies and deframer.broken == 0


def test_broken_frames_are_counted_and_cost_no_other():
    good = frame(b"good")
    deframer = Deframer()
    assert deframer.feed(good[:3] + good + good[:4] + b"x" + good[5:] + b"\x7e\x7d\x7e" + b"\x7e\x01\x7e" + good) == [
        b"good",
        b"good",
    ]
    assert deframer.broken == 4
    assert deframer.feed(b"noise" * 100 + good + good) == [b"good", b"good"]


@pytest.mark.parametrize("sequence, address, count, sentence", [
    (128, 0, 1, "sequence must be below 128, not 128"), (0, 2, 1, "a word of the host's address space, not 0x2"),
    (0, (1 << 23) - 4, 2, "address must be"), (0, 0x3FC, 2, "within 256 words, not go from word 0xff over 2"), (0, 0, 0, "1 to 62 words, not 0"), (0, 0, MAX_WORDS + 1, "not 63"),
])  # fmt: skip
def test_what_no_frame_can_hold_is_refused(sequence, address, count, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_request(sequence, address, count)
