"""The C kernels under the decoders, held to Python's own text, numbers, times and to ClickHouse's checksum.

The headers are compiled here with the undefined-behaviour sanitizer, once as the machine has it and once without
SSE2, and every argument lies against memory that cannot be touched (kernels.c).
"""

import base64
import ctypes
import datetime
import itertools
import json
import math
import random
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from decimal import Context, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from clickhouse_cityhash.cityhash import CityHash128
from hypothesis import example, given, settings
from hypothesis import strategies as st

HERE = Path(__file__).parent
HEADERS = HERE.parents[2] / "_native"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
UINT64_MAX = 2**64 - 1
PIECES = [bytes([byte]) for byte in range(256)] + [
    b"a" * 15, b"b" * 16, b"\xc3\xa9", b"\xe2\x82\xac", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b'"', b"\\",
]  # fmt: skip

repeatable = settings(derandomize=True, deadline=None, max_examples=300)


class Kernels:
    """One compiled shape of the kernels. What is not the kind of text a call asks for comes back as None."""

    def __init__(self, library: Path) -> None:
        self.path = library
        self._library = ctypes.CDLL(str(library))
        self._out = ctypes.create_string_buffer(1 << 21)

    def call(self, name: str, data: bytes, *more: object) -> int:
        function = self._library[f"test_{name}"]
        function.restype = ctypes.c_ssize_t if name not in _RETURNING_INT else ctypes.c_int
        result: int = function(data, ctypes.c_size_t(len(data)), *more)
        return result

    def to_bytes(self, name: str, data: bytes) -> bytes | None:
        size = self.call(name, data, self._out)
        return None if size < 0 else ctypes.string_at(self._out, size)

    def format(self, kind: str, value: float) -> str:
        if kind == "double":
            argument: ctypes.c_double | ctypes.c_int64 | ctypes.c_uint64 = ctypes.c_double(value)
        else:
            argument = ctypes.c_int64(int(value)) if kind == "int64" else ctypes.c_uint64(int(value))
        size: int = self._library[f"test_format_{kind}"](argument, self._out)
        return ctypes.string_at(self._out, size).decode("ascii")

    def parse(self, name: str, text: str) -> int | None:
        out = ctypes.c_uint64() if name == "parse_uint64" else ctypes.c_int64()
        return None if self.call(name, text.encode(), ctypes.byref(out)) < 0 else out.value

    def parse_double(self, text: str) -> tuple[int, float]:
        out = ctypes.c_double(math.nan)
        return self.call("parse_double", text.encode(), ctypes.byref(out)), out.value

    def unescape(self, inside: bytes) -> bytes | int:
        """The text, or where the escape is that JSON does not have."""
        bad = ctypes.c_size_t(len(inside) + 1)
        size = self.call("json_unescape", inside, self._out, ctypes.byref(bad))
        return bad.value if size == -2 else ctypes.string_at(self._out, size)

    def limit_allocations(self, count: int = 2**31 - 1) -> None:
        self._library.test_limit_allocations(ctypes.c_int(count))

    def cityhash128(self, data: bytes) -> bytes:
        out = (ctypes.c_uint64 * 2)()
        self.call("cityhash128", data, out)
        return struct.pack("<QQ", *out)


_RETURNING_INT = {
    "parse_double", "parse_int64", "parse_uint64", "parse_integral", "parse_rfc3339", "parse_epoch_seconds",
    "utf8_is_valid", "severity_of_level",
}  # fmt: skip


