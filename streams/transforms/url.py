"""Addresses of pages without what was typed into them."""

import re
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from streams.transforms.form import ABSENT, Context, Example, Form, Kind

__all__ = ["URL"]


# Parameters of a path's segments (RFC 3986, 3.3): `;jsessionid=...` is where servers put what is not in a cookie.
_PATH_PARAMETERS = re.compile(r";[^/]*")


def _url(parameters: Any, _context: Context) -> Form:
    given = {} if parameters is None else parameters
    wanted: dict[str, Any] = {"keep_query": []} | (given if type(given) is dict else {"": given})
    keep = wanted["keep_query"]
    if set(wanted) != {"keep_query"} or type(keep) is not list or not all(type(name) is str for name in keep):
        raise ValueError("wanted the parameters to keep, as in {url: {keep_query: [utm_source]}}")
    kept_names = frozenset(keep)

    @lru_cache(maxsize=4096)
    def strip(text: str) -> Any:
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
            query = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=1000) if kept_names else []
        except ValueError:
            return ABSENT
        if parts.scheme not in ("http", "https") or not host:
            return ABSENT
        # Built up from nothing: name and password, fragment and every parameter that is not named have no way in.
        if ":" in host:
            host = f"[{host}]"
        kept = urlencode([(name, value) for name, value in query if name in kept_names])
        path = _PATH_PARAMETERS.sub("", parts.path)
        return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}{'?' if kept else ''}{kept}"

    return lambda value, _at: strip(value) if type(value) is str else ABSENT


_QUERY = {
    "type": "object",
    "properties": {"keep_query": {"type": "array", "items": {"type": "string"}}},
    "additionalProperties": False,
}

URL = Kind(
    "url",
    "an http(s) address without user, password, path parameters, query and fragment; what `keep_query` names stays",
    "search words, e-mail addresses and session tokens in links",
    _url,
    _QUERY,
    examples=(
        Example(None, "https://shop.example/p/7?q=gift+for+ana&utm_source=mail#me", "https://shop.example/p/7"),
        Example(
            {"keep_query": ["utm_source"]},
            "https://shop.example/p/7?q=gift&utm_source=mail",
            "https://shop.example/p/7?utm_source=mail",
        ),
        Example(None, "https://shop.example/p;jsessionid=1A2B/7;v=2", "https://shop.example/p/7"),
        Example(None, "https://ana:secret@Shop.Example:8443/", "https://shop.example:8443/"),
        Example(None, "https://[2001:db8::1]/p", "https://[2001:db8::1]/p"),
        Example(None, "https://shop.example/p/7", "https://shop.example/p/7"),
        Example(None, "mailto:ana@example.org", ABSENT),
        Example(None, "javascript:alert(1)", ABSENT),
        Example(None, "https://shop.example:port/", ABSENT),
    ),
)
