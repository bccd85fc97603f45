"""Which names of hosts mean this machine alone. Without slow imports: a command line is checked by it."""

import ipaddress


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
