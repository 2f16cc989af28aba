"""What is compiled of llama.cpp is what Headrace calls, and a wheel is kept under the flags that it was built with."""

import importlib
from pathlib import Path
from types import ModuleType

import llama_cpp
import pytest

from tests.stack import ROOT

CPU = "flags\t\t: fpu avx2 avx512f avx512cd avx512vl avx512dq avx512bw\n"
BEFORE = "-DGGML_NATIVE=OFF -DGGML_AVX512=ON"
"""The flags with which the whole of llama.cpp was compiled."""


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which stands alone, as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    return importlib.import_module("llama_wheel")


@pytest.fixture
def cpu_info(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(CPU)
    return path


def test_the_multimodal_and_common_libraries_are_left_out(wheel: ModuleType, cpu_info: Path) -> None:
    flags = wheel.cmake_flags({}, cpu_info).split()
    assert flags == ["-DGGML_NATIVE=OFF", "-DGGML_AVX512=ON", "-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_COMMON=OFF"]


def test_flags_of_ones_own_stand_last_where_they_overrule(wheel: ModuleType, cpu_info: Path) -> None:
    flags = wheel.cmake_flags({"CMAKE_ARGS": "-DGGML_CUDA=ON -DLLAVA_BUILD=ON"}, cpu_info).split()
    assert flags[-2:] == ["-DGGML_CUDA=ON", "-DLLAVA_BUILD=ON"]


def test_a_wheel_of_other_flags_is_never_taken(wheel: ModuleType, cpu_info: Path) -> None:
    long = "-DCMAKE_CUDA_FLAGS=" + "x" * 300
    sets = [BEFORE, wheel.cmake_flags({}, cpu_info), f"{BEFORE} -DGGML_CUDA=ON", f"{long}1", f"{long}2"]
    keys = [wheel.key(flags) for flags in sets]
    assert len(set(keys)) == len(sets)
    assert max(map(len, keys)) < 255


def test_the_build_keeps_the_option_that_llama_cpp_python_sets(
    wheel: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CMake includes a file of ours, in which the option has the value of the command line."""
    seen: list[str] = []

    def follow(what: str, command: list[str], *, env: dict[str, str] | None = None, **_: object) -> None:
        if what.startswith("compiling"):
            assert env is not None
            seen.extend(env["CMAKE_ARGS"].split())
            (tmp_path / "wheels").mkdir()
            (tmp_path / "wheels" / "one.whl").touch()

    monkeypatch.setattr(wheel, "follow", follow)
    wheel._compile(tmp_path, "-DLLAMA_BUILD_COMMON=OFF", log=tmp_path / "log")
    assert seen[0] == "-DLLAMA_BUILD_COMMON=OFF"
    name, _, included = seen[1].partition("=")
    assert name == "-DCMAKE_PROJECT_llama_cpp_INCLUDE"
    assert Path(included).read_text() == 'set(LLAMA_BUILD_COMMON "${LLAMA_BUILD_COMMON}")\n'


def test_what_is_installed_is_what_is_called() -> None:
    libraries = {path.name.split(".")[0] for path in (Path(llama_cpp.__file__).parent / "lib").iterdir()}
    assert "libllama" in libraries
    others = {name for name in libraries if not name.startswith("libggml")}
    assert others == {"libllama"}
