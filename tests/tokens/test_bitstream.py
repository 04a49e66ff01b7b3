import re
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmcodec.tokens.bitstream import (
    MAX_HEADER_BYTES,
    BitstreamError,
    CodeFile,
    Header,
    count_frames,
    dumps,
    loads,
    pack_bits,
    read_header,
    unpack_bits,
)

FORMATS_MD = Path(__file__).parents[2] / "docs" / "formats.md"

SPEECH = Header(  # 50 frames a second, 8 x 1024 codes, 2.5 chunks
    sample_rate=16_000,
    hop_length=320,
    num_codebooks=8,
    codebook_size=1024,
    num_samples=39_999,
    model_id="dmcodec-small",
    model_hash="0123456789abcdef",
)
TINY = replace(
    SPEECH,
    num_codebooks=2,
    codebook_size=4,
    num_samples=800,
    model_id="tiny",
    model_hash="0011223344556677",
)
TINY_CODES = np.array([[0, 1, 2], [3, 2, 1]])


def make_codes(header: Header, seed: int = 0) -> np.ndarray:
    shape = (header.num_codebooks, header.num_frames)
    return np.random.default_rng(seed).integers(0, header.codebook_size, shape)  # [K, L]


def make_header(num_codebooks: int, codebook_size: int, num_frames: int, hop: int = 1) -> Header:
    return replace(
        SPEECH,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        num_samples=num_frames * hop,
        hop_length=hop,
    )


