"""The reader of model files: right about real ones, and never at the mercy of wrong ones."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.workers.engine.local_models import METADATA, array, gguf, pair, smollm_path, text
from workers.engine.errors import ModelError
from workers.engine.ggml import BLOCKS
from workers.engine.gguf import ModelFile, read_model_file
from workers.engine.model import Model

Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return written


def test_the_header_says_what_the_loaded_model_says() -> None:
    file = read_model_file(smollm_path())
    model = Model.load(smollm_path())
    try:
        assert file.bytes_per_cell == model.bytes_per_cell == 23_040
        assert file.context_length == model.context_trained
    finally:
        model.close()
    assert (file.architecture, file.quantization, file.layers) == ("llama", "Q4_1", 30)
    assert file.size_bytes == smollm_path().stat().st_size


def test_the_sizes_of_tensor_types_are_those_of_the_native_library() -> None:
    path = min((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*"))
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_blck_size.restype, ggml.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    assert {kind: (ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind)) for kind in BLOCKS} == BLOCKS


def test_a_small_file_is_described(write: Write) -> None:
    path = write(gguf())
    assert read_model_file(path) == ModelFile(
        path, path.stat().st_size, "llama", "Q8_0", 4096, layers=3, kv_heads=(2, 2, 2), key_length=8, value_length=8
    )
    assert read_model_file(path).bytes_per_cell == 3 * 2 * (8 + 8) * 2
    assert read_model_file(write(gguf(version=2))).layers == 3


def test_heads_may_differ_by_layer_and_heads_may_have_sizes_of_their_own(write: Write) -> None:
    metadata = (
        *METADATA[:6],
        array("llama.attention.head_count_kv", 4, 3, b"\1\0\0\0\2\0\0\0\4\0\0\0"),
        pair("llama.attention.key_length", 16),
        pair("llama.attention.value_length", 32),
    )
    assert read_model_file(write(gguf(metadata=metadata))).bytes_per_cell == (1 + 2 + 4) * (16 + 32) * 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a GGUF file"),
        (b"GGU", "is not a GGUF file"),
        (b"GGUF", "is cut off within its header"),
        (b"not a model at all", "is not a GGUF file"),
        (gguf(version=4), "is of GGUF version 4"),
        (gguf(version=1), "is of GGUF version 1"),
        (gguf(version=3 << 24), "other byte order"),
        (gguf()[:-65], "is cut off: it has .* bytes and tensor 'weight' ends at"),
        (gguf()[:200], "is cut off within its header"),
        (gguf(tensors=()), "no weights"),
        (gguf(counts=(2**60, 1)), "claims to have 1152921504606846976 tensors"),
        (gguf(counts=(1, 2**63)), "metadata keys"),
        (gguf(metadata=(text("k") + b"\x63\0\0\0",)), "unknown type 99"),
        (gguf(metadata=(text("k") + b"\x08\0\0\0" + b"\xff" * 8,)), "text of"),
        (gguf(metadata=(array("k", 0, 2**62, b""),)), "items under 'k'"),
        (gguf(metadata=(array("k", 9, 1, b""),)), "arrays within an array"),
        (gguf(metadata=(pair("general.architecture", 7),)), "does not say its architecture"),
        (gguf(metadata=(*METADATA, pair("split.count", 3))), "one part of a split model"),
        (gguf(metadata=(*METADATA, pair("general.alignment", 3))), "alignment of 3"),
        (gguf(tensors=(("weight", (2**40, 2**20), 8, 0),)), "is cut off: it has"),
        (gguf(tensors=(("weight", (32,), 8, 2**63),)), "is cut off: it has"),
        (gguf(tensors=(("weight", (32,), 777, 2**40),)), "is cut off: it has"),
        (gguf(tensors=(("weight", (1,) * 5, 0, 0),)), "gives tensor 'weight' 5 dimensions"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write: Write, content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_model_file(write(content))


def test_a_file_that_is_not_there_or_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model file"):
        read_model_file(tmp_path / "missing.gguf")
    with pytest.raises(ModelError, match="is a directory"):
        read_model_file(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(cut=st.integers(0, 24_000), flips=st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=6))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(write: Write, cut: int, flips: dict[int, int]) -> None:
    content = bytearray(gguf())
    for place, value in flips.items():
        content[place] = value
    try:
        read_model_file(write(bytes(content[:cut])))
    except ModelError as error:
        assert "model.gguf" in str(error)  # noqa: PT017 - either outcome is right
