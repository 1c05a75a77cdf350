"""What is kept and sent between the stages: unreadable without the key of the installation, and bound to its place."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from streams.keys import MasterKey

__all__ = ["Sealed"]


class Sealed:
    """AES-SIV (RFC 5297) with a key of its own. The place is authenticated, and not hidden.

    >>> sealed = Sealed(MasterKey(bytes(32)))
    >>> sealed.open(sealed.close(b"ana", b"here"), b"here")
    b'ana'
    """

    def __init__(self, master: MasterKey) -> None:
        self._cipher = AESSIV(master.derive("crowd", length=64))

    def close(self, value: bytes, place: bytes) -> bytes:
        """Encrypt a value, not an empty one."""
        return self._cipher.encrypt(value, [place])

    def open(self, value: bytes, place: bytes) -> bytes:
        """Return the value.

        Raises:
            ValueError: it was made with another key, or for another place.
        """
        try:
            return self._cipher.decrypt(value, [place])
        except InvalidTag:
            raise ValueError("the state of a crowd was made with another key") from None
