"""The link between a host and an engine: a byte stream in each direction, in frames that are either whole or ignored.

The framing is that of RFC 1662 (PPP in HDLC-like framing). A frame lies between two flag bytes; inside, the bytes of flag and escape are sent
as the escape byte and themselves with bit 5 flipped. So a flag is never data: after whatever noise, the next one starts a frame, without any
clock or timeout in the engine. The last two bytes are the CRC of all before, most significant byte first.

The host sends requests and the engine answers each with one reply. Numbers have their least significant byte first; addresses count 32-bit words of
the host's address space.

============  ==================================================================================
frame         bytes, between the flags and before escaping
============  ==================================================================================
read request  control, address (3), number of words (1), CRC (2)
write request control, address (3), words (4 each), CRC (2)
read reply    control, words (4 each), CRC (2)
write reply   control, CRC (2)
============  ==================================================================================

Control holds the sequence number in bits 6:0, chosen by the host and repeated in the reply. Bit 7 is 1 in a write request, and in its reply if all
words were written. An access that the engine refuses (an address of nothing, or a memory while a program runs) ends the request: bit 7 of a write
reply is then 0, and a read reply has fewer words than were asked for. A request does not cross an address that is a multiple of 256 words: behind
the last word before it comes the first of the same 256.

1. A request whose CRC or length is wrong is ignored: nothing of it is done, and there is no reply. The host sends it again.
2. A write whose control byte is that of the request executed last, and which was not refused, is a repetition: it is not executed, and its reply
   is sent again. So a doorbell rings once, however often its request or its reply is lost. Any other request is executed whenever it comes.
3. Several requests may be on their way: the engine holds one while it executes another. Any number of writes, as each is executed and answered in
   less time than its bytes take on the line; two reads, as their replies are the longer part; and a write that must not be repeated goes alone.
4. A host begins with a flag, which ends what another may have left, and with a read, so that no write of its own is taken for a repetition.
"""

import binascii

from amaranth.lib.crc import catalog

from celosia.rtl.csr import ADDRESS_BITS

__all__ = [
    "BAUD",
    "CRC",
    "ESCAPE",
    "FLAG",
    "FLIP",
    "HEADER_BYTES",
    "MAX_WORDS",
    "PAGE_WORDS",
    "SEQUENCE_BITS",
    "WRITE",
    "Deframer",
    "crc",
    "frame",
    "read_request",
    "write_request",
]

FLAG = 0x7E
"""Byte between frames; sent where there is nothing to send, on a link that must send something."""

ESCAPE = 0x7D
"""Byte before a byte that has bit 5 flipped."""

FLIP = 0x20
"""What an escaped byte is combined with, by exclusive or."""

BAUD = 1_000_000
"""Bits per second on the serial line of a board, unless it says otherwise."""

SEQUENCE_BITS = 7
"""Width of the sequence number."""

WRITE = 1 << SEQUENCE_BITS
"""Bit of the control byte that makes a request a write."""

HEADER_BYTES = 4
"""Control and address."""

BUFFER_BYTES = 256
"""Size of a request in the engine's buffer, without its flags and before escaping; two of them are half a kilobyte of block RAM."""

MAX_WORDS = (BUFFER_BYTES - HEADER_BYTES - 2) // 4
"""Words that one request writes or reads at most."""

PAGE_WORDS = 256
"""Words within which a request stays; pages start at multiples of it."""

CRC = catalog.CRC16_GENIBUS(8)
"""The check of every frame, CRC-16/GENIBUS: polynomial 0x1021, all ones at the start, inverted at the end."""

_WORD_ADDRESSES = 1 << ADDRESS_BITS - 2


def crc(data):
    """Return the CRC of ``data``, as :data:`CRC` computes it and fast."""
    return binascii.crc_hqx(data, 0xFFFF) ^ 0xFFFF


def frame(body):
    """Return the bytes on the line for ``body``: with CRC, escaped, and a flag at either end."""
    data = bytes(body) + crc(body).to_bytes(2, "big")
    for special in (ESCAPE, FLAG):
        data = data.replace(bytes([special]), bytes([ESCAPE, special ^ FLIP]))
    return bytes([FLAG]) + data + bytes([FLAG])


def read_request(sequence, address, count):
    """Return the body of a request for ``count`` words from byte ``address`` on."""
    return _header(sequence, address, count) + bytes([count])


def write_request(sequence, address, words):
    """Return the body of a request to write an array of uint32 from byte ``address`` on."""
    header = _header(sequence, address, len(words))
    return bytes([header[0] | WRITE]) + header[1:] + words.astype("<u4").tobytes()


def _header(sequence, address, count):
    if not 0 <= sequence < WRITE:
        raise ValueError(f"sequence must be below {WRITE}, not {sequence}")
    if not 1 <= count <= MAX_WORDS:
        raise ValueError(f"a request must be for 1 to {MAX_WORDS} words, not {count}")
    if address % 4 or not 0 <= address // 4 <= _WORD_ADDRESSES - count:
        raise ValueError(f"address must be a word of the host's address space, not {address:#x}")
    if address // 4 % PAGE_WORDS + count > PAGE_WORDS:
        raise ValueError(f"a request must stay within {PAGE_WORDS} words, not go from word {address // 4:#x} over {count}")
    return bytes([sequence]) + (address // 4).to_bytes(HEADER_BYTES - 1, "little")


class Deframer:
    """Takes frames out of received bytes.

    Attributes
    ----------
    broken : int
        Frames that were thrown away so far, for their CRC or a wrong escape.
    """

    def __init__(self):
        self.broken = 0
        self._rest = b""

    def feed(self, data):
        """Take the next bytes; return the bodies of the frames that end in them."""
        *ended, self._rest = (self._rest + data).split(bytes([FLAG]))
        bodies = (self._body(part) for part in ended if part)
        return [body for body in bodies if body is not None]

    def _body(self, part):
        plain, *escaped = part.split(bytes([ESCAPE]))
        data = plain + b"".join(bytes([tail[0] ^ FLIP]) + tail[1:] for tail in escaped if tail)
        if not all(escaped) or len(data) < 3 or crc(data[:-2]) != int.from_bytes(data[-2:], "big"):
            self.broken += 1
            return None
        return data[:-2]
