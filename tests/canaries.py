"""Looks for canaries: tokens that were planted in raw events, and that must not come out."""

from collections.abc import Iterator, Sequence

from tests.history import History, Stored


def found(history: History, inside: frozenset[str]) -> Iterator[str]:
    """Yield where there is a canary and none may be: records by coordinates, texts by name.

    `inside` are topics that hold raw events: only in their headers there may be no canary.
    """
    anywhere, never = beginning(history.canaries), beginning(history.hidden)
    both = [token for token in (anywhere, never) if token]
    if not both:
        return
    seen = set()
    for logs in (history.uncommitted, history.committed):
        for (topic, number), records in logs.items():
            body = [] if topic in inside else both
            if body and topic in history.identified_topics:
                body = [never] if never else []
            for record in _holding(records, body, both):
                where = f"{topic}[{number}]@{record.offset}"
                if where not in seen:
                    seen.add(where)
                    yield where
    for name, text in history.texts.items():
        low = text.encode(errors="replace").lower()
        for token in both:
            if (index := low.find(token)) >= 0:
                yield f"{name}, byte {index}"


def beginning(tokens: Sequence[bytes]) -> bytes:
    """Return what all tokens begin with, in small letters; nothing where there are none.

    Raises:
        ValueError: they have less than six bytes in common: whatever begins like that need not be a canary.
    """
    if not tokens:
        return b""
    first, last = min(tokens), max(tokens)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((index for index, (one, other) in pairs if one != other), len(first))
    if same < 6:
        raise ValueError("canaries begin with the same six bytes or more: see History")
    return first[:same].lower()


def _holding(records: Sequence[Stored], body: list[bytes], headers: list[bytes]) -> Iterator[Stored]:
    for start in range(0, len(records), 1000):
        some = records[start : start + 1000]
        # A thousand records at once are looked through in the time of a few.
        if _holds_any(some, body, headers):
            yield from (record for record in some if _holds_any([record], body, headers))


def _holds_any(records: Sequence[Stored], body: list[bytes], headers: list[bytes]) -> bool:
    """Tell whether there is one of some tokens in keys and values, or one of others in headers."""
    around = [part or b"" for record in records for name, value in record[4] for part in (name.encode(), value)]
    inside = [part or b"" for record in records for part in record[2:4]] if body else []
    return any(
        token in b"\n".join(parts).lower() for parts, tokens in ((around, headers), (inside, body)) for token in tokens
    )
