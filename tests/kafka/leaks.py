"""Plants canaries in everything that a person could be known by, and looks for them everywhere else.

Each canary begins with the same letters and goes on with the name of the place it was planted in, so that what is
found says where it came from. It is found in other cases of its letters too, in base64, in hexadecimal digits, and in
UTF-16.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.inputs import CANARY

__all__ = ["canary", "document", "found", "found_in_files", "found_in_texts", "of_process", "of_records"]


def canary(place: str) -> str:
    """Return the canary of a place."""
    return f"{CANARY}-{place}"


INDEXES = (".index", ".timeindex")


def _disguises() -> Iterator[tuple[str, bytes]]:
    """Yield what a canary's beginning looks like when it was encoded, by the name of the code."""
    plain = CANARY.encode()
    for shift in range(3):
        # Only the letters that do not depend on what stands before and behind.
        packed = base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 :].rstrip(b"=")
        yield "base64", packed[: len(packed) - 1]
    yield "hexadecimal", plain.hex().encode()
    yield "UTF-16", CANARY.encode("utf-16-le")
    yield "UTF-16", CANARY.encode("utf-16-be")


_DISGUISES = list(_disguises())
_PLAIN = re.compile(re.escape(CANARY).encode() + rb"(?:-([a-z0-9_]+))?")


def found(data: bytes | str | None) -> set[str]:
    """Return the places whose canaries are in some bytes, and the codes in which one is."""
    if data is None:
        return set()
    if isinstance(data, str):
        data = data.encode(errors="surrogatepass")
    low, places = data.lower(), set[str]()
    if CANARY.encode() in low:
        places = {(match[1] or b"(nameless)").decode() for match in _PLAIN.finditer(low)}
    return places | {code for code, packed in _DISGUISES if packed.lower() in low}


def of_records(records: Iterable[Any]) -> set[str]:
    """Return what is found in keys, values and headers of records."""
    parts = set[str]()
    for record in records:
        parts |= found(record.key) | found(record.value)
        for name, value in record.headers:
            parts |= found(name) | found(value)
    return parts


def found_in_files(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, set[str]]:
    """Return what is found in the names and bytes of all files below a folder, except in parts with certain names.

    Indexes of segments hold numbers only, and are megabytes of zeros.
    """
    left_out, leaks = set(leave_out), dict[str, set[str]]()
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if left_out & set(parts):
            continue
        places = found(str(path.relative_to(folder)))
        with suppress(OSError):  # A file may go while we look.
            places |= found(path.read_bytes()) if path.is_file() and path.suffix not in INDEXES else set()
        if places:
            leaks["/".join(parts)] = places
    return leaks


def of_process(pid: int) -> set[str]:
    """Return what is found in what everybody on the machine can see of a process: its command line and environment."""
    places = set[str]()
    for what in ("cmdline", "environ", "comm"):
        with suppress(OSError):
            places |= found(Path(f"/proc/{pid}/{what}").read_bytes())
    return places


def document(subject: str, **more: Any) -> dict[str, Any]:
    """Return an event with a canary in each field, named or not, in names, in lists, in texts and in addresses."""
    return {
        "user_id": subject,
        "type": "viewed",
        "at": "2026-05-01T10:20:30Z",
        "id": canary("id"),
        "product": "lamp",
        "email": canary("email"),
        "page": {
            "url": f"https://{canary('user')}@shop.example/p?q={canary('query')}#{canary('part')}",
            "x": canary("x"),
        },
        "note": f"call {canary('note')}",
        "list": [canary("list"), {canary("name"): canary("inner")}],
        canary("member"): {"json": json.dumps({"a": canary("json")})},
        "packed": base64.b64encode(canary("packed").encode()).decode(),
        **more,
    }


def found_in_texts(answers: Mapping[str, str]) -> dict[str, set[str]]:
    """Return what is found in texts, by their names, where anything is."""
    return {name: places for name, text in answers.items() if (places := found(text))}
