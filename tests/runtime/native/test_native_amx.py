"""The AMX kernel gives the bits of the scalar definition: on tiles in plain C++, and on real ones where there are any.

The tests' library is built with LFM_AMX_EMULATED: the kernel's own source on tile registers that follow Intel's manual
and end the process where the processor would refuse an instruction, or where tiles are not given back.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lfm_onnx
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lfm_onnx.cli.doctor import doctor
from lfm_onnx.runtime.native_library import NativeStatus
from native_models import (
    FORMATS,
    ISAS,
    Array,
    Format,
    Weight,
    activations,
    environment,
    native_session,
    one_node_model,
    qlinear_attributes,
    qlinear_tensors,
)

NATIVE = Path(lfm_onnx.__file__).parent / "runtime" / "native"
EMULATED, REAL = "amx-emulated", "amx"
COMPILER = os.environ.get("CXX", "c++")

pytestmark = [
    pytest.mark.skipif("avx512vnni" not in ISAS, reason="this CPU or build has no AVX512-VNNI"),
    pytest.mark.skipif(not shutil.which("cmake") or not shutil.which(COMPILER), reason="no cmake or no C++ compiler"),
]

ALL_FORMATS = [
    Format(bits, block_size, zero_points, scales)
    for bits in (4, 8)
    for block_size in (32, 64, 128)
    for zero_points in (False, True)
    for scales in ("float16", "float32")
]


class TestWeights(ctypes.Structure):
    """As in compute/test_entry.cc."""

    __test__ = False
    _fields_ = (
        ("type", ctypes.c_int32),
        ("block_size", ctypes.c_int32),
        ("columns", ctypes.c_int64),
        ("blocks", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
        ("scales", ctypes.c_void_p),
        ("scales_are_float16", ctypes.c_int64),
        ("zero_points", ctypes.c_void_p),
        ("zero_point_row_bytes", ctypes.c_int64),
    )


class LastBytes:
    """A copy of an array that ends where memory ends, as a mapped file's last tensor does: reading on is a fault."""

    def __init__(self, array: npt.NDArray[np.generic]) -> None:
        data = array.tobytes()
        used = -(-len(data) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, used + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._memory[used - len(data) : used] = data
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start + used), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + used - len(data)


