"""The frame decoder against the shared vectors, in any pieces, and against noise."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from microsandbox_core.channel import (
    Control,
    Frame,
    FrameDecoder,
    Kind,
    ProtocolError,
    Side,
    decode_control,
    encode_control,
    encode_credit,
    encode_data,
    encode_eof,
    encode_frame,
)

VECTORS = Path(__file__).parents[3] / "tests" / "vectors" / "frames.json"
FRAMES: list[dict[str, Any]] = json.loads(VECTORS.read_text(encoding="ascii"))


def shown(value: object) -> object:
    """The JSON form of a control value, as the vectors write it."""
    if isinstance(value, bytes):
        return {"bin": value.hex()}
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    return value


def listed(frame: Frame) -> dict[str, object]:
    entry: dict[str, object] = {
        "stream": frame.stream,
        "kind": Kind(frame.kind).name,
        "channel": frame.channel,
    }
    if isinstance(frame.payload, dict):
        entry["control"] = shown(frame.payload)
    elif isinstance(frame.payload, int):
        entry["payload"] = frame.payload.to_bytes(4, "big").hex()
    else:
        entry["payload"] = frame.payload.hex()
    return entry


def decode(side: Side, pieces: list[bytes]) -> tuple[list[Frame], str | None]:
    decoder = FrameDecoder(side)
    frames = [frame for piece in pieces for frame in decoder.feed(piece)]
    return frames, decoder.error.code if decoder.error else None


def encode(frame: Frame) -> bytes:
    if isinstance(frame.payload, dict):
        return encode_frame(frame.stream, Kind(frame.kind), frame.payload)
    if isinstance(frame.payload, int):
        return encode_credit(frame.stream, frame.channel, frame.payload)
    if frame.kind == Kind.EOF:
        return encode_eof(frame.stream, frame.channel)
    return encode_data(frame.stream, frame.channel, frame.payload) + frame.payload


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["name"])
@pytest.mark.parametrize("size", [1 << 20, 1, 7, 4096])
def test_a01_a04_vector_decodes_in_pieces_of_any_size(vector: dict[str, Any], size: int) -> None:
    data = bytes.fromhex(vector["hex"])
    if size == 1 and len(data) > 10_000:
        size = 13
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    frames, code = decode(Side[vector["receiver"].upper()], pieces)
    assert code == vector.get("error")
    if code is None:
        assert [listed(frame) for frame in frames] == vector["frames"]


@pytest.mark.parametrize("vector", [v for v in FRAMES if "frames" in v], ids=lambda vector: vector["name"])
def test_vector_is_what_we_encode(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    frames, _ = decode(Side[vector["receiver"].upper()], [data])
    again, code = decode(Side[vector["receiver"].upper()], [b"".join(map(encode, frames))])
    assert code is None
    assert again == frames
    if vector["name"] != "integers, strings and maps in longer forms than needed":
        assert data.startswith(b"".join(map(encode, frames)))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


controls = st.dictionaries(st.text(max_size=5), values, max_size=4).filter(lambda v: depth(v) <= 8)
streams = st.integers(1, 2**31 - 1)
frames_to_host = st.one_of(
    st.builds(Frame, streams, st.sampled_from([Kind.OPENED, Kind.EVENT, Kind.END]), st.just(0), controls),
    st.builds(Frame, st.just(0), st.sampled_from([Kind.HELLO, Kind.ERROR]), st.just(0), controls),
    st.builds(
        Frame, streams, st.just(Kind.DATA), st.sampled_from([1, 2]), st.binary(min_size=1, max_size=99)
    ),
    st.builds(Frame, streams, st.just(Kind.EOF), st.sampled_from([1, 2]), st.just(b"")),
    st.builds(Frame, streams, st.just(Kind.CREDIT), st.just(0), st.integers(1, 2**30)),
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(frames_to_host, max_size=8), st.lists(st.integers(0, 600), max_size=12))
def test_any_cutting_gives_the_same_frames(frames: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(encode, frames))
    assert decode(Side.HOST, cut(data, cuts)) == (frames, None)
    assert decode(Side.HOST, [data]) == (frames, None)


@given(
    st.lists(frames_to_host, max_size=4),
    st.binary(max_size=64),
    st.lists(st.integers(0, 400), max_size=8),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=3),
)
def test_a01_damaged_bytes_mean_the_same_in_any_cutting(
    frames: list[Frame], tail: bytes, cuts: list[int], flips: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(map(encode, frames)) + tail)
    for position, value in flips:
        if position < len(data):
            data[position] = value
    assert decode(Side.HOST, cut(bytes(data), cuts)) == decode(Side.HOST, [bytes(data)])


@given(st.sampled_from(Side), st.lists(st.binary(max_size=80), max_size=6))
def test_a01_noise_is_an_error_and_nothing_else(side: Side, pieces: list[bytes]) -> None:
    _, code = decode(side, pieces)
    assert code in (None, "frame", "payload", "credit")


@given(st.binary(max_size=60))
def test_a04_any_payload_is_a_map_or_a_protocol_error(payload: bytes) -> None:
    try:
        control = decode_control(payload)
    except ProtocolError:
        assert refused(payload)
    else:
        assert decode_control(encode_control(control)) == control


@given(controls)
def test_control_survives_encoding(control: Control) -> None:
    assert decode_control(encode_control(control)) == control


def refused(payload: bytes) -> bool:
    with pytest.raises(ProtocolError) as caught:
        decode_control(payload)
    return caught.value.code == "payload"


def test_a04_objects_are_counted_map_keys_and_all() -> None:
    # The top map, its key, the array, and its items.
    assert len(decode_control(b"\x81\xa1m\xdd" + (65533).to_bytes(4, "big") + b"\xc0" * 65533)) == 1
    assert refused(b"\x81\xa1m\xdd" + (65534).to_bytes(4, "big") + b"\xc0" * 65534)
    million = b"".join(b"\xce" + n.to_bytes(4, "big") for n in range(600_000))
    assert refused(b"\x81\xa1m\xdd" + (600_000).to_bytes(4, "big") + million)
    keys = b"".join(b"\xa6%06d\xc0" % n for n in range(40_000))
    assert refused(b"\xdf" + (40_000).to_bytes(4, "big") + keys)


def test_a04_ten_million_levels_are_refused() -> None:
    assert refused(b"\x81\xa1m" + b"\x91" * 4_000_000)
    assert refused(b"\x81\xa1m" * 1_300_000)


def test_a04_no_memory_is_reserved_for_items_that_cannot_come() -> None:
    import tracemalloc

    payload = b"\x81\xa1m" + b"\xdd\x00\x00\x03\xff" * 900
    tracemalloc.start()
    try:
        assert refused(payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20


def test_a01_a_large_length_reserves_nothing() -> None:
    decoder = FrameDecoder(Side.GUEST)
    header = (4 << 20).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([Kind.OPEN, 0, 0, 0])
    assert decoder.feed(header + b"\x81") == []
    assert decoder.error is None
    assert decoder.buffered == 13


@pytest.mark.parametrize(
    "control",
    [
        {"m": 1.5},
        {"m": (1, 2)},
        {1: 2},
        {"m": 2**64},
        {"m": -(2**63) - 1},
        {"m": "\udcff"},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {}}}}}}}}},
    ],
)
def test_what_the_peer_would_refuse_is_not_sent(control: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        encode_control(control)


def test_a_frame_over_its_cap_is_not_sent() -> None:
    with pytest.raises(ValueError, match="cap"):
        encode_frame(1, Kind.MESSAGE, {"m": b"x" * 65536})


def test_a_frame_keeps_its_bytes_when_the_buffer_is_used_again() -> None:
    buffer = bytearray(encode_data(1, 1, b"abc") + b"abc")
    decoder = FrameDecoder(Side.HOST)
    (frame,) = decoder.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert frame.payload == b"abc"