def _compile(directory: Path, *flags: str) -> Kernels:
    library = directory / "kernels.so"
    sanitizer = ["-fsanitize=undefined", "-fno-sanitize-recover"]
    # -iquote, not -I: our time.h must not stand in for the system's.
    shape = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-iquote", str(HEADERS), *WARNINGS, *sanitizer, *flags]
    subprocess.run(["gcc", *shape, str(HERE / "kernels.c"), "-o", str(library)], check=True)
    return Kernels(library)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return _compile(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session", params=["sse2", "portable"])
def text_kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    flags = ["-U__SSE2__"] if request.param == "portable" else []
    return _compile(tmp_path_factory.mktemp(request.param), *flags)


def test_a_kernel_that_reads_one_byte_too_far_would_end_the_process(kernels: Kernels) -> None:
    call = f"import ctypes; ctypes.CDLL({str(kernels.path)!r}).test_read_one_too_far(b'123', ctypes.c_size_t(3))"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == -signal.SIGSEGV


def _mixtures(seed: int, count: int) -> Iterator[bytes]:
    chooser = random.Random(seed)
    for _ in range(count):
        yield b"".join(chooser.choice(PIECES) for _ in range(chooser.randrange(12)))


# ---- Text ----


def _assert_repaired(kernels: Kernels, data: bytes) -> None:
    text = data.decode("utf-8", "replace").encode()
    assert kernels.to_bytes("append_text", data) == text
    assert kernels.call("utf8_is_valid", data) == (text == data)


def test_text_is_repaired_as_python_does_for_every_two_bytes_and_every_edge_of_longer_ones(
    text_kernels: Kernels,
) -> None:
    edges = bytes.fromhex("00 41 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
    for length, alphabet in ((0, edges), (1, bytes(range(256))), (2, bytes(range(256))), (3, edges)):
        for data in itertools.product(alphabet, repeat=length):
            _assert_repaired(text_kernels, bytes(data))


def test_text_is_repaired_as_python_does_at_any_distance_from_a_word_s_edge(text_kernels: Kernels) -> None:
    for data in _mixtures(seed=1, count=10_000):
        _assert_repaired(text_kernels, data)
    for before in range(40):
        for after in (0, 1, 3, 4, 15, 16, 17):
            _assert_repaired(text_kernels, b"a" * before + b"\xe2\x82" + b"z" * after)


@given(st.text(max_size=60), st.integers(0, 300))
@repeatable
def test_a_cut_falls_on_the_last_edge_of_a_character_that_fits(kernels: Kernels, text: str, most: int) -> None:
    data = text.encode("utf-8", "replace")
    cut = kernels.call("utf8_floor", data, ctypes.c_size_t(most))
    assert data[:cut] == data[:most].decode("utf-8", "ignore").encode()


def test_json_strings_are_escaped_as_json_dumps_does(text_kernels: Kernels) -> None:
    for data in itertools.chain([bytes(range(256)), b""], _mixtures(seed=2, count=10_000)):
        text = json.dumps(data.decode("utf-8", "replace"), ensure_ascii=False)
        assert text_kernels.to_bytes("append_json_string", data) == text.encode()


def test_a_scan_stops_at_the_first_quote_backslash_or_control(text_kernels: Kernels) -> None:
    for data in _mixtures(seed=3, count=5_000):
        stops = (at for at, byte in enumerate(data) if byte in b'"\\' or byte < 0x20)
        assert text_kernels.call("scan_json_string", data) == next(stops, len(data))
    for byte in range(256):
        for at in (0, 15, 16, 40):
            stop = at if byte in b'"\\' or byte < 0x20 else at + 3
            assert text_kernels.call("scan_json_string", b"x" * at + bytes([byte]) + b"yy") == stop


def test_escapes_are_undone_as_json_loads_does_and_lone_surrogates_replaced(kernels: Kernels) -> None:
    chooser = random.Random(4)
    short = [*'"\\/bfnrt']
    units = [0, 0x41, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000, 0xFFFF]
    for _ in range(10_000):
        parts = []
        for _ in range(chooser.randrange(7)):
            unit = f"{chooser.choice(units):04x}"
            escape = chooser.choice([chooser.choice(short), f"u{unit}", f"u{unit.upper()}"])
            parts.append(chooser.choice(["plain", "é😀", "\\" + escape, "\\" + escape]))
        inside = "".join(parts)
        text = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(f'"{inside}"'))
        assert kernels.unescape(inside.encode()) == text.encode()


def test_an_escape_or_the_end_ends_a_sequence_that_is_not_utf8(kernels: Kernels) -> None:
    assert kernels.unescape(b"\xe2\x82\\u0041\xc3\\n\xa9\xf0\x9f") == "\ufffdA\ufffd\n\ufffd\ufffd".encode()


@pytest.mark.parametrize(
    ("inside", "at"),
    [
        ("\\", 0), ("ab\\", 2), ("ab\\x", 2), ("\\u", 0), ("\\u12", 0), ("\\u12g4", 0), ("\\n\\u123", 2),
        ("\\U0041", 0), ("\\ud83d\\u12", 6), ("\\ud83d\\", 6), ("\\ud83d\\q", 6), ("\\0", 0), ("\\u+041", 0),
        ("\\u 041", 0),
    ],
)  # fmt: skip
def test_an_escape_json_does_not_have_is_pointed_at(kernels: Kernels, inside: str, at: int) -> None:
    assert kernels.unescape(inside.encode()) == at


@pytest.mark.parametrize("name", ["append_text", "append_json_string", "append_base64"])
def test_memory_that_runs_out_at_any_growth_is_told(kernels: Kernels, name: str) -> None:
    data = b"".join(_mixtures(seed=11, count=500))
    whole = kernels.to_bytes(name, data)
    try:
        for allocations in range(40):
            kernels.limit_allocations(allocations)
            left = kernels.to_bytes(name, data)
            if left is not None:
                break
    finally:
        kernels.limit_allocations()
    assert left == whole
    assert allocations > 0


# ---- Base64 and hex ----


def test_base64_is_written_padded_and_read_in_either_alphabet_padded_or_not(kernels: Kernels) -> None:
    chooser = random.Random(5)
    for length in [*range(70), 1000, 5001]:
        data = chooser.randbytes(length)
        padded = base64.b64encode(data)
        assert kernels.to_bytes("append_base64", data) == padded
        mixed = padded.replace(b"+", b"-", 3).replace(b"/", b"_", 2)
        for text in (padded, padded.rstrip(b"="), base64.urlsafe_b64encode(data), mixed):
            assert kernels.to_bytes("base64_decode", text) == data


def test_bits_left_over_in_base64_are_ignored(kernels: Kernels) -> None:
    assert kernels.to_bytes("base64_decode", b"AB") == b"\0"
    assert kernels.to_bytes("base64_decode", b"AAB=") == b"\0\0"


def test_what_is_not_base64_is_refused(kernels: Kernels) -> None:
    misfits = b"A = == === ==== A=== AA= AAAA= AAAAA AA=A A=A= AA==AA== AAA=AAAA".split()
    digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
    for text in misfits + [b"AA" + bytes([byte]) + b"A" for byte in range(256) if byte not in digits]:
        assert kernels.to_bytes("base64_decode", text) is None


def test_hex_is_written_in_lower_case_and_read_in_any(kernels: Kernels) -> None:
    for data in (bytes(range(256))[:length] for length in [*range(40), 256]):
        digits = data.hex().encode()
        assert kernels.to_bytes("hex_encode", data) == digits
        for text in (digits, digits.upper(), digits.title()):
            assert kernels.to_bytes("hex_decode", text) == data


def test_what_is_not_hex_is_refused(kernels: Kernels) -> None:
    strangers = [byte for byte in range(256) if byte not in b"0123456789abcdefABCDEF"]
    pairs = [pair for byte in strangers for pair in (bytes([byte, 65]), bytes([48, byte]))]
    for text in [b"0", b"abc", *pairs]:
        assert kernels.to_bytes("hex_decode", text) is None


# ---- Levels ----

LEVELS = {
    1: "trace", 5: "debug", 9: "info information notice", 13: "warn warning", 17: "error err",
    21: "critical fatal crit alert emergency emerg panic", 9 | 0x100: "heartbeat",
}  # fmt: skip


def test_level_words_have_their_severity_in_any_case_and_nothing_else_has_one(kernels: Kernels) -> None:
    words = {word: severity for severity, names in LEVELS.items() for word in names.split()}
    for word, severity in words.items():
        for spelling in (word, word.upper(), word.title()):
            assert kernels.call("severity_of_level", spelling.encode()) == severity
        for stranger in {word[:-1], word[1:], word + "s", word + " ", word + "\0", "@" + word[1:]} - words.keys():
            assert kernels.call("severity_of_level", stranger.encode()) == -1
    for stranger in ("", "x" * 5000, "ınfo", "err\u212a"):
        assert kernels.call("severity_of_level", stranger.encode()) == -1


# ---- Numbers ----


def _double(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


def _edge_doubles() -> Iterator[float]:
    """Powers of ten and of two, their neighbours, and where repr changes its layout."""
    tens = (float(f"{digits}e{power}") for power in range(-324, 309) for digits in ("1", "2", "5", "9.5", "123.456"))
    twos = (math.ldexp(1.0, power) for power in range(-1074, 1024))
    layout = (0.0, 3.0, 1e15, 1e16, 1e17, 123456789012345680.0, 2.0**53 + 2, 1e-4, 1e-5, 0.00012345, 0.1 + 0.2, 1 / 3)
    for value in itertools.chain(tens, twos, layout):
        for near in (math.nextafter(value, 0.0), value, math.nextafter(value, math.inf)):
            if math.isfinite(near):
                yield from (near, -near)


def _random_doubles(seed: int, count: int) -> Iterator[float]:
    chooser = random.Random(seed)
    for _ in range(count):
        value = _double(chooser.getrandbits(64))
        if math.isfinite(value):
            yield value
        yield _double(chooser.getrandbits(chooser.randrange(1, 53)))  # subnormal
        yield chooser.randrange(10 ** chooser.randrange(1, 18)) / 10 ** chooser.randrange(8)


def _assert_read_as_python_does(kernels: Kernels, text: str) -> None:
    expected = float(text)
    result, value = kernels.parse_double(text)
    assert (result, struct.pack("<d", value)) == (int(math.isinf(expected)), struct.pack("<d", expected)), text


def test_doubles_are_written_as_repr_does_and_read_back_the_same(kernels: Kernels) -> None:
    for value in itertools.chain(_edge_doubles(), _random_doubles(seed=6, count=10_000)):
        assert kernels.format("double", value) == repr(value)
        _assert_read_as_python_does(kernels, repr(value))


def test_decimals_with_more_digits_than_a_double_has_are_rounded_as_python_does(kernels: Kernels) -> None:
    for value in _edge_doubles():
        _assert_read_as_python_does(kernels, f"{value:.19e}")
        _assert_read_as_python_does(kernels, f"{value:.40e}")
    chooser = random.Random(7)
    for _ in range(20_000):
        digits = chooser.randrange(10 ** chooser.randrange(1, 40))
        fraction = chooser.randrange(10 ** chooser.randrange(1, 20))
        _assert_read_as_python_does(kernels, f"{digits}.{fraction}e{chooser.randrange(-380, 330)}")


def _middle_above(bits: int) -> str:
    """The decimal exactly between two neighbouring doubles, in full."""
    exact = Context(prec=1200)
    above = Decimal(2) ** 1024 if bits == 0x7FEF_FFFF_FFFF_FFFF else Decimal(_double(bits + 1))
    return f"{exact.divide(exact.add(Decimal(_double(bits)), above), Decimal(2)):e}"


def test_the_middle_between_two_doubles_goes_to_even_and_the_least_digit_more_or_less_decides(
    kernels: Kernels,
) -> None:
    chooser = random.Random(8)
    largest = 0x7FEF_FFFF_FFFF_FFFF
    samples = [0, 1, 2, 3, 0xF_FFFF_FFFF_FFFF, 0x10_0000_0000_0000, largest, largest - 1]
    samples += [chooser.randrange(largest) for _ in range(150)] + [chooser.getrandbits(52) for _ in range(50)]
    samples += [struct.unpack("<Q", struct.pack("<d", chooser.uniform(2**53, 2**70)))[0] for _ in range(100)]
    for bits in samples:
        digits, power = _middle_above(bits).split("e")
        digits = digits if "." in digits else digits + ".0"
        last = digits.rstrip("0.")[-1]
        below = digits.rstrip("0.")[:-1] + str(int(last) - 1) + ("" if "." in digits.rstrip("0.") else ".")
        for near in ("", "1", "0" * 40 + "1", "0" * 1000 + "7", "0" * 900):
            _assert_read_as_python_does(kernels, f"{digits}{near}e{power}")
        _assert_read_as_python_does(kernels, f"{below}{'9' * 30}e{power}")
        _assert_read_as_python_does(kernels, f"{below}{'9' * 1500}e{power}")


@pytest.mark.parametrize(
    "text",
    [
        "0", "-0", "-0.0", "1E5", "1e+5", "0e999999999999999999999999", "1e99999999999999999999", "-1e400", "1e309",
        "1e-99999999999999999999999", "1e0000000000000000000000005", "179769313486231570000e289",
        "2.4703282292062327e-324", "1.7976931348623158e308", "1.7976931348623159e308", "2.4703282292062328e-324",
        "9007199254740993",
        f"0.{'0' * 400}1", f"0.{'0' * 400}1e401", "1" + "0" * 400, f"1{'0' * 400}e-400", f"{'9' * 30}.{'9' * 900}",
    ],
)  # fmt: skip
def test_the_far_ends_of_the_grammar_are_read_as_python_does(kernels: Kernels, text: str) -> None:
    _assert_read_as_python_does(kernels, text)


NOT_JSON_NUMBERS = [
    "", "-", "+1", "01", "-01", "00", "1.", ".5", "-.5", "1e", "1e+", "1e5.", "0x10", "1 ", " 1", "inf", "nan", "--1",
    "1.e5", "1_0", "1e5e5", "-a", "1.5f", "1,5", "1.2.3", "1e 5", "12345678/", "12345678:", "1.12345678\0", "١",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_JSON_NUMBERS)
def test_what_is_not_a_json_number_is_refused(kernels: Kernels, text: str) -> None:
    assert kernels.parse_double(text)[0] == -1
    for name in ("parse_int64", "parse_uint64", "parse_integral", "parse_epoch_seconds"):
        assert kernels.parse(name, text) is None


@given(st.text(alphabet="0123456789.eE+-/:x", max_size=24))
@repeatable
def test_exactly_the_json_grammar_is_a_number(kernels: Kernels, text: str) -> None:
    grammatical = re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", text) is not None
    assert (kernels.parse_double(text)[0] >= 0) == grammatical


def test_integers_are_written_and_read_over_their_whole_range(kernels: Kernels) -> None:
    chooser = random.Random(9)
    edges = [sign * 10**power + step for power in range(20) for sign in (1, -1) for step in (-1, 0, 1)]
    edges += [INT64_MIN, INT64_MIN - 1, INT64_MAX, INT64_MAX + 1, UINT64_MAX, UINT64_MAX + 1, 10**20, -(10**20), 10**30]
    for value in edges + [chooser.randrange(INT64_MIN, UINT64_MAX) >> chooser.randrange(64) for _ in range(10_000)]:
        is_int64, is_uint64 = INT64_MIN <= value <= INT64_MAX, 0 <= value <= UINT64_MAX
        if is_int64:
            assert kernels.format("int64", value) == str(value)
        if is_uint64:
            assert kernels.format("uint64", value) == str(value)
        assert kernels.parse("parse_int64", str(value)) == (value if is_int64 else None)
        assert kernels.parse("parse_uint64", str(value)) == (value if is_uint64 else None)
        assert kernels.parse("parse_integral", str(value)) == (value if is_int64 else None)


@given(
    st.from_regex(r"-?(0|[1-9][0-9]{0,21})(\.(0{1,9}|[0-9]{1,12}0{0,3}))?([eE][+-]?0?[0-9]{1,2})?", fullmatch=True),
)
@repeatable
@example("9223372036854775807.0")
@example("-922337203685477580800e-2")
@example("9.223372036854775808e18")
@example("0e99")
def test_decimals_become_integers_and_nanoseconds_exactly(kernels: Kernels, text: str) -> None:
    value = Fraction(text)
    integral = value.denominator == 1 and INT64_MIN <= value <= INT64_MAX
    assert kernels.parse("parse_integral", text) == (int(value) if integral else None)
    nanoseconds = math.trunc(value * 10**9)
    assert kernels.parse("parse_epoch_seconds", text) == min(max(nanoseconds, INT64_MIN), INT64_MAX)


def test_a_number_of_seconds_saturates_however_far_its_exponent_goes(kernels: Kernels) -> None:
    for text, nanoseconds in {
        "1e99999999999999999999": INT64_MAX,
        "-1e99999999999999999999": INT64_MIN,
        "1e-99999999999999999999": 0,
        "0e99999999999999999999": 0,
        "0." + "0" * 500 + "17e501": 1_700_000_000,
        "-0.9999999999": -999_999_999,
    }.items():
        assert kernels.parse("parse_epoch_seconds", text) == nanoseconds


# ---- Time ----

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _saturated(value: int) -> int:
    return min(max(value, INT64_MIN), INT64_MAX)


@given(
    st.datetimes(),
    st.text("0123456789", max_size=30),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.sampled_from("Tt "),
    st.sampled_from(".,"),
    st.sampled_from(["{:02}:{:02}", "{:02}{:02}"]),
)
@repeatable
def test_rfc3339_is_read_to_the_nanosecond(
    kernels: Kernels, at: datetime.datetime, fraction: str, east: int, separator: str, point: str, layout: str
) -> None:
    hours, minutes = divmod(abs(east), 60)
    zone = ("-" if east < 0 else "+") + layout.format(hours, minutes)
    zones = [zone] + ["Z", "z"] * (east == 0) + [zone[:3]] * (minutes == 0)
    seconds = (at.replace(tzinfo=datetime.UTC) - EPOCH) // datetime.timedelta(seconds=1) - east * 60
    expected = _saturated(seconds * 10**9 + int(fraction[:9].ljust(9, "0")))
    text = at.replace(microsecond=0).isoformat().replace("T", separator) + (point + fraction if fraction else "")
    for zone in zones:
        assert kernels.parse("parse_rfc3339", text + zone) == expected


def test_every_day_of_four_centuries_is_counted(kernels: Kernels) -> None:
    first = datetime.date(1700, 1, 1).toordinal()
    for ordinal in range(first, first + 146_097 + 366, 5):
        day = datetime.date.fromordinal(ordinal)
        nanoseconds = _saturated((ordinal - EPOCH.toordinal()) * 86_400 * 10**9)
        assert kernels.parse("parse_rfc3339", f"{day.isoformat()}T00:00:00Z") == nanoseconds


def test_a_month_has_its_days_and_no_more(kernels: Kernels) -> None:
    for year, month, day in itertools.product((1, 1900, 2000, 2023, 2024, 9999), range(14), range(33)):
        try:
            datetime.date(year, month, day)
            exists = True
        except ValueError:
            exists = False
        read = kernels.parse("parse_rfc3339", f"{year:04}-{month:02}-{day:02}T12:00:00Z")
        assert (read is not None) == exists


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("2016-12-31T23:59:60Z", 1_483_228_800 * 10**9),
        ("2016-12-31T23:59:60.25Z", 1_483_228_800_250_000_000),
        ("1969-12-31T23:59:59.9999999999Z", -1),
        ("0001-01-01T00:00:00Z", INT64_MIN),
        ("9999-12-31T23:59:59Z", INT64_MAX),
        ("2262-04-11T23:47:16.854775807Z", INT64_MAX),
        ("2262-04-11T23:47:16.854775808Z", INT64_MAX),
        ("1677-09-21T00:12:43.145224192Z", INT64_MIN),
        ("1677-09-21T00:12:43.145224193Z", INT64_MIN + 1),
    ],
)
def test_the_edges_of_time_are_where_the_rules_put_them(kernels: Kernels, text: str, nanoseconds: int) -> None:
    assert kernels.parse("parse_rfc3339", text) == nanoseconds