class Kernels:
    """The kernel tables of one test library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("lfm_test_isas", "lfm_test_refused"):
            getattr(self._library, name).restype = ctypes.c_char_p
        self._library.lfm_test_packed_bytes.restype = ctypes.c_uint64

    def names(self) -> list[str]:
        return self._library.lfm_test_isas().decode().split(",")

    def refused(self) -> str:
        return self._library.lfm_test_refused().decode()

    def product(
        self,
        isa: str,
        fmt: Format,
        weight: Weight,
        x: Array,
        rows: slice = slice(None),
        activation_bits: int = 8,
        threads: int = 1,
    ) -> Array:
        """x times the given rows of weight, transposed; each thread computes a part of the rows."""
        tokens, columns = x.shape
        begin, end, _ = rows.indices(len(weight.data))
        held = [LastBytes(part) for part in (weight.data, weight.scales, weight.zero_points) if part is not None]
        blocks = weight.scales.shape[-1]
        view = TestWeights(
            {8: 2, 4: 3}[fmt.bits],
            fmt.block_size,
            columns,
            blocks,
            held[0].address,
            blocks * fmt.block_size * fmt.bits // 8,
            held[1].address,
            fmt.scales == "float16",
            held[2].address if fmt.zero_points else None,
            -(-blocks * fmt.bits // 8) if fmt.zero_points else 0,
        )
        name, shape = isa.encode(), ctypes.byref(view)
        size = self._library.lfm_test_packed_bytes(name, shape, activation_bits, ctypes.c_int64(tokens))
        assert size % 64 == 0 and size > 0
        space = np.full(size + 128, 0xA5, np.uint8)
        offset = -space.ctypes.data % 64
        packed = ctypes.c_void_p(space.ctypes.data + offset)
        assert not self._library.lfm_test_pack(
            name, shape, activation_bits, _floats(x), ctypes.c_int64(columns), ctypes.c_int64(tokens), packed
        )
        assert (space[offset + size :] == 0xA5).all(), "pack wrote beyond its buffer"
        y = np.full((tokens, end - begin + 1), 7, np.float32)

        def part(first: int, last: int) -> int:
            return self._library.lfm_test_multiply(
                name, shape, activation_bits, ctypes.c_int64(first), ctypes.c_int64(last), packed,
                ctypes.c_int64(tokens), _floats(y[:, first - begin :]), ctypes.c_int64(y.shape[1]),
            )  # fmt: skip

        edges = np.linspace(begin, end, threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(threads) as pool:
            assert not any(pool.map(part, edges[:-1], edges[1:]))
        assert (y[:, -1] == 7).all(), "multiply wrote beyond its rows"
        return y[:, :-1]


def _floats(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def build(folder: Path, emulated: bool) -> Path:
    for command in (
        ["cmake", "-S", str(NATIVE), "-B", str(folder), "-DLFM_BUILD_TESTS=ON", "-DLFM_WARNINGS_AS_ERRORS=ON",
         f"-DLFM_AMX_EMULATED={'ON' if emulated else 'OFF'}"],
        ["cmake", "--build", str(folder), "--parallel", "2", "--target", "lfm_kernels_test"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return next(folder.glob("*lfm_kernels_test.*"))


@pytest.fixture(scope="module")
def emulated_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("amx-emulated"), emulated=True)


@pytest.fixture(scope="module", params=[EMULATED, REAL])
def amx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Kernels]:
    """Name of the AMX table and a library that has it."""
    if request.param == EMULATED:
        return EMULATED, Kernels(request.getfixturevalue("emulated_library"))
    if REAL not in ISAS:
        pytest.skip("this machine has no AMX")
    return REAL, Kernels(build(tmp_path_factory.mktemp("amx"), emulated=False))


Amx = tuple[str, Kernels]


def assert_bits_of_the_definition(amx: Amx, fmt: Format, weight: Weight, x: Array, rows: slice = slice(None)) -> None:
    name, kernels = amx
    expected = kernels.product("scalar", fmt, weight, x, rows)
    np.testing.assert_array_equal(kernels.product(name, fmt, weight, x, rows), expected)
    np.testing.assert_array_equal(kernels.product("avx512vnni", fmt, weight, x, rows), expected)


def test_amx_is_the_first_choice_where_it_is_right(amx: Amx) -> None:
    name, kernels = amx
    assert kernels.names()[:2] == [name, "avx512vnni"] and kernels.refused() == ""


@pytest.mark.parametrize("fmt", ALL_FORMATS, ids=repr)
def test_every_format_gives_the_bits_of_the_definition(amx: Amx, fmt: Format) -> None:
    # Rows and tokens: less than a tile, whole ones, and a part; columns: less and more than the 512 of a chunk.
    for rows, columns, tokens in [(1, 1, 4), (16, 512, 16), (37, 1100, 21), (32, 130, 33), (70, 640, 5)]:
        assert_bits_of_the_definition(amx, fmt, Weight(fmt, rows, columns), activations(tokens, tokens, columns))


@settings(max_examples=60, deadline=None)
@given(
    fmt=st.sampled_from(ALL_FORMATS),
    rows=st.integers(1, 70),
    columns=st.integers(1, 700),
    tokens=st.integers(1, 50),
    seed=st.integers(0, 99),
)
@example(fmt=Format(4), rows=33, columns=32, tokens=170, seed=1)  # more tokens than sums wait for at once
@example(fmt=Format(8, 128, True), rows=5, columns=1300, tokens=321, seed=2)
def test_odd_sizes_nan_and_infinity_too(amx: Amx, fmt: Format, rows: int, columns: int, tokens: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight, x = Weight(fmt, rows, columns, seed=seed), activations(seed, tokens, columns)
    x[rng.random(x.shape) < 0.01] = np.float32(1e-39)
    if seed % 3 == 0:
        x[rng.integers(tokens), rng.integers(columns)] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32))
    begin = int(rng.integers(rows))
    assert_bits_of_the_definition(amx, fmt, weight, x, slice(begin, int(rng.integers(begin, rows)) + 1))


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_the_largest_sums_stay_exact(amx: Amx, fmt: Format) -> None:
    weight = Weight(fmt, 20, 256)
    weight.data = np.full_like(weight.data, 0xFF)
    if weight.zero_points is not None:
        weight.zero_points = np.where(np.arange(len(weight.zero_points))[:, None] % 2, 0, weight.zero_points | 0xFF)
        weight.zero_points = weight.zero_points.astype(np.uint8)
    x = np.full((6, 256), 3, np.float32)
    x[::2] = -3
    assert_bits_of_the_definition(amx, fmt, weight, x)
    weight.data = np.zeros_like(weight.data)
    assert_bits_of_the_definition(amx, fmt, weight, x)


def test_a_nan_stays_with_its_token(amx: Amx) -> None:
    name, kernels = amx
    fmt = Format(4)
    x = activations(0, 20, 600)
    x[3, 5] = np.nan
    result = kernels.product(name, fmt, Weight(fmt, 40, 600), x)
    assert np.isnan(result[3]).all() and np.isfinite(np.delete(result, 3, axis=0)).all()


def test_threads_use_tiles_of_their_own_and_give_them_back(amx: Amx) -> None:
    name, kernels = amx
    for fmt in (Format(4), Format(8, 128, True)):
        weight, x = Weight(fmt, 200, 600), activations(3, 40, 600)
        expected = kernels.product("scalar", fmt, weight, x)
        for _ in range(3):
            np.testing.assert_array_equal(kernels.product(name, fmt, weight, x, threads=4), expected)


@pytest.mark.parametrize("activation_bits", [0, 8])
def test_the_rest_is_that_of_avx512vnni(amx: Amx, activation_bits: int) -> None:
    name, kernels = amx
    fmt = Format(4, 64, True)
    weight, x = Weight(fmt, 50, 300), activations(4, 3, 300)
    found, expected = (
        kernels.product(isa, fmt, weight, x, activation_bits=activation_bits) for isa in (name, "avx512vnni")
    )
    np.testing.assert_array_equal(found, expected)


def test_a_processor_whose_products_are_wrong_is_not_used(emulated_library: Path) -> None:
    program = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1])\n"
        "for name in ('lfm_test_isas', 'lfm_test_refused'):\n"
        "    function = getattr(library, name); function.restype = ctypes.c_char_p; print(function().decode())"
    )
    with environment("LFM_AMX_EMULATED_FAULT", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(emulated_library)], capture_output=True, text=True, check=True
        )
    names, refused = done.stdout.splitlines()
    assert names.split(",")[0] == "avx512vnni" and EMULATED not in names
    assert refused == "amx: it does not give the results of avx512vnni here, so that it is not used"


def test_doctor_says_why_amx_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    status = NativeStatus(Path("lib.so"), "avx512vnni", ("avx512vnni", "scalar"), refused="amx: a reason")
    monkeypatch.setattr("lfm_onnx.cli.doctor.native_status", lambda: status)
    text = CliRunner().invoke(doctor).output
    assert "avx512vnni (this machine can run: avx512vnni, scalar)" in text and "amx: a reason" in text


@pytest.mark.skipif(REAL in ISAS, reason="this machine has AMX")
def test_asking_for_amx_where_there_is_none_is_an_error() -> None:
    fmt = Format(4)
    weight, x = Weight(fmt, 8, 32), activations(0, 4, 32)
    model = one_node_model("QLinear", {"x": x}, qlinear_tensors(x, weight), qlinear_attributes(fmt, weight, 8))
    with pytest.raises(Exception, match=r"LFM_OPS_ISA is 'amx', which this CPU or build does not have"):
        native_session(model, isa="amx")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("objdump"), reason="AMX is for Linux; needs objdump")
def test_tile_instructions_are_in_the_amx_file_alone(emulated_library: Path, tmp_path: Path) -> None:
    flags = next(
        line.split()[2:]
        for line in (NATIVE / "compute" / "isa_sources.txt").read_text().splitlines()
        if line.startswith("amx/kernels_amx.cc")
    )
    real = tmp_path / "kernels_amx.o"
    source = str(NATIVE / "compute" / "amx" / "kernels_amx.cc")
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-fPIC", f"-I{NATIVE / 'compute'}", *flags, "-c", source, "-o", str(real)],
        check=True,
    )

    def tile_instructions(path: Path) -> set[str]:
        text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True).stdout
        wanted = {"ldtilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored", "tdpbssd"}
        return {word for line in text.splitlines() if (word := line.partition("\t")[2].partition(" ")[0]) in wanted}

    assert tile_instructions(real) >= {"ldtilecfg", "tileloadd", "tilestored", "tdpbssd", "tilerelease"}
    # In the emulated library that file has none either; no other file knows of them.
    assert tile_instructions(emulated_library) == set()
