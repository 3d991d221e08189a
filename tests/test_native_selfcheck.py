"""What a build does to be sure that it runs where it was made, and what is said where it does not."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
sys.path.insert(0, str(NATIVE))

import cpu  # noqa: E402
import patching  # noqa: E402
import selfcheck  # noqa: E402
import toolchain  # noqa: E402
import upstream  # noqa: E402

X86 = toolchain.platform_is_x86()
CC = shutil.which("cc") or shutil.which("gcc")

needs_compiler = pytest.mark.skipif(CC is None, reason="no C compiler")
needs_x86 = pytest.mark.skipif(not X86, reason="the instructions are x86's")


# ---- the AMX tile configuration, which gcc before 12.4 and 13.3 stores in part


FILLED = {0, *range(16, 32), *range(48, 56)}  # palette, columns and rows of eight tiles: what is not zero


def _stored_bytes(assembly: str) -> set[int]:
    """Of the 64 bytes that ldtilecfg reads, those that something else than zeros is stored into before it."""
    target = re.search(r"ldtilecfg\s+(-?\d*)\((%\w+)\)", assembly)
    assert target, "no ldtilecfg in what was compiled"
    first, base = int(target[1] or 0), target[2]
    width = {"%zmm": 64, "%ymm": 32, "%xmm": 16}
    sizes = {"movb": 1, "movw": 2, "movl": 4, "movq": 8}
    zeros: set[str] = set()  # numbers of vector registers that hold them
    stored: set[int] = set()
    for line in assembly[: target.start()].splitlines():
        if made := re.match(r"\s+(v?\w+)\s+.*%[xyz]mm(\d+)$", line):
            (zeros.add if "xor" in made[1] else zeros.discard)(made[2])
        store = re.match(rf"\s+(v?mov\w+)\s+([^,]+),\s*(-?\d*)\({re.escape(base)}\)$", line)
        if not store or store[2] in ("$0", *(f"%{kind}mm{number}" for kind in "xyz" for number in zeros)):
            continue
        size = width.get(store[2][:4]) or sizes.get(store[1], 8)
        start = int(store[3] or 0) - first
        stored |= set(range(start, start + size))
    return stored


@needs_compiler
@needs_x86
@pytest.mark.parametrize("level", ["-O2", "-O3"])
def test_the_tile_configuration_is_stored_whole(level: str, tmp_path: Path) -> None:
    cache = upstream.cache_root()
    with upstream.locked(cache):
        pristine = upstream.pristine_tree(upstream.read_pin(ROOT / "patches" / "UPSTREAM"), cache)
    name = "vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp"
    text = patching.apply_patches(patching.read_patches(ROOT / "patches"), pristine)[name].decode()
    struct = text[text.index("struct tile_config_t") : text.index("// Notes: amx tile config")]
    function = text[text.index("inline void ggml_tile_config_init") :]
    function = function[: function.index("\n}\n") + 3]
    source = (
        f"#include <immintrin.h>\n#include <cstdint>\n{struct}\n{function}\nvoid use() {{ ggml_tile_config_init(); }}\n"
    )
    (tmp_path / "tile.cpp").write_text(source)
    command = ["c++", "-std=c++17", level, "-march=sapphirerapids", "-mamx-tile", "-mamx-int8", "-S"]
    command += ["-fno-stack-protector", "-o", str(tmp_path / "tile.s"), str(tmp_path / "tile.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "sapphirerapids" in done.stderr:
        pytest.skip("this compiler does not know AMX")
    assert done.returncode == 0, done.stderr
    assert _stored_bytes((tmp_path / "tile.s").read_text()) >= FILLED


# ---- a build that dies is compiled again with less


class FakeBuild(toolchain.Build):
    """A build of one small program, compiled for real."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.log, self.program = folder, folder / "build.log", program
        self.compiled: list[tuple[str, ...]] = []

    def compile(self, targets, definitions=(), forgotten=()) -> None:  # type: ignore[no-untyped-def]
        assert selfcheck.PROGRAM in targets
        assert {definition.partition("=")[0] for definition in definitions} <= set(forgotten)
        self.compiled.append(tuple(definitions))
        source = self.folder / "check.c"
        source.write_text(self.program)
        flags = [f"-D{definition}" for definition in definitions]
        subprocess.run(
            [str(CC), *flags, "-DON=1", "-DOFF=0", "-o", str(self.folder / selfcheck.PROGRAM), str(source)], check=True
        )


_DIES = """
#include <signal.h>
#include <stdio.h>
int main(void) {
#if %s
    raise(SIGILL);
#endif
    puts("300 products, all well");
    return 0;
}
"""


@needs_compiler
@needs_x86
def test_a_build_that_dies_is_built_again_with_fewer_instructions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        toolchain, "native_macros", lambda: "#define __AMX_TILE__ 1\n#define __AVX512F__ 1\n#define __AVX2__ 1"
    )
    # dies while AVX-512 is on: with all instructions, where nothing is said, and with all but AMX
    build = FakeBuild(tmp_path, _DIES % "!defined(GGML_AVX512) || GGML_AVX512")
    selfcheck.compile_and_check(build, [])
    assert len(build.compiled) == 3
    said = capsys.readouterr().err
    assert said.count("SIGILL") == 2
    assert "AVX2 and older: 300 products, all well" in said
    assert (tmp_path / "build.log").read_text() == said
    report = json.loads((tmp_path / selfcheck.REPORT).read_text())
    assert report["instructions"] == "AVX2 and older"
    assert len(report["dropped"]) == 2


