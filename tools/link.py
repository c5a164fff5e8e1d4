"""An engine on a board: the transport that speaks the protocol of :mod:`celosia.rtl.link` over a wire of :mod:`celosia.tools.wires`."""

import random
import time
from dataclasses import dataclass

import numpy as np

from celosia.rtl.config import PRESETS
from celosia.rtl.csr import ID, REGISTERS, identity
from celosia.rtl.link import FLAG, MAX_WORDS, PAGE_WORDS, SEQUENCE_BITS, WRITE, Deframer, frame, read_request, write_request
from celosia.sim.events import EVENT
from celosia.sim.transport import Transport, TransportError
from celosia.tools.wires import WireError, open_wire

__all__ = ["LinkError", "LinkTransport", "open_link"]

PATIENCE = 0.3
"""Seconds without a reply, beyond the line's own time, after which requests are sent again; doubled with each time, up to :data:`LONGEST`."""
LONGEST = 2.0
TRIES = 6
"""Times in a row that nothing comes back before the link is given up."""
GREETINGS = 4
"""The same for the first request of all."""
REQUEST_TRIES = 100
"""Times that one request is sent while others get through."""
WRITES, READS = 8, 2
"""Requests on their way; see the protocol's third rule."""

_POLLED = ("STATUS", "IRQ_ENABLE", "IRQ_STATUS", "CYCLES")


class LinkError(TransportError):
    """The link itself failed; the sentence names the port."""

    def __init__(self, port, problem):
        RuntimeError.__init__(self, f"{port}: {problem}")
        self.address = None


@dataclass
class _Job:
    """A request until it has been answered."""

    write: bool
    address: int
    count: int
    words: np.ndarray
    tries: int = 0
    first: int = 0  # in the order of everything sent
    last: int = 0


