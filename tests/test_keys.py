"""Keys, pseudonyms and seals: the vectors of the RFCs, and what must never be linkable or readable."""

import json
import os
import re
from base64 import urlsafe_b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import keys
from streams.errors import SettingsError
from streams.keys import MasterKey, Pseudonyms, Seal, hkdf, installation_key

ROOT = Path(__file__).parent.parent
VECTORS = Path(__file__).parent / "data" / "vectors"
WYCHEPROOF = Path(os.environ.get("CELOSIA_DATA") or ROOT.parent / "shared" / "data") / "vectors" / "wycheproof"
DAY = 86_400_000
MASTER = MasterKey(bytes(range(32)))

needs_wycheproof = pytest.mark.skipif(
    not WYCHEPROOF.is_dir(), reason="no Wycheproof vectors: CELOSIA_DATA names the folder that has vectors/wycheproof"
)


class Fixed(MasterKey):
    """A master key that derives the one key given, so that what is done with a derived key can be tested by itself."""

    def derive(self, *_use: str, length: int = 32) -> bytes:
        return self._secret.ljust(length, b"\0")


def rfc_vectors(file: str) -> list[dict[str, str]]:
    """Read blocks of `name = value`; a block begins with the first name that was there already."""
    found: list[dict[str, str]] = []
    for name, value in re.findall(r"(?m)^(\w+) *= *(\S*)$", (VECTORS / file).read_text()):
        if not found or name in found[-1]:
            found.append({})
        found[-1][name] = value
    return found


def wycheproof(file: str) -> list[dict[str, Any]]:
    document = json.loads((WYCHEPROOF / file).read_bytes())
    tests = [test for group in document["testGroups"] for test in group["tests"]]
    assert len(tests) == document["numberOfTests"]
    return tests


def hmac_of(key: bytes, message: bytes) -> bytes:
    """Return the 128 bits of HMAC that stand in the pseudonym of `message` under `key`."""
    # RFC 2104: a key longer than a block counts as its hash, a shorter one is filled up with zeros.
    key = sha256(key).digest() if len(key) > 64 else key
    assert len(key) <= 32
    name = Pseudonyms(Fixed(key.ljust(32, b"\0")), "any", DAY)(message, 0)
    return urlsafe_b64decode(name.partition(b".")[2] + b"==")


# --- vectors ----------------------------------------------------------------------------------------------------------


def test_a_pseudonym_is_hmac_sha_256_of_rfc_4231() -> None:
    vectors = rfc_vectors("rfc-4231-hmac-sha256.txt")
    assert len(vectors) == 6
    for vector in vectors:
        key, message, mac = (bytes.fromhex(vector[name]) for name in ("Key", "Msg", "MD"))
        assert hmac_of(key, message) == mac[:16]


def test_keys_are_derived_by_hkdf_of_rfc_5869() -> None:
    vectors = rfc_vectors("rfc-5869-hkdf-sha256.txt")
    assert [vector["COUNT"] for vector in vectors] == ["1", "2", "3"]
    for vector in vectors:
        key, salt, info = (bytes.fromhex(vector[name]) for name in ("IKM", "salt", "info"))
        assert hkdf(key, info, int(vector["L"]), salt).hex() == vector["OKM"]


@needs_wycheproof
def test_hkdf_agrees_with_wycheproof() -> None:
    results = []
    for test in wycheproof("hkdf_sha256_test.json"):
        key, salt, info = (bytes.fromhex(test[name]) for name in ("ikm", "salt", "info"))
        results.append(test["result"])
        if test["result"] == "valid":
            assert hkdf(key, info, test["size"], salt).hex() == test["okm"], test["tcId"]
        else:  # longer than 255 blocks
            with pytest.raises(ValueError, match="range"):
                hkdf(key, info, test["size"], salt)
    assert (results.count("valid"), results.count("invalid")) == (83, 3)


@needs_wycheproof
def test_pseudonyms_agree_with_wycheproof() -> None:
    # The invalid ones have a changed tag, for those who verify tags. Nobody verifies a pseudonym.
    valid = [test for test in wycheproof("hmac_sha256_test.json") if test["result"] == "valid"]
    assert len(valid) == 66
    for test in valid:
        assert hmac_of(bytes.fromhex(test["key"]), bytes.fromhex(test["msg"])).hex() == test["tag"][:32], test["tcId"]


# --- the master key ---------------------------------------------------------------------------------------------------


def test_a_master_key_is_never_shown() -> None:
    secret = b"a secret of thirty-two bytes ...!"
    key = MasterKey(secret)
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert "not shown" in text
        assert "secret" not in text
        assert secret.hex() not in text


def test_a_short_key_is_refused() -> None:
    with pytest.raises(SettingsError) as error:
        MasterKey(bytes(31))
    assert str(error.value) == "the master key has 31 bytes, wanted at least 32; make one: celosia key FILE"