class PlainFile:
    """A second reader, written from docs/formats.md alone with plain integers, that can also
    put right checksums back after an edit."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.body_bytes = 31 + data[30]
        self.num_codebooks, last_code, _, hop, num_samples = struct.unpack_from("<BHIHI", data, 5)
        self.bits = last_code.bit_length()
        self.num_frames = -(-num_samples // hop)
        self.chunk_frames = -(-4000 // (self.num_codebooks * self.bits))

    def chunks(self) -> list[tuple[int, int, int]]:
        """Gives (offset, bytes of packed codes, frames) of each chunk."""
        found, offset = [], self.body_bytes + 4
        for start in range(0, self.num_frames, self.chunk_frames):
            frames = min(self.chunk_frames, self.num_frames - start)
            packed_bytes = -(-frames * self.num_codebooks * self.bits // 8)
            found.append((offset, packed_bytes, frames))
            offset += 6 + packed_bytes
        return found

    def codes(self) -> np.ndarray:
        values = []
        for offset, packed_bytes, frames in self.chunks():
            packed = self.data[offset + 6 : offset + 6 + packed_bytes]
            digits = "".join(f"{byte:08b}" for byte in packed)
            for index in range(frames * self.num_codebooks):
                values.append(int(digits[index * self.bits : (index + 1) * self.bits], 2))
        return np.array(values).reshape(self.num_frames, self.num_codebooks).T

    def repair(self) -> bytes:
        """Puts right checksums everywhere, so that only the content can be refused."""
        frame_major = [code for frame in self.codes().T.tolist() for code in frame]
        codes_checksum = zlib.crc32(struct.pack(f"<{len(frame_major)}H", *frame_major))
        struct.pack_into("<I", self.data, 18, codes_checksum)
        self.repair_header()
        body = bytes(self.data[: self.body_bytes])
        for number, (offset, packed_bytes, frames) in enumerate(self.chunks()):
            packed = bytes(self.data[offset + 6 : offset + 6 + packed_bytes])
            covered = body + struct.pack("<IH", number, frames) + packed
            struct.pack_into("<HI", self.data, offset, frames, zlib.crc32(covered))
        return bytes(self.data)

    def repair_header(self) -> bytes:
        checksum = zlib.crc32(self.data[: self.body_bytes])
        struct.pack_into("<I", self.data, self.body_bytes, checksum)
        return bytes(self.data)


def edit_header(data: bytes, layout: str, offset: int, value: int) -> PlainFile:
    edited = bytearray(data)
    struct.pack_into(layout, edited, offset, value)
    return PlainFile(bytes(edited))


@settings(max_examples=300)
@given(
    num_codebooks=st.integers(1, 16) | st.sampled_from([64, 255]),
    codebook_size=st.integers(2, 2**16) | st.sampled_from([2, 3, 1000, 1024, 1025, 2**16]),
    num_frames=st.integers(1, 400),
    hop=st.integers(1, 2**16 - 1),
    missing_samples=st.integers(0, 2**16),
    seed=st.integers(0, 2**32 - 1),
)
@example(1, 2, 4000, 320, 0, 0)
@example(1, 2, 8001, 320, 319, 0)
def test_codes_of_any_size_come_back(
    num_codebooks: int,
    codebook_size: int,
    num_frames: int,
    hop: int,
    missing_samples: int,
    seed: int,
) -> None:
    header = make_header(num_codebooks, codebook_size, num_frames, hop)
    header = replace(header, num_samples=header.num_samples - missing_samples % hop)
    codes = make_codes(header, seed)

    data = dumps(codes, header)
    result = loads(data)

    np.testing.assert_array_equal(result.codes, codes)
    assert result.codes.dtype == np.int64
    assert result.header == read_header(data[:MAX_HEADER_BYTES]) == header
    assert result.is_frame_valid.all()
    assert result.damaged_chunks == ()
    assert len(data) == header.file_bytes


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int64, np.uint64])
def test_integer_type_of_codes_does_not_change_the_file(dtype: type) -> None:
    codes = make_codes(SPEECH)
    assert dumps(codes.astype(dtype), SPEECH) == dumps(codes, SPEECH)


@given(bits=st.integers(1, 16), num_values=st.integers(0, 50), seed=st.integers(0, 2**32 - 1))
def test_packed_bits_are_the_binary_digits(bits: int, num_values: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**bits, num_values)
    digits = "".join(f"{value:0{bits}b}" for value in values)
    digits += "0" * (-len(digits) % 8)

    packed = pack_bits(values, bits)

    assert packed == bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits), 8))
    np.testing.assert_array_equal(unpack_bits(packed, num_values, bits), values)


def test_ten_bit_codes_packed_by_hand() -> None:
    # 0000000001 1111111111 1000000000 0101010101, by hand in groups of eight
    packed = bytes([0b00000000, 0b01111111, 0b11111000, 0b00000001, 0b01010101])
    assert pack_bits(np.array([1, 1023, 512, 341]), 10) == packed


def test_example_in_the_document_is_what_is_written() -> None:
    block = re.search(r"```hex\n(.*?)```", FORMATS_MD.read_text("utf-8"), re.DOTALL)
    assert block is not None
    documented = bytes.fromhex(block[1])

    assert dumps(TINY_CODES, TINY) == documented
    assert documented[-2:] == bytes([0b00_11_01_10, 0b10_01_0000])  # frames (0,3) (1,2) (2,1)
    np.testing.assert_array_equal(loads(documented).codes, TINY_CODES)


@pytest.mark.parametrize(("num_codebooks", "codebook_size"), [(8, 1024), (3, 1000), (1, 2)])
def test_reader_made_from_the_document_agrees(num_codebooks: int, codebook_size: int) -> None:
    header = make_header(num_codebooks, codebook_size, num_frames=4500)
    codes = make_codes(header)
    data = dumps(codes, header)

    plain = PlainFile(data)

    np.testing.assert_array_equal(plain.codes(), codes)
    assert plain.repair() == data


@settings(max_examples=300)
@given(
    num_codebooks=st.integers(1, 255),
    codebook_size=st.integers(2, 2**16),
    num_samples=st.integers(1, 2**32 - 1),
    hop_length=st.integers(1, 2**16 - 1),
)
def test_file_is_payload_and_two_percent_and_64_bytes(
    num_codebooks: int, codebook_size: int, num_samples: int, hop_length: int
) -> None:
    header = replace(
        SPEECH,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        num_samples=num_samples,
        hop_length=hop_length,
        model_id="m" * 22,
    )
    payload_bytes = header.num_frames * num_codebooks * header.bits_per_code / 8
    assert header.header_bytes < 64
    assert header.file_bytes < 1.02 * payload_bytes + 64


@pytest.mark.parametrize("seconds", [1, 60, 3600])
def test_eight_books_of_1024_at_50_hz_are_4_kbps(seconds: int) -> None:
    header = replace(SPEECH, num_samples=16_000 * seconds)
    data = dumps(make_codes(header), header)
    assert header.bitrate_kbps == 4.0
    assert 500 * seconds < len(data) < 500 * seconds * 1.02 + 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 2**32),
        ("sample_rate", 16_000.0),
        ("hop_length", 0),
        ("hop_length", 2**16),
        ("num_codebooks", 0),
        ("num_codebooks", 256),
        ("num_codebooks", np.uint8(8)),
        ("codebook_size", 1),
        ("codebook_size", 2**16 + 1),
        ("num_samples", 0),
        ("num_samples", -1),
        ("num_samples", 2**32),
        ("model_id", ""),
        ("model_id", "m" * 23),
        ("model_id", "modèle"),
        ("model_id", "line\n"),
        ("model_id", None),
        ("model_hash", "0123456789ABCDEF"),
        ("model_hash", "0123456789abcde"),
        ("model_hash", b"12345678"),
    ],
)
def test_impossible_header_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        replace(SPEECH, **{field: value})


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (TINY_CODES.astype(np.float32), "integers, got float32"),
        (TINY_CODES > 0, "integers, got bool"),
        (TINY_CODES[:1], r"\[2, 3\].*got \[1, 3\]"),
        (TINY_CODES[:, :2], r"\[2, 3\].*got \[2, 2\]"),
        (TINY_CODES[None], r"got \[1, 2, 3\]"),
        (TINY_CODES + 1, "0 to 3, got 1 to 4"),
        (TINY_CODES - 1, "0 to 3, got -1 to 2"),
    ],
)
def test_codes_that_do_not_fit_the_header_are_refused(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dumps(codes, TINY)


def test_damaged_chunk_is_named_and_the_rest_comes_back() -> None:
    codes = make_codes(SPEECH)
    data = bytearray(dumps(codes, SPEECH))
    data[PlainFile(data).chunks()[1][0] + 100] ^= 0x10

    with pytest.raises(BitstreamError, match=r"1 of 3 chunks damaged.*chunk 1: checksum") as caught:
        loads(bytes(data))
    result = loads(bytes(data), on_damage="skip")

    assert caught.value.damaged_chunks == result.damaged_chunks == (1,)
    is_frame_valid = np.ones(125, bool)
    is_frame_valid[50:100] = False
    np.testing.assert_array_equal(result.is_frame_valid, is_frame_valid)
    np.testing.assert_array_equal(result.codes, np.where(is_frame_valid, codes, 0))


def test_wrong_frame_count_does_not_disturb_the_next_chunks() -> None:
    codes = make_codes(SPEECH)
    data = bytearray(dumps(codes, SPEECH))
    struct.pack_into("<H", data, PlainFile(data).chunks()[0][0], 65_535)

    with pytest.raises(BitstreamError, match="chunk 0: it claims 65535 frames instead of 50"):
        loads(bytes(data))
    result = loads(bytes(data), on_damage="skip")

    np.testing.assert_array_equal(result.codes[:, 50:], codes[:, 50:])
    assert result.is_frame_valid.sum() == 75


def test_start_of_a_cut_file_comes_back_on_request() -> None:
    codes = make_codes(SPEECH)
    data = dumps(codes, SPEECH)[:-300]

    with pytest.raises(BitstreamError, match=r"is cut.*chunk 1 of 3"):
        loads(data)
    result = loads(data, on_damage="skip")

    assert result.damaged_chunks == (1, 2)
    np.testing.assert_array_equal(result.codes[:, :50], codes[:, :50])
    assert not result.codes[:, 50:].any()
    assert not result.is_frame_valid[50:].any()


@pytest.mark.parametrize("on_damage", ["raise", "skip"])
def test_bytes_after_the_last_chunk_are_refused(on_damage: str) -> None:
    with pytest.raises(BitstreamError, match="1 bytes follow the last chunk"):
        loads(dumps(make_codes(SPEECH), SPEECH) + b"\0", on_damage=on_damage)


def test_file_without_a_good_chunk_is_refused_on_request_too() -> None:
    data = bytearray(dumps(TINY_CODES, TINY))
    data[-1] ^= 0x80
    with pytest.raises(BitstreamError, match="1 of 1 chunks damaged"):
        loads(bytes(data), on_damage="skip")


def test_chunks_moved_or_taken_from_another_file_are_damaged() -> None:
    header = replace(SPEECH, num_samples=48_000)
    data = dumps(make_codes(header, seed=1), header)
    other = dumps(make_codes(header, seed=2), header)
    first, second, third = (slice(at, at + 506) for at, _, _ in PlainFile(data).chunks())
    mixed = data[: first.start] + data[second] + data[first] + other[third]

    with pytest.raises(BitstreamError) as caught:
        loads(mixed)

    assert caught.value.damaged_chunks == (0, 1, 2)


def test_unknown_on_damage_is_refused() -> None:
    with pytest.raises(ValueError, match="'raise' or 'skip', got 'ignore'"):
        loads(dumps(TINY_CODES, TINY), on_damage="ignore")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a .dmc file"),
        (b"RIFF" + bytes(100), "not a .dmc file.*52 49 46 46"),
        (b"\x89DMC", "ends inside its header, after 4 bytes"),
        (b"\x89DMC\x02", "this is a stream, not a file"),
        (b"\x89DMC\x03", "version 3 .* unknown"),
        (dumps(TINY_CODES, TINY)[:30], "ends inside its header, after 30 bytes"),
        (dumps(TINY_CODES, TINY)[:38], "ends inside its header, after 38 bytes"),
        (dumps(TINY_CODES, TINY).replace(b"tiny", b"Tiny"), "header is damaged"),
    ],
)
@pytest.mark.parametrize("read", [loads, read_header])
def test_bad_header_is_refused(read: Callable[[bytes], object], data: bytes, message: str) -> None:
    with pytest.raises(BitstreamError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("layout", "offset", "value", "message"),
    [
        ("<B", 5, 0, "num_codebooks must be an int from 1"),
        ("<H", 6, 0, "codebook_size must be an int from 2"),
        ("<I", 8, 0, "sample_rate must be an int from 1"),
        ("<H", 12, 0, "hop_length must be an int from 1"),
        ("<I", 14, 0, "num_samples must be an int from 1"),
        ("<B", 31, 0xE9, "ascii"),
        ("<B", 31, 0x1B, "model_id must be"),
    ],
)
def test_impossible_value_with_a_right_checksum_is_refused(
    layout: str, offset: int, value: int, message: str
) -> None:
    edited = bytearray(dumps(TINY_CODES, TINY))
    struct.pack_into(layout, edited, offset, value)
    struct.pack_into("<I", edited, 35, zlib.crc32(edited[:35]))
    with pytest.raises(BitstreamError, match=f"impossible value: .*{message}"):
        loads(bytes(edited))


def test_code_outside_the_codebook_is_refused() -> None:
    data = edit_header(dumps(TINY_CODES, TINY), "<H", 6, 2).repair()  # V = 3, two bits as before
    with pytest.raises(BitstreamError, match="chunk 0: code 3 in a codebook of 3"):
        loads(data)


def test_padding_that_is_not_zero_is_refused() -> None:
    plain = PlainFile(dumps(TINY_CODES, TINY))
    plain.data[-1] |= 0x08
    with pytest.raises(BitstreamError, match="chunk 0: bits after its last code"):
        loads(plain.repair())


def test_wrong_checksum_of_all_codes_is_refused() -> None:
    right = PlainFile(dumps(TINY_CODES, TINY))
    body = bytearray(right.data[:35])
    body[18] ^= 1
    chunk_checksum = zlib.crc32(body + struct.pack("<IH", 0, 3) + right.data[-2:])
    data = body + struct.pack("<IHI", zlib.crc32(body), 3, chunk_checksum) + right.data[-2:]
    for on_damage in ("raise", "skip"):
        with pytest.raises(BitstreamError, match="checksum of all codes"):
            loads(bytes(data), on_damage=on_damage)


@pytest.mark.parametrize("on_damage", ["raise", "skip"])
@pytest.mark.parametrize("num_samples", [3_200_000, 2**32 - 1])
def test_huge_claim_is_refused_before_memory_is_taken(num_samples: int, on_damage: str) -> None:
    honest = make_header(num_codebooks=255, codebook_size=2**16, num_frames=3)
    claim = edit_header(dumps(make_codes(honest), honest), "<I", 14, num_samples).repair_header()

    tracemalloc.start()
    try:
        with pytest.raises(BitstreamError, match="is cut"):
            loads(claim, on_damage=on_damage)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak_bytes < 20_000


def test_memory_stays_in_proportion_to_the_file() -> None:
    header = make_header(num_codebooks=1, codebook_size=2, num_frames=400_000)  # the worst case
    data = dumps(make_codes(header), header)
    data = data[: len(data) // 4 + 1]

    tracemalloc.start()
    try:
        loads(data, on_damage="skip")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # 1 bit -> one int64 and one bool, of which a quarter is in the file: 8 * 9 * 4 = 288
    assert peak_bytes < 330 * len(data)


def mutate_bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def mutate_header_bits(data: bytes, rng: np.random.Generator) -> bytes:
    return mutate_bits(data[:60], rng) + data[60:]


def mutate_run(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 20))
    return data[:start] + rng.bytes(len(data[start : start + length])) + data[start + length :]


def mutate_length(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 20))
    match rng.integers(4):
        case 0:
            return data[:start]
        case 1:
            return data[:start] + data[start + length :]
        case 2:
            return data[:start] + rng.bytes(length) + data[start:]
        case _:
            return data + data[-length:]


def mutate_splice(data: bytes, rng: np.random.Generator) -> bytes:
    """Puts a piece of the file at another place of it, at chunk borders half of the time."""
    if rng.integers(2):
        places = [offset for offset, _, _ in PlainFile(data).chunks()]
        length = 506
    else:
        places = list(range(len(data)))
        length = int(rng.integers(1, len(data)))
    source, target = int(rng.choice(places)), int(rng.choice(places))
    piece = data[source : source + length]
    return data[:target] + piece + data[target + len(piece) :]


def mutate_header_field(data: bytes, rng: np.random.Generator) -> bytes:
    """Edits one field of the header and repairs the checksum of the header alone."""
    layout, offset = [("<B", 5), ("<H", 6), ("<I", 8), ("<H", 12), ("<I", 14), ("<I", 18)][
        rng.integers(6)
    ]
    most = 2 ** (8 * struct.calcsize(layout)) - 1
    edited = bytearray(data)
    (value,) = struct.unpack_from(layout, data, offset)
    choices = [0, 1, most, most // 2, value - 1, value + 1, value * 2, int(rng.integers(most))]
    struct.pack_into(layout, edited, offset, int(rng.choice(choices)) % (most + 1))
    body_bytes = 31 + data[30]
    struct.pack_into("<I", edited, body_bytes, zlib.crc32(edited[:body_bytes]))
    return bytes(edited)


def read_or_none(data: bytes, on_damage: str) -> CodeFile | None:
    try:
        return loads(data, on_damage=on_damage)
    except BitstreamError:
        return None


@pytest.mark.parametrize(
    "mutate",
    [
        mutate_bits,
        mutate_header_bits,
        mutate_run,
        mutate_length,
        mutate_splice,
        mutate_header_field,
    ],
)
def test_mutated_files_give_the_error_or_the_right_codes(
    mutate: Callable[[bytes, np.random.Generator], bytes],
) -> None:
    rng = np.random.default_rng(len(mutate.__name__))
    headers = [TINY, SPEECH, make_header(3, 1000, 350), make_header(1, 2, 9001)]
    originals = [make_codes(header) for header in headers]
    files = [dumps(codes, header) for codes, header in zip(originals, headers, strict=True)]
    num_skipped_around = 0
    for _ in range(2000):  # 12,000 over the six ways
        index = rng.integers(len(files))
        mutated = mutate(files[index], rng)

        whole = read_or_none(mutated, "raise")
        partial = read_or_none(mutated, "skip")

        assert (whole is None) == (mutated != files[index])
        if whole is not None:
            np.testing.assert_array_equal(whole.codes, originals[index])
        if partial is not None:
            assert partial.header == headers[index]
            valid_codes = np.where(partial.is_frame_valid, originals[index], 0)
            np.testing.assert_array_equal(partial.codes, valid_codes)
            num_skipped_around += bool(partial.damaged_chunks)
    # Damage outside the header leaves something to read, damage in it nothing.
    is_header_alone = mutate in (mutate_header_bits, mutate_header_field)
    assert num_skipped_around > 300 or is_header_alone


def test_files_with_repaired_checksums_are_refused_or_mean_what_they_say() -> None:
    rng = np.random.default_rng(5)
    header = make_header(3, 1000, 5)
    data = dumps(make_codes(header), header)
    num_accepted = 0
    for _ in range(3000):
        edited = bytearray(data)
        if rng.integers(2):
            edited[rng.integers(48, len(data))] = rng.integers(256)  # codes
        # Fields whose change keeps the layout: V - 1, sample_rate, model_hash, model_id
        offset = rng.choice([6, 8, 9, 22, 29, 31, 40])
        edited[offset] = rng.integers(256)
        if edited[7] << 8 | edited[6] < 512:
            continue  # fewer bits per code
        mutated = PlainFile(bytes(edited)).repair()

        result = read_or_none(mutated, "raise")

        if result is not None:
            num_accepted += 1
            assert result.codes.max() < result.header.codebook_size
            assert dumps(result.codes, result.header) == mutated
    assert 300 < num_accepted < 2700


def test_any_bytes_are_read_and_other_things_refused_in_a_sentence() -> None:
    header = make_header(3, 1024, num_frames=7)
    codes = np.zeros((header.num_codebooks, header.num_frames), np.int64)
    data = dumps(codes, header)

    for held in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).data):
        np.testing.assert_array_equal(loads(held).codes, codes)
        assert read_header(held) == header
    for wrong in ("x.dmc", Path("x.dmc"), None):
        with pytest.raises(ValueError, match=r"give the content of a \.dmc file as bytes, not"):
            loads(wrong)  # type: ignore[arg-type]


def test_a_frame_begun_counts_as_one() -> None:
    assert [count_frames(n, 320) for n in (0, 1, 320, 321, 640)] == [0, 1, 1, 2, 2]