class LinkTransport(Transport):
    """An engine behind a wire.

    Bulk transfers are cut into bursts of :data:`~celosia.rtl.link.MAX_WORDS`, several of which are on their way at a time. What is lost or damaged on
    the way is sent again.

    Parameters
    ----------
    wire : Wire
        Closed with the transport.
    patience : float
        See :data:`PATIENCE`.

    Attributes
    ----------
    repeated : int
        Requests that had to be sent again so far.

    Raises
    ------
    LinkError
        If nobody answers.
    """

    def __init__(self, wire, *, patience=PATIENCE):
        self.wire = wire
        self.repeated = 0
        self._patience = patience
        self._deframer = Deframer()
        self._sequence = random.SystemRandom().randrange(WRITE)
        self._order = 0
        self._replies = 0
        self._noise = False
        try:
            self._guard(wire.send, bytes([FLAG]))
            self.read(REGISTERS["ID"].offset, 1)
        except BaseException:
            wire.close()
            raise

    def write(self, address, words):
        words = np.ascontiguousarray(words, np.uint32)
        self._transfer(True, address, len(words), words, WRITES)

    def read(self, address, count):
        return self._transfer(False, address, count, np.zeros(count, np.uint32), READS)

    def wait(self, limit):
        registers = [REGISTERS[name] for name in _POLLED]
        first = min(register.offset for register in registers)
        count = (max(register.offset for register in registers) - first) // 4 + 1
        while True:
            words = self.read(first, count)
            status, enable, events, cycles = (int(words[(register.offset - first) // 4]) for register in registers)
            if enable & events:
                return True
            if cycles >= limit or not REGISTERS["STATUS"].unpack(status)["busy"]:
                # It may have ended between the reading of one register and the next.
                return bool(self.read32(REGISTERS["IRQ_STATUS"].offset) & enable)

    def record(self, on):
        pass

    def events(self):
        return np.zeros(0, EVENT)

    def close(self):
        self.wire.close()

    # Requests ---------------------------------------------------------------------------------------------------------

    def _transfer(self, write, address, count, words, window):
        """Write or read ``words``; return them."""
        waiting = [
            _Job(write, address + 4 * place, part, words[place : place + part]) for place, part in _bursts(address, count)
        ]
        waiting.reverse()
        sent = {}  # by sequence number
        refused, words_done = None, 0
        silent = 0
        deadline = 0.0
        while waiting or sent:
            while waiting and len(sent) < window and refused is None:
                job = waiting.pop()
                sequence = self._next_sequence()
                sent[sequence] = job
                self._send(sequence, job)
                deadline = max(deadline, self._deadline(sent, silent))
            if not sent:
                break
            answered = False
            for body in self._deframer.feed(self._guard(self.wire.receive, max(0.0, deadline - time.monotonic()))):
                job = sent.get(body[0] & ~WRITE)
                done = self._take(job, body)
                if done is None:
                    continue
                del sent[body[0] & ~WRITE]
                answered = True
                self._replies += 1
                if done < job.count and (refused is None or job.address < refused.address):
                    refused, words_done = job, done
                # Replies come in the order of the requests: what was sent before this one and has no reply is lost.
                for sequence, other in sent.items():
                    if other.last < job.first:
                        self._send(sequence, other)
            if answered:
                silent = 0
                deadline = self._deadline(sent, silent)
            elif time.monotonic() >= deadline:
                silent += 1
                self._check_patience(silent)
                for sequence, job in sent.items():
                    self._send(sequence, job)
                deadline = self._deadline(sent, silent)
        if refused is not None:
            if write and refused.count > 1:
                for n in range(refused.count):  # one by one, to find the word
                    self._transfer(True, refused.address + 4 * n, 1, refused.words[n : n + 1], 1)
            raise TransportError("write" if write else "read", refused.address + 4 * words_done)
        return words

    def _take(self, job, body):
        """Return the number of words that a reply says were done, None if it is not the job's."""
        if job is None:
            return None
        if job.write:
            return (job.count if body[0] & WRITE else 0) if len(body) == 1 else None
        if body[0] & WRITE or len(body) % 4 != 1 or len(body) // 4 > job.count:
            return None
        words = np.frombuffer(body, "<u4", offset=1)
        job.words[: len(words)] = words
        return len(words)

    def _send(self, sequence, job):
        self._order += 1
        job.last = self._order
        job.first = job.first or self._order
        if job.tries:
            self.repeated += 1
        job.tries += 1
        if job.tries > REQUEST_TRIES:
            raise LinkError(
                self.wire.name, f"the line is too bad: a request was sent {REQUEST_TRIES} times, and others got through"
            )
        body = write_request(sequence, job.address, job.words) if job.write else read_request(sequence, job.address, job.count)
        self._guard(self.wire.send, frame(body))

    def _next_sequence(self):
        self._sequence = (self._sequence + 1) % (1 << SEQUENCE_BITS)
        return self._sequence

    def _deadline(self, sent, silent):
        """Return when the next reply is overdue: the line may be busy with everything that is on its way."""
        line = sum(4 * job.count + 20 for job in sent.values()) * self.wire.byte_time
        return time.monotonic() + 2 * line + min(LONGEST, self._patience * 2**silent)

    def _check_patience(self, silent):
        if self._replies and silent >= TRIES:
            raise LinkError(
                self.wire.name, f"the engine no longer answers: {TRIES} times a request was sent and no reply came back"
            )
        if not self._replies and silent >= GREETINGS:
            if self._noise:
                problem = "what comes back is no reply of an engine; is this its port"
            else:
                problem = "nobody answers; is the board connected and powered, has an engine been loaded, is this its port"
            raise LinkError(self.wire.name, f"{problem}, and {self.wire.hint}?")

    def _guard(self, function, *arguments):
        """Call a function of the wire; its problems become :exc:`LinkError`."""
        try:
            data = function(*arguments)
        except WireError as error:
            raise LinkError(self.wire.name, str(error)) from error
        self._noise = self._noise or bool(data and data.strip(bytes([FLAG])))
        return data


def _bursts(address, count):
    """Yield ``(first word, words)`` of requests that make up ``count`` words from byte ``address`` on."""
    place = 0
    while place < count:
        part = min(MAX_WORDS, count - place, PAGE_WORDS - (address // 4 + place) % PAGE_WORDS)
        yield place, part
        place += part


def open_link(place, config):
    """Return the :class:`LinkTransport` to an engine that has been found to be ``config``.

    Parameters
    ----------
    place : str
        As ``--on`` takes it, see :func:`celosia.tools.places.parse`.

    Raises
    ------
    LinkError
        If there is no port, nobody answers, or another engine does.
    """
    try:
        wire = open_wire(place)
    except WireError as error:
        raise LinkError(place, str(error)) from error
    transport = LinkTransport(wire)
    try:
        _check_engine(transport, config)
    except BaseException:
        transport.close()
        raise
    return transport


def _check_engine(transport, config):
    wanted = identity(config)
    found = {name: transport.read32(REGISTERS[name].offset) for name in ("ID", "VERSION", "DIGEST")}
    name = transport.wire.name
    if found["ID"] != ID:
        raise LinkError(name, f"something answers, but it is no Celosia engine: its register ID holds {found['ID']:#010x}")
    if found["VERSION"] != wanted["VERSION"]:
        raise LinkError(
            name,
            f"the engine has instruction set version {found['VERSION']}, not {wanted['VERSION']}: build and load its bitstream again",
        )
    if found["DIGEST"] != wanted["DIGEST"]:
        known = [preset for preset, other in PRESETS.items() if other.digest == found["DIGEST"]]
        engine = f"engine {known[0]!r}" if known else f"an engine of digest {found['DIGEST']:#010x}"
        remedy = f"give --engine {known[0]}" if known else "give --engine the configuration that its bitstream was built from"
        raise LinkError(name, f"the board has {engine}, not {config.name!r}: {remedy}")
