"""What can go wrong before an event is ever read, drawn as a tree.

    CelosiaError
    ├── PolicyError      the policy file does not say what it must
    ├── SettingsError    a setting, file or flag is missing or wrong
    ├── TopicsError      the topics on the broker are not what the promises need
    └── BrokerFailed     a broker that we started, or were pointed at, does not answer

Errors about policies and settings say where, what was wanted, what came and what to do. What goes wrong with an
*event* is not an exception but a value (`streams.event.Rejected` never leaves `process`), and it says coordinates only:
a message that quotes a payload is a leak.
"""

__all__ = ["BrokerFailed", "CelosiaError", "PolicyError", "SettingsError", "TopicsError"]


class CelosiaError(Exception):
    """Anything celosia refuses to start with. `str()` of it is one message for a person."""


class PolicyError(CelosiaError):
    """One or more findings about a policy file, each with its place.

    >>> print(PolicyError("shop.yaml", ["line 3, purposes.ads: `benefit` is missing; say what the person gets"]))
    policy `shop.yaml` is refused:
      line 3, purposes.ads: `benefit` is missing; say what the person gets
    """

    def __init__(self, file: str, findings: list[str]) -> None:
        self.file = file
        self.findings = findings
        super().__init__("\n  ".join([f"policy `{file}` is refused:", *findings]))


class SettingsError(CelosiaError):
    """A setting, flag or file: where, what was wanted, what came, what to do."""


class TopicsError(CelosiaError):
    """Topics that do not fit the promises: one line for each thing wrong.

    >>> print(TopicsError(["`shop.consents`: cleanup.policy is delete, wanted compact"]))
    the topics are not as celosia needs them:
      `shop.consents`: cleanup.policy is delete, wanted compact
    """

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings
        super().__init__("\n  ".join(["the topics are not as celosia needs them:", *findings]))


class BrokerFailed(CelosiaError):
    """A broker did not start or does not answer: what was tried, what came, what to do."""
