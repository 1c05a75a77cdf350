"""Pseudonyms and seals: what takes a secret key.

Rules of this file:
- A pseudonym is keyed, never a plain hash: whoever knows all customer numbers must not be able to try them.
- One key per purpose and epoch, derived by HKDF-SHA-256 (RFC 5869) from the master key. Pseudonyms of two purposes,
  or of two epochs, cannot be linked with each other by anyone who does not hold the master key.
- The key's id stands in front of each pseudonym, so that a reader can tell when the key has changed.
- The master key is never printed, logged or part of a `repr`.
"""

import hmac
import os
import secrets
import struct
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from streams.errors import SettingsError

__all__ = ["MasterKey", "Pseudonyms", "Seal", "hkdf", "installation_key"]

_CACHED = 65_536


def hkdf(key: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """HKDF with SHA-256 (RFC 5869), extract and expand: `length` bytes for the use that `info` names.

    >>> hkdf(bytes.fromhex("0b" * 22), b"", 8).hex()
    '8da4e775a563c18f'
    """
    # The standard library's HMAC is used rather than `cryptography`'s HKDF object: the same result, checked against
    # the RFC's and Wycheproof's vectors, without importing OpenSSL bindings on the way to `celosia check`.
    prk = hmac.digest(salt or bytes(32), key, "sha256")
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        out += block
        counter += 1
    return out[:length]


class MasterKey:
    """The one secret of an installation: at least 32 bytes, from a file that only its owner can read.

    >>> MasterKey(bytes(32))
    MasterKey(not shown)
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 32:
            raise SettingsError(
                f"the master key has {len(secret)} bytes, wanted at least 32; make one: celosia key FILE"
            )
        self._secret = secret

    def __repr__(self) -> str:
        return "MasterKey(not shown)"

    def derive(self, *use: str, length: int = 32) -> bytes:
        """Derive the key for one use, named by words that can hold no NUL."""
        return hkdf(self._secret, b"celosia/1\0" + "\0".join(use).encode(), length)

    @classmethod
    def random(cls) -> "MasterKey":
        """Return a key that is gone when the process ends: for demonstrations and tests."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def of_file(cls, file: Path) -> "MasterKey":
        """Read the key from a file of hexadecimal digits that nobody but its owner may read.

        Raises:
            SettingsError: the file is missing, readable by others, or holds no key.
        """
        try:
            mode = file.stat().st_mode
            text = file.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"key file `{file}`: {type(error).__name__}; make one: celosia key {file}") from None
        if mode & 0o077:
            raise SettingsError(
                f"key file `{file}` may be read by others (mode {mode & 0o777:o}), wanted 600; run: chmod 600 {file}, "
                "and make a new key if somebody may have read this one"
            )
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise SettingsError(
                f"key file `{file}` does not hold hexadecimal digits; make one: celosia key FILE"
            ) from None

    @staticmethod
    def create(file: Path) -> None:
        """Write a new random key to a file with mode 600.

        Raises:
            SettingsError: the file is there already (it is never overwritten: its pseudonyms would be lost), or cannot
                be written.
        """
        unfinished = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            unfinished.touch(mode=0o600, exist_ok=False)
            unfinished.write_text(secrets.token_hex(32) + "\n", "ascii")
            # Whole or not at all, and never over another's: two first starts at once agree on one key.
            os.link(unfinished, file)
        except OSError as error:
            if isinstance(error, FileExistsError) and file.exists():
                raise SettingsError(f"key file `{file}` is there already and is not overwritten") from None
            raise SettingsError(f"key file `{file}` cannot be written: {type(error).__name__}") from None
        finally:
            with suppress(OSError):
                unfinished.unlink()


class Pseudonyms:
    """The pseudonyms of one purpose: HMAC-SHA-256 (RFC 2104), cut to 128 bits, one key for each epoch.

    `rotate` is the length of an epoch in milliseconds; an event belongs to the epoch it was recorded in, so a replay
    gives the same pseudonym.

    >>> ads = Pseudonyms(MasterKey(bytes(32)), "ads", rotate=1000)
    >>> news = Pseudonyms(MasterKey(bytes(32)), "news", rotate=1000)
    >>> ads(b"ana", 0) == ads(b"ana", 999), ads(b"ana", 0) == ads(b"ana", 1000), ads(b"ana", 0) == news(b"ana", 0)
    (True, False, False)
    >>> ads(b"ana", 0)
    b'8mD2RQ.qiL7ebcwPvlQMTmZz3LtxQ'
    """

    __slots__ = ("_cache", "_epoch", "_id", "_key", "_master", "_rotate", "_use")

    def __init__(self, master: MasterKey, purpose: str, rotate: int, kind: str = "subject") -> None:
        self._master = master
        self._use = ("pseudonym", kind, purpose)
        self._rotate = rotate
        self._epoch: int | None = None
        self._key = b""
        self._id = b""
        self._cache: dict[bytes, bytes] = {}

    def __call__(self, value: bytes, at: int) -> bytes:
        """Return the pseudonym of `value` in the epoch of `at` (milliseconds): key id, a dot, 22 characters."""
        epoch = at // self._rotate
        if epoch != self._epoch:
            self._turn(epoch)
        name = self._cache.get(value)
        if name is None:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            digest = hmac.digest(self._key, value, "sha256")[:16]
            name = self._cache[value] = self._id + urlsafe_b64encode(digest)[:22]
        return name

    def _turn(self, epoch: int) -> None:
        derived = self._master.derive(*self._use, str(epoch), length=36)
        self._key = derived[:32]
        self._id = urlsafe_b64encode(derived[32:])[:6] + b"."
        self._epoch = epoch
        self._cache.clear()


