// Compiled with the flags of ggml's CPU backend. Holds data and no instruction, so that any processor may read it.

#include "llama-triattn-cpu.h"

const char llama_triattn_cpu_needs[] = ""
#if defined(__x86_64__) || defined(__i386__)
#ifdef __SSE3__
    "sse3 "
#endif
#ifdef __SSSE3__
    "ssse3 "
#endif
#ifdef __SSE4_1__
    "sse4.1 "
#endif
#ifdef __SSE4_2__
    "sse4.2 "
#endif
#ifdef __POPCNT__
    "popcnt "
#endif
#ifdef __AVX__
    "avx "
#endif
#ifdef __F16C__
    "f16c "
#endif
#ifdef __FMA__
    "fma "
#endif
#ifdef __AVX2__
    "avx2 "
#endif
#ifdef __BMI__
    "bmi "
#endif
#ifdef __BMI2__
    "bmi2 "
#endif
#ifdef __AVX512F__
    "avx512f "
#endif
#ifdef __AVX512BW__
    "avx512bw "
#endif
#ifdef __AVX512DQ__
    "avx512dq "
#endif
#ifdef __AVX512VL__
    "avx512vl "
#endif
#ifdef __AVX512VBMI__
    "avx512vbmi "
#endif
#ifdef __AVX512VNNI__
    "avx512vnni "
#endif
#ifdef __AVX512BF16__
    "avx512bf16 "
#endif
#ifdef __AVX512FP16__
    "avx512fp16 "
#endif
#ifdef __AVXVNNI__
    "avxvnni "
#endif
#ifdef __AMX_TILE__
    "amx-tile "
#endif
#ifdef __AMX_INT8__
    "amx-int8 "
#endif
#ifdef __AMX_BF16__
    "amx-bf16 "
#endif
#endif
;
