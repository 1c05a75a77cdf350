"""One reader per shape of event: where subject, type, time and id stand, and how the fields are read."""

from streams.sources.document import DocumentReader, Envelope, Getter, Paths

__all__ = ["SHAPES", "DocumentReader", "Envelope", "Getter", "Paths"]

SHAPES: dict[str, type[DocumentReader]] = {"plain": DocumentReader}
"""All shapes by the word that a policy uses. `plain` is one JSON object whose paths the policy names itself."""