_BLOCK = struct.Struct(">4sIQ")
_RUN, _RUNS = 64, 256


class Seal:
    """Coordinates of the raw record, readable only for who holds the key: one AES-256 block (FIPS 197) per record.

    An output must lead its operator back to the raw record, and must not let two consumers find out that they hold
    the same event: plain coordinates would undo pairwise pseudonyms. Each block is unique (a record has one place),
    so a single-block permutation is all that is needed, and the key differs for each purpose.

    >>> seal = Seal(MasterKey(bytes(32)), "ads")
    >>> token = seal("shop.events", 3, 1042)
    >>> token, seal.open(token, ["shop.events"])
    (b'422f209cb29db3b23b563a27fd47dc7d', ('shop.events', 3, 1042))
    """

    __slots__ = ("_decrypt", "_encrypt", "_runs")

    def __init__(self, master: MasterKey, purpose: str) -> None:
        cipher = Cipher(algorithms.AES256(master.derive("seal", purpose)), modes.ECB())  # noqa: S305 - see above
        self._encrypt: Callable[[bytes], bytes] = cipher.encryptor().update
        self._decrypt: Callable[[bytes], bytes] = cipher.decryptor().update
        self._runs: dict[tuple[str, int, int], list[bytes]] = {}

    def __call__(self, topic: str, partition: int, offset: int) -> bytes:
        """Seal topic, partition and offset: 32 hexadecimal digits."""
        # Offsets come in runs, and a run of blocks is encrypted in the time of two.
        run = topic, partition, offset // _RUN
        sealed = self._runs.get(run)
        if sealed is None:
            if len(self._runs) >= _RUNS:
                self._runs.clear()
            sealed = self._runs[run] = self._seal_run(*run)
        return sealed[offset % _RUN]

    def _seal_run(self, topic: str, partition: int, number: int) -> list[bytes]:
        short = _short(topic)
        offsets = range(number * _RUN, (number + 1) * _RUN)
        digits = self._encrypt(b"".join([_BLOCK.pack(short, partition, offset) for offset in offsets])).hex().encode()
        return [digits[start : start + 32] for start in range(0, len(digits), 32)]

    def open(self, token: bytes, topics: list[str]) -> tuple[str, int, int]:
        """Return topic, partition and offset; the topic is one of `topics`.

        Raises:
            SettingsError: the token was not made with this key and purpose, or for another topic.
        """
        try:
            block = bytes.fromhex(token.decode())
        except ValueError:
            block = b""
        # The cipher keeps what is no whole block, and would mix it into the next one.
        if len(block) != _BLOCK.size:
            raise SettingsError("not a sealed source: wanted 32 hexadecimal digits")
        short, partition, offset = _BLOCK.unpack(self._decrypt(block))
        for topic in topics:
            if _short(topic) == short:
                return topic, partition, offset
        raise SettingsError("the sealed source was made with another key, for another purpose or for another topic")


def _short(topic: str) -> bytes:
    return blake2b(topic.encode(), digest_size=4).digest()


def installation_key(file: Path | None, *, create: bool = True) -> MasterKey:
    """Return the key of this installation: from `file`, or from the user's configuration folder.

    Only the latter is created when it is missing, with one line on standard error: all workers of one deployment need
    the same key, so a file that somebody named must be there. `create=False`: neither is.

    Raises:
        SettingsError: the file is missing, may be read by others, or holds no key.
    """
    if file is not None:
        return MasterKey.of_file(file)
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    file = home / "celosia" / "key"
    if create and not file.exists():
        try:
            MasterKey.create(file)
            made = f"celosia: made a new key in {file}; every worker of one deployment needs the same file"
            print(made, file=sys.stderr)
        except SettingsError:
            # Another first start was quicker: its key is ours too.
            if not file.exists():
                raise
    return MasterKey.of_file(file)
