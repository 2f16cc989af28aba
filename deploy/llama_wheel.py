"""Builds the wheel of llama-cpp-python, which is published as source only, once per user.

    python deploy/llama_wheel.py    # prints the path of the wheel; progress goes to stderr

It runs before anything is installed, so it needs the standard library alone. More flags for CMake, such as
``-DGGML_CUDA=ON``, may be given in ``CMAKE_ARGS``; each set of flags has a wheel of its own.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from progress import CommandError, follow, say

REPOSITORY = Path(__file__).resolve().parent.parent
LLAMA_LOCK = REPOSITORY / "requirements" / "llama.lock"
BUILD_LOCK = REPOSITORY / "requirements" / "build.lock"

# Not GGML_NATIVE: it turns on whatever the CPU has, and its code crashed on one with AMX.
PORTABLE = "-DGGML_NATIVE=OFF"

# What else is worth having, by the names that Linux gives the CPU's features; AVX2 is on anyway.
INSTRUCTIONS = {
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VBMI": {"avx512f", "avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512f", "avx512_vnni"},
    "GGML_AVX_VNNI": {"avx_vnni"},
}
CPU_INFO = Path("/proc/cpuinfo")

# Headrace calls libllama and the ggml libraries, nothing else: not the multimodal library (mtmd), which is 52 of the
# 193 steps of the whole build, nor the "common" library of llama.cpp's own programs and what it needs, another 58.
ONLY_WHAT_IS_USED = ("-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_COMMON=OFF")

# llama-cpp-python's CMakeLists.txt sets this option to ON in CMake's cache, whatever the command line says. A variable
# of the project comes before the cache (CMake's policies CMP0077 and CMP0126): this one has the command line's value.
_KEEP_OPTION = 'set(LLAMA_BUILD_COMMON "${LLAMA_BUILD_COMMON}")\n'

_LONGEST_SLUG = 160  # of a file system's 255 for a name, which has the version and the platform too

_COMPILERS = {"C": ("CC", "cc", "gcc", "clang"), "C++": ("CXX", "c++", "g++", "clang++")}
_NINJA_STEP = re.compile(r"\[\d+/\d+\]")
_PIP_STEP = re.compile(r"^(Collecting|Installing) [^\s(]+")


class BuildError(Exception):
    """The wheel cannot be built; the message says what to do."""


def ensure_wheel(*, rebuild: bool = False) -> Path:
    """The user's wheel of the pinned version, built now if there is no intact one.

    Raises BuildError when there is no compiler, and CommandError when the build fails.
    """
    flags = cmake_flags(os.environ)
    home = _cache(os.environ) / key(flags)
    home.mkdir(exist_ok=True)
    with _exclusive(home / "lock"):
        wheel = None if rebuild else _intact_wheel(home)
        return wheel or _build(home, flags)


def cmake_flags(environment: Mapping[str, str], cpu_info: Path = CPU_INFO) -> str:
    """CMake's flags of the build; those of ``CMAKE_ARGS`` stand last, where they overrule the others."""
    own = [PORTABLE, *instructions(environment, cpu_info), *ONLY_WHAT_IS_USED]
    return " ".join([*own, environment.get("CMAKE_ARGS", "")]).strip()


def instructions(environment: Mapping[str, str], cpu_info: Path = CPU_INFO) -> list[str]:
    """CMake's flags for what this CPU can do beyond AVX2; none if ``HEADRACE_PORTABLE_BUILD`` is set, for images that
    run elsewhere, or where the CPU does not say."""
    if environment.get("HEADRACE_PORTABLE_BUILD") or not cpu_info.exists():
        return []
    found = re.search(r"^flags\s*:(.*)$", cpu_info.read_text(errors="replace"), re.MULTILINE)
    features = set(found[1].split()) if found else set()
    return [f"-D{flag}=ON" for flag, needed in INSTRUCTIONS.items() if needed <= features]


