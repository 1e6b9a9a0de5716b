"""Kernels that have imported everything already, so that nbval does not wait for it notebook by notebook.

`python tests/warm_kernel.py FOLDER` imports, writes a kernel specification below FOLDER and waits; each kernel is then
a fork of it: a process of its own, whose namespace is empty. Where a system cannot do that, the specification is the
plain one. Jupyter starts a kernel as `python tests/warm_kernel.py SOCKET SERVER CONNECTION_FILE`, a process that lives
as long as the kernel and passes signals on to it.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

NAME = "warm"
IMPORTS = (
    *("graphnas_lib.stages", "graphnas_lib.panels", "graphnas_lib.plots", "ipykernel.kernelapp", "matplotlib.pyplot"),
    *("seaborn", "torch_geometric.nn", "transformers.models.gpt_neo"),
)


def serve(folder: Path) -> None:
    """Import, then fork a kernel for each that connects, until this process is ended."""
    spec, path = folder / "kernels" / NAME / "kernel.json", folder / "warm.socket"
    able, arguments = hasattr(os, "pidfd_open"), [str(path), str(os.getpid()), "{connection_file}"]
    client = [sys.executable, "-S", __file__, *arguments]
    plain = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": client if able else plain, "display_name": NAME, "language": "python"}))
    if not able:
        return
    sys.path[0] = ""  # as a kernel has it
    for name in IMPORTS:
        __import__(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a guard ended
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            guard(connection)
        connection.close()


def guard(connection: socket.socket) -> None:
    """Fork the kernel that was asked for; end with it, or end it where who asked is gone."""
    asked = json.loads(connection.makefile().readline())
    if (kernel := os.fork()) == 0:
        connection.close()
        os.setsid()
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.argv[1:] = ["--log-level=CRITICAL", "-f", asked["connection_file"]]
        from ipykernel.kernelapp import launch_new_instance

        launch_new_instance()
        os._exit(0)
    connection.sendall(f"{kernel}\n".encode())
    ended = os.pidfd_open(kernel)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(kernel, signal.SIGKILL)
    os.waitpid(kernel, 0)
    os._exit(0)


def ask(path: str, server: str, connection_file: str) -> None:
    """Ask for a kernel, and stand for it: what ends one ends the other."""
    connection = socket.socket(socket.AF_UNIX)
    while connection.connect_ex(path):
        os.kill(int(server), 0)  # while it imports; an error once it is gone
        time.sleep(0.1)
    asked = {"folder": os.getcwd(), "environment": dict(os.environ), "connection_file": connection_file}
    connection.sendall(f"{json.dumps(asked)}\n".encode())
    answers = connection.makefile()
    kernel = int(answers.readline())
    signal.signal(signal.SIGINT, lambda *_: os.kill(kernel, signal.SIGINT))
    answers.read()  # to the kernel's end


if __name__ == "__main__":
    serve(Path(sys.argv[1])) if len(sys.argv) == 2 else ask(*sys.argv[1:])
