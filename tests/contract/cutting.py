"""A network that breaks or trickles: a proxy before a server, for tests of what goes on behind it."""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress


class CuttingProxy:
    """Passes bytes to a port and cuts connections after so many bytes of answers, as often as `cuts` says.

    `pause`: seconds before each 2,000 bytes of the answers that go on after 10,000 bytes.
    """

    def __init__(self, port: int, cuts: list[int], pause: float = 0.0) -> None:
        self.target = port
        self.cuts = cuts
        self.pause = pause
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            most = self.cuts.pop(0) if self.cuts else None
            threading.Thread(target=self.serve, args=(client, most), daemon=True).start()

    def serve(self, client: socket.socket, most: int | None) -> None:
        done = 0
        with client, socket.create_connection(("127.0.0.1", self.target)) as server, suppress(OSError):
            while readable := select.select([client, server], [], [])[0]:
                for source in readable:
                    slow = self.pause and source is server and done > 10_000
                    data = source.recv(2000 if slow else 1 << 16)
                    if slow:
                        # the slow link itself, which the test is about; nobody waits for anything here
                        time.sleep(self.pause)
                    (server if source is client else client).sendall(data)
                    done += len(data) if source is server else 0
                    if not data or (most is not None and done > most):
                        return

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.listening.close()