@pytest.mark.parametrize(
    "text",
    [
        "", "2024-02-29", "2024-02-29T00:00:00", "0000-01-01T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T23:60:00Z",
        "2024-01-01T23:59:61Z", "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00 Z", "2024-01-01T00:00:00+24:00",
        "2024-01-01T00:00:00+1:00", "2024-01-01T00:00:00+01:60", "2024-01-01T00:00:00ZZ", "2024-01-01x00:00:00Z",
        "2024-1-01T00:00:00ZZ", "-024-01-01T00:00:00Z", "2024-01-01T00:00:00.5", "2024-01-01T00:00:00.5+",
        "2024-01-01T00:00:00+01:", "2024-01-01T00:00:00+010", "2024/01/01T00:00:00Z", "2024-01-01T00:00:0:Z",
        "2024-01-01T00:00:00+01-00", "2024-01-01T00:00:00:", "2024-01-01T00-00-00Z", "2024-01-01T00:00:00\u22121",
    ],
)  # fmt: skip
def test_what_is_not_a_time_is_refused(kernels: Kernels, text: str) -> None:
    assert kernels.parse("parse_rfc3339", text) is None


# ---- Checksums ----

# Compressed blocks out of a table ClickHouse 26.9 wrote: 16 bytes of checksum, then what it covers.
STORED_BLOCKS = [
    "46d210a13ca9f932f20a97997b6c22b18225000000b80b00007f303132333435360700ffffffffffffffffffffffa4503630313233",
    "997b814ba80e191bb8da640a1393eaf5820e000000040000004000010203",
]


@pytest.mark.parametrize("block", STORED_BLOCKS)
def test_the_checksum_is_the_one_clickhouse_stores(kernels: Kernels, block: str) -> None:
    stored = bytes.fromhex(block)
    assert kernels.cityhash128(stored[16:]) == stored[:16]


def test_the_checksum_is_the_same_as_the_package_s_for_every_length(kernels: Kernels) -> None:
    chooser = random.Random(10)
    for length in [*range(1101), *(chooser.randrange(1101, 1 << 20) for _ in range(20))]:
        data = chooser.randbytes(length)
        number = CityHash128(data)
        assert kernels.cityhash128(data) == struct.pack("<QQ", number >> 64, number & UINT64_MAX)
