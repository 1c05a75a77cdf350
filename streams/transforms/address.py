"""Network addresses cut to their network."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, inet_ntop, inet_pton
from typing import Any

from streams.transforms.form import ABSENT, Context, Example, Form, Kind

__all__ = ["TRUNCATE_IP"]


def _truncate_ip(parameters: Any, _context: Context) -> Form:
    given = {} if parameters is None else parameters
    wanted = {"v4": 24, "v6": 48} | (given if type(given) is dict else {"": given})
    bits4, bits6 = wanted["v4"], wanted["v6"]
    if set(wanted) != {"v4", "v6"} or type(bits4) is not int or type(bits6) is not int:
        raise ValueError("wanted the bits to keep, as in {truncate_ip: {v4: 24, v6: 48}}")
    if not 0 <= bits4 <= 24 or not 0 <= bits6 <= 64:
        raise ValueError("at most 24 bits of an IPv4 and 64 of an IPv6 address may stay: more is one household")

    mask4 = -1 << (32 - bits4) & 0xFFFFFFFF

    def truncate(text: str) -> Any:
        try:
            # The C library reads the common case, four numbers, in a tenth of the time of `ipaddress`.
            return inet_ntop(AF_INET, (int.from_bytes(inet_pton(AF_INET, text)) & mask4).to_bytes(4))
        except (OSError, ValueError):
            return truncate_slowly(text)

    @lru_cache(maxsize=4096)
    def truncate_slowly(text: str) -> Any:
        try:
            address = ip_address(text)
        except ValueError:
            return ABSENT
        if isinstance(address, IPv6Address):
            # An IPv4 address in another dress: ::ffff:203.0.113.77, or 6to4, which has all of it in its first 48 bits.
            address = address.ipv4_mapped or address.sixtofour or address
        if isinstance(address, IPv4Address):
            return str(IPv4Address(int(address) & mask4))
        # A zone (fe80::1%eth0) is dropped: it is a name on the person's machine.
        return str(IPv6Address(int(address) >> (128 - bits6) << (128 - bits6)))

    return lambda value, _at: truncate(value) if type(value) is str else ABSENT


_BITS = {
    "type": "object",
    "properties": {
        "v4": {"type": "integer", "minimum": 0, "maximum": 24},
        "v6": {"type": "integer", "minimum": 0, "maximum": 64},
    },
    "additionalProperties": False,
}

TRUNCATE_IP = Kind(
    "truncate_ip",
    "an IP address with its last bits set to zero: 24 bits of IPv4 and 48 of IPv6 stay unless told otherwise",
    "the household or device behind an address",
    _truncate_ip,
    _BITS,
    examples=(
        Example(None, "203.0.113.77", "203.0.113.0"),
        Example({"v4": 16}, "203.0.113.77", "203.0.0.0"),
        Example(None, "2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        Example(None, "::ffff:203.0.113.77", "203.0.113.0"),
        Example(None, "2002:cb00:714d::1", "203.0.113.0"),
        Example(None, "fe80::1%eth0", "fe80::"),
        Example(None, "203.0.113.0", "203.0.113.0"),
        Example(None, "203.0.113", ABSENT),
        Example(None, 3405803853, ABSENT),
    ),
)