def test_each_use_has_a_key_of_its_own() -> None:
    uses = [("a", "b"), ("ab",), ("a", "b", ""), ("a",), ("b", "a"), ("",)]
    assert len({MASTER.derive(*use) for use in uses}) == len(uses)
    assert MASTER.derive("a") != MasterKey(bytes(32)).derive("a")


def test_random_keys_differ() -> None:
    assert MasterKey.random().derive("a") != MasterKey.random().derive("a")


# --- key files --------------------------------------------------------------------------------------------------------


def write_key(file: Path, text: str | bytes, mode: int = 0o600) -> Path:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    file.chmod(mode)
    return file


def test_a_key_that_was_made_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "celosia.key"
    MasterKey.create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert re.fullmatch(r"[0-9a-f]{64}\n", file.read_text())
    assert MasterKey.of_file(file).derive("a") == MasterKey(bytes.fromhex(file.read_text())).derive("a")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    file = write_key(tmp_path / "key", "00" * 32)
    with pytest.raises(SettingsError) as error:
        MasterKey.create(file)
    assert str(error.value) == f"key file `{file}` is there already and is not overwritten"
    assert file.read_text() == "00" * 32


def test_a_key_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    in_a_file = write_key(tmp_path / "file", "") / "key"
    with pytest.raises(SettingsError) as error:
        MasterKey.create(in_a_file)
    assert str(error.value) == f"key file `{in_a_file}` cannot be written: FileExistsError"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620, 0o601, 0o777])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    file = write_key(tmp_path / "key", "00" * 32, mode)
    with pytest.raises(SettingsError) as error:
        MasterKey.of_file(file)
    assert str(error.value) == (
        f"key file `{file}` may be read by others (mode {mode:o}), wanted 600; run: chmod 600 {file}, "
        "and make a new key if somebody may have read this one"
    )


def test_a_key_file_may_be_stricter_than_asked(tmp_path: Path) -> None:
    file = write_key(tmp_path / "key", "\n " + "AB" * 40 + " \r\n", 0o400)
    assert MasterKey.of_file(file).derive("a") == MasterKey(b"\xab" * 40).derive("a")


@pytest.mark.parametrize("text", ["secret" * 20, "0" * 63 + "x", "0" * 65, "0x" + "00" * 32])
def test_what_is_not_hexadecimal_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    file = write_key(tmp_path / "key", text)
    with pytest.raises(SettingsError) as error:
        MasterKey.of_file(file)
    assert str(error.value) == f"key file `{file}` does not hold hexadecimal digits; make one: celosia key FILE"
    assert error.value.__suppress_context__


@pytest.mark.parametrize(("text", "size"), [("", 0), ("00" * 31, 31)])
def test_a_file_with_too_short_a_key_is_refused(tmp_path: Path, text: str, size: int) -> None:
    with pytest.raises(SettingsError, match=f"has {size} bytes, wanted at least 32"):
        MasterKey.of_file(write_key(tmp_path / "key", text))


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    binary = write_key(tmp_path / "binary", b"\xff" * 32)
    for file, what in (
        (tmp_path / "none", "FileNotFoundError"),
        (tmp_path, "IsADirectoryError"),
        (binary, "UnicodeDecodeError"),
    ):
        with pytest.raises(SettingsError) as error:
            MasterKey.of_file(file)
        assert str(error.value) == f"key file `{file}`: {what}; make one: celosia key {file}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_an_installation_makes_its_key_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = home / ".config" / "celosia" / "key"
    key = installation_key(None)
    captured = capsys.readouterr()
    assert captured.err == f"celosia: made a new key in {file}; every worker of one deployment needs the same file\n"
    assert captured.out == ""
    assert file.read_text().strip() not in captured.err
    assert installation_key(None).derive("a") == key.derive("a") == MasterKey.of_file(file).derive("a")
    assert capsys.readouterr() == ("", "")


def test_the_configuration_folder_of_the_user_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "settings"))
    installation_key(None)
    assert [path.relative_to(home) for path in home.rglob("key")] == [Path("settings/celosia/key")]


def test_a_key_is_not_made_where_somebody_named_one_or_only_looks(home: Path) -> None:
    for file, create in ((home / "named", True), (None, False)):
        with pytest.raises(SettingsError, match="FileNotFoundError"):
            installation_key(file, create=create)
    assert list(home.rglob("*")) == []


# --- pseudonyms -------------------------------------------------------------------------------------------------------


