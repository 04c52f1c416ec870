"""Ports of this machine for servers that other processes start."""

import socket


def free_port() -> int:
    """Return a TCP port to listen on, which the kernel gives to nobody else for a minute.

    One that was merely free could be taken by any connection before its server comes. This one has
    a connection that is ended and waits (TIME_WAIT): the kernel passes it over, while a server,
    which sets SO_REUSEADDR, may have it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as client:
            listener.accept()[0].close()  # who closes first is left waiting
            client.recv(1)
    return int(address[1])
