import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from limner.v1 import artifact_pb2, generation_pb2
from services.gateway.relayed_method import ChunkHead, chunk_head
from services.gateway.wire import BYTES, FIXED64, VARINT, WireError, fields

ARTIFACT_TAG = generation_pb2.GenerateImageResponse.ARTIFACT_FIELD_NUMBER << 3 | BYTES


@given(index=st.integers(0, 2**31 - 1), last=st.booleans(), data=st.binary(max_size=300), info=...)
def test_the_head_of_a_chunk_is_what_protobuf_reads(index: int, last: bool, data: bytes, info: str):
    chunk = artifact_pb2.ArtifactChunk(index=index, data=data, last=last)
    chunk.info.mime_type = "".join(sign for sign in info if sign.isascii())
    event = generation_pb2.GenerateImageResponse(artifact=chunk).SerializeToString()
    assert chunk_head(event, ARTIFACT_TAG) == ChunkHead(index, last, len(data))


@given(st.binary(max_size=64))
def test_of_any_bytes_what_protobuf_refuses_is_refused_or_skipped_never_a_crash(data: bytes):
    try:
        found = list(fields(data, 0, len(data)))
    except WireError:
        return
    assert all(0 <= end <= len(data) for *_, end in found)


def test_an_event_without_a_chunk_has_no_head():
    progress = generation_pb2.Progress(completed_step_count=1, total_step_count=2)
    event = generation_pb2.GenerateImageResponse(progress=progress).SerializeToString()
    assert chunk_head(event, ARTIFACT_TAG) is None
    assert chunk_head(b"", ARTIFACT_TAG) is None


def test_fields_lie_where_they_are_said_to():
    request = generation_pb2.GenerateImageRequest(prompt="a cat", guidance_scale=7.5, seed=300)
    data = request.SerializeToString()
    found = {number: (kind, first, end) for number, kind, first, end in fields(data, 0, len(data))}
    kind, first, end = found[generation_pb2.GenerateImageRequest.PROMPT_FIELD_NUMBER]
    assert (kind, data[first:end]) == (BYTES, b"a cat")
    kind, value, _ = found[generation_pb2.GenerateImageRequest.SEED_FIELD_NUMBER]
    assert (kind, value) == (VARINT, 300)
    kind, first, end = found[generation_pb2.GenerateImageRequest.GUIDANCE_SCALE_FIELD_NUMBER]
    assert (kind, end - first) == (FIXED64, 8)


@pytest.mark.parametrize(
    "data", [b"\x0a\x05abc", b"\x0a", b"\x08" + b"\xff" * 11, b"\x0b\x0c", b"\x09\x00"]
)
def test_what_is_cut_off_or_not_a_message_is_refused(data: bytes):
    with pytest.raises(DecodeError):
        generation_pb2.GenerateImageRequest.FromString(data + b"\x0c")
    with pytest.raises(WireError):
        list(fields(data, 0, len(data)))
