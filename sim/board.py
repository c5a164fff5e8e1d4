"""A simulated board behind a pseudo-terminal: ``python -m celosia.sim.board --engine PRESET`` prints the path, ``celosia run --on uart:PATH`` uses it.

The board is the engine with the bridge of the host link in Verilator. Over ``bytes`` the pseudo-terminal's bytes go straight to the bridge, which is
fast; over ``uart`` and ``spi`` they go through the pins, as bits. The line can be made bad on purpose, the same way each time for the same seed.
"""

import argparse
import os
import random
import select
import signal
import sys
import threading
import tty
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from celosia.rtl.config import BadConfig
from celosia.rtl.linked import LINKS
from celosia.sim.verilator.build import BuildError, build
from celosia.sim.verilator.model import BoardModel

__all__ = ["BadLine", "Board", "main", "running"]

CHUNK = 4096
"""Bytes read at once, and sent to the board before its answers are passed on."""
CYCLES = 4000
"""Clock cycles of a running program between two looks at the pseudo-terminal. Without a program and without bytes time stands still."""


@dataclass(frozen=True)
class BadLine:
    """What goes wrong on the line, in both directions.

    Parameters
    ----------
    drop, flip, insert : float
        Probability for each byte that it is lost, that one of its bits is flipped, that a byte of noise comes before it.
    disconnect : int, optional
        Bytes from the host after which the connection breaks, once.
    seed : int
    """

    drop: float = 0.0
    flip: float = 0.0
    insert: float = 0.0
    disconnect: int | None = None
    seed: int = 1


class Board:
    """An engine that keeps its state while pseudo-terminals come and go.

    Parameters
    ----------
    config : EngineConfig
    link : str
        One of :data:`celosia.rtl.linked.LINKS`.
    line : BadLine
    cache, on_build
        See :func:`celosia.sim.verilator.build.build`.

    Attributes
    ----------
    path : str
        Of the pseudo-terminal: the port to open.
    """

    def __init__(self, config, *, link="bytes", line=BadLine(), cache=None, on_build=lambda: None):
        self.model = BoardModel(build(config, link=link, cache=cache, on_build=on_build))
        self.line = line
        self._random = random.Random(line.seed)
        self._left = line.disconnect
        self._open()

    def _open(self):
        # The end that the host opens is kept open here too: else its closing would look like a disconnect.
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)

    def close(self):
        """Take the pseudo-terminal away."""
        os.close(self._master)
        os.close(self._slave)

    def serve(self, stop=lambda: False, changed=lambda path: None):
        """Answer the host until ``stop()``; ``changed`` is called with the new path after a disconnect."""
        outgoing = b""
        while not stop():
            idle = not self.model.run(CYCLES)
            readable, writable, _ = select.select(
                [] if outgoing else [self._master], [self._master] if outgoing else [], [], 0.1 if idle else 0
            )
            if writable:
                outgoing = outgoing[os.write(self._master, outgoing) :]
            if not readable:
                continue
            incoming = os.read(self._master, CHUNK)
            if self._left is not None:
                self._left -= len(incoming)
                if self._left <= 0:
                    self._left = None
                    self.close()
                    self._open()
                    changed(self.path)
                    continue
            outgoing = self._spoil(self.model.exchange(self._spoil(incoming)))

    def _spoil(self, data):
        line, chance = self.line, self._random.random
        if not (line.drop or line.flip or line.insert):
            return data
        result = bytearray()
        for byte in data:
            if chance() < line.insert:
                result.append(self._random.randrange(256))
            if chance() < line.flip:
                byte ^= 1 << self._random.randrange(8)
            if chance() >= line.drop:
                result.append(byte)
        return bytes(result)


@contextmanager
def running(config, **options):
    """Yield a :class:`Board` that answers in a thread of its own; its ``path`` changes when it disconnects."""
    board = Board(config, **options)
    stop = threading.Event()
    thread = threading.Thread(target=board.serve, args=(stop.is_set,), daemon=True)
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join()
        board.close()


def main(arguments=None):
    """Serve until interrupted; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m celosia.sim.board", description=__doc__.split("\n\n")[0].replace("``", "`")
    )
    parser.add_argument(
        "--engine", metavar="PRESET|BOARD|FILE.json", default="test", help="the engine (default test)"
    )
    parser.add_argument("--link", choices=LINKS, default="bytes", help="what the bytes go through (default bytes: fast)")
    parser.add_argument(
        "--path", metavar="LINK", type=Path, help="also make this symbolic link to the pseudo-terminal, and keep it right"
    )
    for name, what in (("drop", "is lost"), ("flip", "has one bit flipped"), ("insert", "has a byte of noise before it")):
        parser.add_argument(f"--{name}", metavar="P", type=float, default=0.0, help=f"probability that a byte {what}")
    parser.add_argument("--disconnect", metavar="N", type=int, help="break the connection, once, after N bytes from the host")
    parser.add_argument("--seed", type=int, default=1, help="of what goes wrong (default 1)")
    options = parser.parse_args(arguments)
    from celosia.tools.session import engine_config  # here: the library needs no tools

    def announce(path):
        if options.path:
            fresh = options.path.with_name(options.path.name + ".new")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(path)
            fresh.replace(options.path)
        print(options.path or path, flush=True)

    def building():
        print("building the simulator, once for this engine and link (a minute)", file=sys.stderr, flush=True)

    # Also where a shell has started this in the background and told it to ignore interrupts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    line = BadLine(
        drop=options.drop, flip=options.flip, insert=options.insert, disconnect=options.disconnect, seed=options.seed
    )
    try:
        board = Board(engine_config(options.engine), link=options.link, line=line, on_build=building)
        announce(board.path)
        board.serve(changed=announce)
    except (BadConfig, BuildError, OSError) as error:
        print(f"celosia: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if options.path and options.path.is_symlink():
            options.path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