def key(flags: str) -> str:
    """What the wheel depends on: not the version of Python, for it calls its library through ctypes."""
    pin = re.search(r"^llama-cpp-python==(\S+)", LLAMA_LOCK.read_text(), re.MULTILINE)
    if pin is None:
        raise BuildError(f"{LLAMA_LOCK} does not pin llama-cpp-python")
    slug = re.sub(r"\W+", "-", flags).strip("-").lower()
    if len(slug) > _LONGEST_SLUG:
        slug = f"{slug[:_LONGEST_SLUG]}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
    return f"llama-cpp-python-{pin[1]}-{sysconfig.get_platform()}-{slug}"


def _cache(environment: Mapping[str, str]) -> Path:
    """The user's cache; a folder of the repository for a user without a home to write in."""
    homes = [REPOSITORY / ".cache"]
    if home := environment.get("HOME"):
        homes.insert(0, Path(home, ".cache", "headrace"))
    if cache := environment.get("XDG_CACHE_HOME"):
        homes.insert(0, Path(cache, "headrace"))
    for path in homes:
        with contextlib.suppress(OSError):
            wheels = path / "wheels"
            wheels.mkdir(parents=True, exist_ok=True)
            if os.access(wheels, os.W_OK | os.X_OK):
                return wheels
    raise BuildError(f"cannot write to any of {', '.join(map(str, homes))}")


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Two set-ups at once build one wheel; the lock of a killed one ends with it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is building llama-cpp-python; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _intact_wheel(home: Path) -> Path | None:
    for wheel in home.glob("*.whl"):
        checksum = wheel.with_suffix(".sha256")
        if checksum.exists() and checksum.read_text().strip() == _sha256(wheel):
            return wheel
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build(home: Path, flags: str) -> Path:
    """Build beside the place of the wheel, and move it there whole."""
    _require_compilers()
    for abandoned in home.glob("building-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="building-", dir=home) as staging:
        built = _compile(Path(staging), flags, log=home / "build.log")
        wheel = home / built.name
        wheel.with_suffix(".sha256").write_text(f"{_sha256(built)}\n")
        return built.replace(wheel)


def _require_compilers() -> None:
    for language, (variable, *names) in _COMPILERS.items():
        chosen = os.environ.get(variable, "").split()
        if not any(shutil.which(name) for name in [*chosen[:1], *names]):
            raise BuildError(
                f"llama-cpp-python has to be compiled, and there is no {language} compiler. Install one\n"
                "  (Debian, Ubuntu: apt-get install build-essential; Fedora: dnf install gcc-c++;\n"
                "  macOS: xcode-select --install) and run this again."
            )


def _compile(staging: Path, flags: str, *, log: Path) -> Path:
    """Compile with the pinned build tools, CMake and ninja among them, in an environment of their own."""
    log.write_text("")
    tools, wheels, option = staging / "tools", staging / "wheels", staging / "option.cmake"
    option.write_text(_KEEP_OPTION)
    env = {
        **os.environ,
        "CMAKE_ARGS": f"{flags} {shlex.quote(f'-DCMAKE_PROJECT_llama_cpp_INCLUDE={option}')}",
        "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(staging),
    }
    pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    locked = ["--require-hashes", "--no-deps"]
    make_tools = [sys.executable, "-m", "venv", str(tools)]
    fetch_tools = [*pip, "install", *locked, "-r", str(BUILD_LOCK)]
    # Without pip's cache, which would give back a wheel that was built with other flags.
    build = [*pip, "-v", "wheel", "--no-cache-dir", "--no-build-isolation", *locked, "-w", str(wheels)]
    build += ["-r", str(LLAMA_LOCK)]
    say("llama-cpp-python is published as source only: it is compiled now, once for this user,")
    say("which takes 2 to 5 minutes on 2 cores")
    follow("preparing to compile", make_tools, step=_PIP_STEP, log=log)
    follow("fetching the build tools", fetch_tools, step=_PIP_STEP, log=log, env=env)
    follow("compiling llama-cpp-python", build, step=_NINJA_STEP, log=log, env=env)
    return next(wheels.glob("*.whl"))


if __name__ == "__main__":
    try:
        print(ensure_wheel())
    except (BuildError, CommandError) as error:
        sys.exit(f"headrace: {error}")
