#!/bin/sh
# Runs tests of the engine with ASan and UBSan in the library.
#
#     scripts/sanitize.sh DIR [pytest's arguments]     DIR: the library, of
#         python native/build_backend.py patched --sanitize --out DIR
#
# Without arguments: all of tests/test_engine*.py but those that start llama-server, which is another build. The tests are slower
# than usual by a factor of two or three. Whatever a sanitizer, an assert of llama.cpp or the cells' own check finds, in any
# process, ends the test that found it, and is shown at the end. $PYTHON: the interpreter, python by default.
set -eu
cd "$(dirname "$0")/.."
[ -n "${1:-}" ] && [ -e "$1/libllama.so" ] || { echo "sanitize.sh: name the folder of the library; see the head of this file" >&2; exit 2; }
library=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- $(ls tests/test_engine*.py | grep -v server)

reports=$(mktemp -d)
status=0
env LLAMA_CPP_LIB_PATH="$library" LLAMA_TRIATTN_CHECK=1 \
    LD_PRELOAD="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libubsan.so)" \
    ASAN_OPTIONS="detect_leaks=0:log_path=$reports/asan:${ASAN_OPTIONS:-}" \
    UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:log_path=$reports/ubsan:${UBSAN_OPTIONS:-}" \
    "${PYTHON:-python}" -m pytest -p no:cacheprovider "$@" || status=$?
found=$(ls "$reports" | wc -l)
[ "$found" -eq 0 ] || { head -n 40 "$reports"/*; status=1; }
echo "sanitizers: $found reports"
rm -r "$reports"
exit $status