@needs_compiler
def test_a_build_that_always_dies_is_an_error_with_the_signal(tmp_path: Path) -> None:
    with pytest.raises(upstream.BuildError, match=r"SIGILL.*nothing that this compiler makes runs here"):
        selfcheck.compile_and_check(FakeBuild(tmp_path, _DIES % "1"), [])
    assert not (tmp_path / selfcheck.REPORT).exists()


@needs_compiler
def test_a_build_that_computes_wrongly_is_not_taken(tmp_path: Path) -> None:
    wrong = '#include <stdio.h>\nint main(void) { puts("the product of q4_0 is wrong by 0.3"); return 1; }'
    with pytest.raises(upstream.BuildError, match=r"q4_0 is wrong by 0\.3"):
        selfcheck.compile_and_check(FakeBuild(tmp_path, wrong), [])


@needs_compiler
def test_a_build_for_a_gpu_whose_driver_is_not_here_is_taken(tmp_path: Path) -> None:
    said = "error while loading shared libraries: libcuda.so.1"
    absent = f'#include <stdio.h>\nint main(void) {{ fputs("{said}\\n", stderr); return 127; }}'
    build = FakeBuild(tmp_path, absent)
    selfcheck.compile_and_check(build, [])
    assert "could not be started" in json.loads((tmp_path / selfcheck.REPORT).read_text())["self_test"]


@needs_x86
def test_each_level_says_every_option() -> None:
    """CMake's cache remembers what a level before has said."""
    levels = selfcheck.levels("#define __AMX_TILE__\n#define __AVX512F__\n#define __AVX2__\n#define __AVX512VNNI__ 1")
    assert [level.name for level in levels][1:] == ["all but AMX", "AVX2 and older", "SSE2 alone"]
    named = [{option.partition("=")[0] for option in level.definitions} for level in levels[1:]]
    assert named[0] == named[1] == named[2]
    assert "GGML_AVX512_VNNI=ON" in levels[1].definitions
    assert "GGML_AVX512_VBMI=OFF" in levels[1].definitions
    assert not [option for option in levels[3].definitions if option.endswith("=ON")]


# ---- a library of another processor


def _processor_library(folder: Path, needs: str) -> None:
    source = folder / "needs.c"
    source.write_text(f'const char llama_triattn_cpu_needs[] = "{needs}";\n')
    command = [str(CC), "-shared", "-fPIC", f"-I{NATIVE / 'check'}", "-o", str(folder / "libllama-triattn-cpu.so")]
    subprocess.run([*command, str(NATIVE / "check" / "llama-triattn-cpu.c"), str(source)], check=True)


@needs_compiler
@needs_x86
def test_what_a_processor_lacks_is_named(tmp_path: Path) -> None:
    _processor_library(tmp_path, "sse3 an-instruction-of-tomorrow ")
    assert cpu.lacking(tmp_path) == [], "names that this file does not know are not refused"
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    for name, flag in (("avx512fp16", "avx512_fp16"), ("amx-tile", "amx_tile"), ("avx2", "avx2"), ("sse4.2", "sse4_2")):
        folder = tmp_path / name
        folder.mkdir()
        _processor_library(folder, f"{name} ")
        assert cpu.lacking(folder) == ([] if flag in flags else [name])


@needs_compiler
@needs_x86
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="no qemu-user")
def test_an_older_processor_is_told_in_a_line(tmp_path: Path) -> None:
    _processor_library(tmp_path, "sse3 avx2 avx512f ")
    script = f"import sys; sys.path.insert(0, {str(NATIVE)!r}); import cpu; "
    script += f"from pathlib import Path; cpu.check(Path({str(tmp_path)!r}))"
    done = subprocess.run(
        ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert (
        "another processor, this one lacks avx2, avx512f; build them here: pip install" in done.stderr.splitlines()[-1]
    )


def test_the_library_that_is_loaded_fits_this_processor() -> None:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    assert cpu.lacking(folder) == []
    report = json.loads((folder / selfcheck.REPORT).read_text())
    assert "products" in report["self_test"]
    library = ctypes.CDLL(str(next(folder.glob("libllama-triattn-cpu.*"))))
    if X86:
        needs = ctypes.c_char.in_dll(library, "llama_triattn_cpu_needs")
        assert ctypes.string_at(ctypes.addressof(needs)).split(), "what the CPU backend was compiled with"


@needs_compiler
def test_cmake_forgets_what_an_earlier_level_said(tmp_path: Path) -> None:
    """Else a build after one that had to do with less would say that it has all instructions, and have less."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.21)\nproject(x NONE)\noption(GGML_NATIVE x ON)\n"
        "add_custom_target(all_of_it COMMAND ${CMAKE_COMMAND} -E echo native=${GGML_NATIVE})\n"
    )
    build = toolchain.Build(tmp_path / "src", [])
    for definitions, value in ((["GGML_NATIVE=OFF"], "OFF"), ([], "ON")):
        build.compile(["all_of_it"], definitions, selfcheck.OPTIONS)
        assert build.log.read_text().rstrip().endswith(f"native={value}")