def test_a_pseudonym_has_the_id_of_its_key_in_front_and_128_bits_behind() -> None:
    ads = Pseudonyms(MASTER, "ads", DAY)
    names = [ads(f"p{person}".encode(), 0) for person in range(1000)]
    assert len(set(names)) == 1000
    (key_id,) = {name.partition(b".")[0] for name in names}
    assert re.fullmatch(rb"[A-Za-z0-9_-]{6}", key_id)
    for name in names:
        assert re.fullmatch(rb"[A-Za-z0-9_-]{22}", name.partition(b".")[2])
    assert len(urlsafe_b64decode(names[0].partition(b".")[2] + b"==")) * 8 == 128


@given(person=st.binary(max_size=50), at=st.integers(0, DAY - 1))
def test_pseudonyms_cannot_be_linked(person: bytes, at: int) -> None:
    """Purpose, epoch, kind and installation: each alone makes another pseudonym and another key id."""
    names = [
        Pseudonyms(MASTER, "ads", DAY)(person, at),
        Pseudonyms(MASTER, "news", DAY)(person, at),
        Pseudonyms(MASTER, "ads", DAY)(person, at + DAY),
        Pseudonyms(MASTER, "ads", DAY)(person, at - DAY),
        Pseudonyms(MASTER, "ads", DAY, kind="field")(person, at),
        Pseudonyms(MasterKey(bytes(32)), "ads", DAY)(person, at),
    ]
    assert len({name.partition(b".")[0] for name in names}) == len(names)
    assert len({name.partition(b".")[2] for name in names}) == len(names)
    if len(person) > 2:
        assert not any(person in name for name in names)


def test_words_and_numbers_cannot_be_shifted_between_purpose_and_epoch() -> None:
    assert Pseudonyms(MASTER, "ads1", 1)(b"ana", 2) != Pseudonyms(MASTER, "ads", 1)(b"ana", 12)


@given(moments=st.lists(st.integers(-3 * DAY, 3 * DAY), min_size=1))
def test_a_pseudonym_is_the_same_whatever_came_between(moments: list[int]) -> None:
    ads = Pseudonyms(MASTER, "ads", DAY)
    for at in moments:
        assert ads(b"ana", at) == Pseudonyms(MASTER, "ads", DAY)(b"ana", at // DAY * DAY)


def test_a_pseudonym_outlives_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_CACHED", 2)
    ads = Pseudonyms(MASTER, "ads", DAY)
    first = [ads(b"%d" % person, 0) for person in range(5)]
    assert [ads(b"%d" % person, 0) for person in range(5)] == first
    assert len(set(first)) == 5


# --- seals ------------------------------------------------------------------------------------------------------------

TOPICS = ["shop.events", "shop.orders", "Läden"]
partitions = st.integers(0, (1 << 32) - 1)
offsets = st.integers(0, (1 << 63) - 1)


@given(topic=st.sampled_from(TOPICS), partition=partitions, offset=offsets)
def test_who_holds_the_key_reads_where_the_raw_record_lies(topic: str, partition: int, offset: int) -> None:
    token = Seal(MASTER, "ads")(topic, partition, offset)
    assert re.fullmatch(rb"[0-9a-f]{32}", token)
    assert Seal(MASTER, "ads").open(token, TOPICS) == (topic, partition, offset)


def test_no_two_places_and_no_two_purposes_share_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_RUNS", 3)
    seals = [Seal(MASTER, "ads"), Seal(MASTER, "news"), Seal(MasterKey(bytes(32)), "ads")]
    places = [(topic, partition, offset) for offset in range(200) for topic in TOPICS for partition in range(2)]
    tokens = [seal(*place) for seal in seals for place in places]
    assert len(set(tokens)) == len(tokens)
    assert [seal(*place) for seal in seals for place in places] == tokens


@pytest.mark.parametrize(
    "other",
    [
        Seal(MASTER, "news")("shop.events", 3, 1042),
        Seal(MasterKey(bytes(32)), "ads")("shop.events", 3, 1042),
        Seal(MASTER, "ads")("another.topic", 3, 1042),
        b"00" * 16,
    ],
)
def test_another_key_purpose_or_topic_is_refused(other: bytes) -> None:
    with pytest.raises(SettingsError) as error:
        Seal(MASTER, "ads").open(other, TOPICS)
    assert str(error.value) == "the sealed source was made with another key, for another purpose or for another topic"


@pytest.mark.parametrize("garbage", [b"", b"42", b"zz" * 16, b"00" * 15, b"00" * 17, b"00" * 32, b"\xff" * 32])
def test_garbage_is_refused_and_leaves_nothing_behind(garbage: bytes) -> None:
    seal = Seal(MASTER, "ads")
    with pytest.raises(SettingsError) as error:
        seal.open(garbage, TOPICS)
    assert str(error.value) == "not a sealed source: wanted 32 hexadecimal digits"
    assert seal.open(seal("shop.events", 3, 1042), TOPICS) == ("shop.events", 3, 1042)
