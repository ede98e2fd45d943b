"""The safetensors reader agrees with the format's own library and refuses every file that claims what it has not."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from lfm_onnx.errors import CheckpointError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


def _file(folder: Path, header: object, data: bytes = b"", *, name: str = "model.safetensors") -> Path:
    """A file with any header (text or bytes as they are, else as JSON) and any data after it."""
    text = header if isinstance(header, (str, bytes)) else json.dumps(header)
    encoded = text.encode() if isinstance(text, str) else text
    path = folder / name
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def _tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def _refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable() and len(message) < 500
    return message


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((3, 5), np.float32),
        "f16": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "bf16": rng.standard_normal((7, 1)).astype(ml_dtypes.bfloat16),
        "i64": rng.integers(-9, 9, (4,)),
        "u8": rng.integers(0, 255, (3,), dtype=np.uint8),
        "bool": np.array([True, False]),
        "scalar": np.array(2.5, np.float32),
        "empty": np.empty((0, 4), np.float32),
    }


def test_reads_what_the_formats_own_library_reads(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "np"})
    ours = SafetensorsFile(path)
    with safe_open(path, "np") as theirs:
        assert set(ours.tensors) == set(theirs.keys())
        for name, entry in ours.tensors.items():
            expected = theirs.get_tensor(name)
            assert entry.dtype == theirs.get_slice(name).get_dtype()
            assert entry.shape == expected.shape and entry.nbytes == expected.nbytes
            assert ours.array(name).dtype == expected.dtype
            np.testing.assert_array_equal(ours.array(name), expected)
            assert path.read_bytes()[entry.offset : entry.offset + entry.nbytes] == expected.tobytes()


def test_arrays_are_read_only_views_of_the_mapped_file(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")
    array = file.array("f32")
    assert np.shares_memory(array, file.array("f32"))
    assert not array.flags.owndata and not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    file.release("f32")
    np.testing.assert_array_equal(array, arrays["f32"])


def test_a_view_is_a_part_of_one_tensor_and_never_more(tmp_path: Path) -> None:
    save_file({"a": np.arange(12, dtype=np.float32), "b": np.ones(4, np.float32)}, tmp_path / "f.safetensors")
    file = SafetensorsFile(tmp_path / "f.safetensors")
    np.testing.assert_array_equal(file.view("a", 4, (2, 3)), [[4, 5, 6], [7, 8, 9]])
    with pytest.raises(ValueError, match="outside tensor a"):
        file.view("a", 8, (5,))
    with pytest.raises(ValueError, match="outside tensor b"):
        file.view("b", -1, (2,))
    with pytest.raises(CheckpointError, match='no tensor "c"'):
        file.array("c")


def test_data_that_is_not_aligned_is_read_all_the_same(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    header = {"byte": _tensor(0, 1), "w": _tensor(1, 25, [2, 3], "F32")}
    padding = next(n for n in range(8) if (8 + len(json.dumps(header)) + n + 1) % 4)
    file = SafetensorsFile(_file(tmp_path, json.dumps(header) + " " * padding, b"\0" + values.tobytes()))
    assert file.tensors["w"].offset % 4
    np.testing.assert_array_equal(file.array("w"), values.reshape(2, 3))


def test_a_link_to_a_file_opens_as_the_file(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "blob")
    (tmp_path / "model.safetensors").symlink_to("blob")
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "model.safetensors").array("f32"), arrays["f32"])


def test_the_header_hash_is_of_the_header_alone(tmp_path: Path) -> None:
    header = json.dumps({"a": _tensor(0, 2)})
    one = SafetensorsFile(_file(tmp_path, header, b"xy", name="one"))
    other = SafetensorsFile(_file(tmp_path, header, b"zz", name="other"))
    assert one.header_sha256 == other.header_sha256 == hashlib.sha256(header.encode()).hexdigest()


def test_a_file_without_tensors_is_empty_but_valid(tmp_path: Path) -> None:
    assert SafetensorsFile(_file(tmp_path, {})).tensors == {}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        ({"a": _tensor(0, 4)}, b"abc", 'tensor "a": its data ends 1 bytes after the end of the file'),
        ({"a": _tensor(0, 2)}, b"abc", "the tensors end at byte"),
        ({"a": _tensor(0, 2), "b": _tensor(1, 3)}, b"abc", 'tensor "b" overlaps the tensor before it'),
        ({"a": _tensor(0, 2), "b": _tensor(0, 2)}, b"ab", 'tensor "b" overlaps the tensor before it'),
        ({"a": _tensor(0, 1), "b": _tensor(2, 3)}, b"abc", 'tensor "b" leaves a gap before it'),
        ({"a": _tensor(1, 3)}, b"abc", 'tensor "a" leaves a gap before it'),
        ({"a": _tensor(0, 1 << 60)}, b"abc", 'tensor "a": its data ends'),
        ({"a": _tensor(0, 1 << 80)}, b"abc", "is not a list of up to"),
        ({"a": _tensor(3, 0, [1])}, b"abc", 'tensor "a": data_offsets [3, 0] end before they begin'),
        ({"a": _tensor(-1, 2, [3])}, b"abc", "data_offsets [-1, 2] is not [begin, end]"),
        ({"a": _tensor(0, 3, [2])}, b"abc", 'tensor "a": shape [2] of U8 takes 2 bytes, data_offsets 3'),
        ({"a": _tensor(0, 4, [2], "BF16"), "b": _tensor(4, 6, [1], "F32")}, b"abcdef", "shape [1] of F32 takes 4"),
        ({"a": _tensor(0, 3, [1 << 62] * 32)}, b"abc", "shape [4611686018427387904"),
        ({"a": _tensor(0, 3, [1 << 62, 4, 0, 1 << 62])}, b"abc", "takes 0 bytes, data_offsets 3"),
        ({"a": _tensor(0, 3, [1] * 33)}, b"abc", "is not a list of up to 32 sizes"),
        ({"a": _tensor(0, 3, [-3])}, b"abc", "shape [-3]"),
        ({"a": {**_tensor(0, 3), "shape": [3.0]}}, b"abc", "shape [3.0]"),
        ({"a": {**_tensor(0, 1), "shape": [True]}}, b"a", "shape [true]"),
        ({"a": {**_tensor(0, 3), "shape": 3}}, b"abc", "shape 3"),
        ({"a": {**_tensor(0, 3), "dtype": "Q4"}}, b"abc", 'tensor "a": dtype "Q4"'),
        ({"a": {**_tensor(0, 3), "dtype": ["U8"]}}, b"abc", 'dtype ["U8"]'),
        ({"a": {**_tensor(0, 3), "data_offsets": [0, 3, 3]}}, b"abc", "data_offsets [0, 3, 3]"),
        ({"a": {**_tensor(0, 3), "extra": 1}}, b"abc", "must have exactly dtype, shape and data_offsets"),
        ({"a": {"dtype": "U8", "shape": [3]}}, b"abc", "must have exactly"),
        ({"a": [0, 3]}, b"abc", "must have exactly"),
        ({"a": None}, b"", "must have exactly"),
        ({"x\n" * 300: _tensor(0, 4)}, b"abc", 'tensor "x\\nx\\n'),
        ({"__metadata__": {"format": 1}}, b"", "__metadata__ must map names to strings"),
        ({"__metadata__": "pt"}, b"", "__metadata__ must map names to strings"),
        ('{"a": %s, "a": %s}' % ((json.dumps(_tensor(0, 3)),) * 2), b"abc", 'key "a" appears twice'),
        ("[]", b"", "it is not a JSON object"),
        (' {"a": 1}', b"", "it is not a JSON object"),
        ("", b"", "corrupt header: not JSON"),
        ('{"a"', b"abc", "corrupt header: not JSON"),
        (b'{"\xff": 1}', b"", "corrupt header: not UTF-8"),
        ('{"a":' * 100_000, b"", "nested too deeply"),
        ('{"a": NaN}', b"", "NaN is not a JSON number"),
    ],
)
def test_a_header_that_claims_what_is_not_so_is_refused(header: object, data: bytes, said: str, tmp_path: Path) -> None:
    assert said in _refusal(_file(tmp_path, header, data))


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 63, (1 << 64) - 1])
def test_a_header_of_absurd_length_is_refused_before_it_is_read(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length) + b"{}")
        file.truncate(MAX_HEADER_BYTES + 100)
    assert f"the header claims {length} bytes, at most {MAX_HEADER_BYTES}" in _refusal(path)


def test_a_header_longer_than_the_file_is_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 100) + b"{}")
    assert "truncated: the header claims 100 bytes, the file has 10 in all" in _refusal(path)


@pytest.mark.parametrize("size", range(8))
def test_a_file_too_short_for_a_header_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(size))
    assert f"truncated: {size} bytes, at least 8 expected" in _refusal(path)


def test_a_missing_file_or_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    assert "No such file" in _refusal(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").mkdir()
    assert "cannot be read" in _refusal(tmp_path / "model.safetensors")


def test_a_dtype_without_an_array_form_opens_but_is_not_read(tmp_path: Path) -> None:
    file = SafetensorsFile(_file(tmp_path, {"a": _tensor(0, 2, [4], "F4")}, b"ab"))
    assert file.tensors["a"].nbytes == 2
    with pytest.raises(CheckpointError, match="dtype F4, which cannot be read"):
        file.array("a")


def _opens_consistently_or_is_refused(path: Path) -> bool:
    """Whether the file opens; asserts that what opens covers the file exactly, and that a refusal is one line."""
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        assert str(error).isprintable()
        return False
    (header_length,) = struct.unpack("<Q", path.read_bytes()[:8])
    position = 8 + header_length
    for name, entry in file.tensors.items():
        assert entry.offset == position
        position += entry.nbytes
        if entry.dtype not in ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"):
            assert file.array(name).nbytes == entry.nbytes
            assert file.array(name).shape == entry.shape
    assert position == path.stat().st_size
    return True


_VALID = {"__metadata__": {"format": "pt"}, "a": _tensor(0, 6, [3], "BF16"), "b": _tensor(6, 14, [2, 1], "F32")}


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_any_corruption_of_the_bytes_is_refused_or_harmless(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = _file(folder, _VALID, bytes(14), name="corrupt.safetensors")
    valid = path.read_bytes()
    at, length = data.draw(st.integers(0, len(valid))), data.draw(st.integers(0, 20))
    path.write_bytes(valid[:at] + data.draw(st.binary(max_size=20)) + valid[at + length :])
    _opens_consistently_or_is_refused(path)


_SIZES = st.integers(-2, 9) | st.sampled_from([1 << 31, 1 << 62, (1 << 63) - 1, 1 << 64, 10**40]) | st.just(1.0)
_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F16", "F32", "I8", "F4", "F8_E4M3", "Q4", ""]) | st.none(),
        "shape": st.lists(_SIZES, max_size=4) | st.none(),
        "data_offsets": st.lists(_SIZES, min_size=2, max_size=2) | st.lists(_SIZES, max_size=3),
    }
)


@settings(max_examples=400, deadline=None)
@given(
    header=st.dictionaries(st.text(max_size=4), _ENTRIES | st.none() | st.integers(), max_size=4),
    size=st.integers(0, 24),
)
def test_any_header_is_refused_or_describes_the_file(
    header: dict[str, Any], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _file(tmp_path_factory.getbasetemp(), header, bytes(size), name="any.safetensors")
    _opens_consistently_or_is_refused(path)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.lists(st.integers(0, 3), max_size=3))),
    removed=st.integers(0, 2),
    shift=st.integers(-1, 1),
)
def test_layouts_are_accepted_exactly_when_the_formats_own_library_accepts_them(
    sizes: list[tuple[str, list[int]]], removed: int, shift: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    header, position = {}, 0
    for i, (dtype, shape) in enumerate(sizes):
        end = position + int(np.prod(shape, dtype=int)) * {"U8": 1, "BF16": 2, "F32": 4}[dtype]
        moved = shift if i == 1 else 0
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position + moved, end + moved]}
        position = end
    path = _file(tmp_path_factory.getbasetemp(), header, bytes(max(position - removed, 0)), name="layout.safetensors")
    try:
        with safe_open(path, "np"):
            accepted = True
    except SafetensorError:
        accepted = False
    assert _opens_consistently_or_is_refused(path) == accepted
