// Compiled for the oldest processor of its kind, whatever the other libraries are compiled for.

#include "llama-triattn-cpu.h"

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)

#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

enum { STATE_NONE = 0, STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_AMX = 0x60000 }; // bits of XCR0 that must be set

// where CPUID tells of a set of instructions, and what the operating system must save of it
static const struct {
    const char * name;
    uint32_t     leaf, subleaf, reg, bit, state;
} FEATURES[] = {
    { "sse3",       1, 0, ECX,  0, STATE_NONE   },
    { "ssse3",      1, 0, ECX,  9, STATE_NONE   },
    { "sse4.1",     1, 0, ECX, 19, STATE_NONE   },
    { "sse4.2",     1, 0, ECX, 20, STATE_NONE   },
    { "popcnt",     1, 0, ECX, 23, STATE_NONE   },
    { "avx",        1, 0, ECX, 28, STATE_AVX    },
    { "f16c",       1, 0, ECX, 29, STATE_AVX    },
    { "fma",        1, 0, ECX, 12, STATE_AVX    },
    { "avx2",       7, 0, EBX,  5, STATE_AVX    },
    { "bmi",        7, 0, EBX,  3, STATE_NONE   },
    { "bmi2",       7, 0, EBX,  8, STATE_NONE   },
    { "avx512f",    7, 0, EBX, 16, STATE_AVX512 },
    { "avx512bw",   7, 0, EBX, 30, STATE_AVX512 },
    { "avx512dq",   7, 0, EBX, 17, STATE_AVX512 },
    { "avx512vl",   7, 0, EBX, 31, STATE_AVX512 },
    { "avx512vbmi", 7, 0, ECX,  1, STATE_AVX512 },
    { "avx512vnni", 7, 0, ECX, 11, STATE_AVX512 },
    { "avx512bf16", 7, 1, EAX,  5, STATE_AVX512 },
    { "avx512fp16", 7, 0, EDX, 23, STATE_AVX512 },
    { "avxvnni",    7, 1, EAX,  4, STATE_AVX    },
    { "amx-tile",   7, 0, EDX, 24, STATE_AMX    },
    { "amx-int8",   7, 0, EDX, 25, STATE_AMX    },
    { "amx-bf16",   7, 0, EDX, 22, STATE_AMX    },
};

// what the operating system saves when it switches threads; 0 if it does not say
static uint32_t saved_state(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) {
        return 0;
    }
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

static int has(const char * name, size_t n) {
    for (size_t i = 0; i < sizeof(FEATURES)/sizeof(FEATURES[0]); ++i) {
        if (strlen(FEATURES[i].name) != n || strncmp(FEATURES[i].name, name, n) != 0) {
            continue;
        }
        uint32_t r[4];
        if (!__get_cpuid_count(FEATURES[i].leaf, FEATURES[i].subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX])) {
            return 0;
        }
        return (r[FEATURES[i].reg] >> FEATURES[i].bit & 1) && (saved_state() & FEATURES[i].state) == FEATURES[i].state;
    }
    return 1; // unknown here: not for this file to refuse
}

#else

static int has(const char * name, size_t n) {
    (void) name;
    (void) n;
    return 1; // elsewhere only the self-test tells
}

#endif

const char * llama_triattn_cpu_lacks(void) {
    static char res[512];

    res[0] = '\0';
    for (const char * p = llama_triattn_cpu_needs; *p; ) {
        const size_t n = strcspn(p, " ");
        if (n > 0 && !has(p, n) && strlen(res) + n + 2 < sizeof(res)) {
            strcat(res, res[0] ? " " : "");
            strncat(res, p, n);
        }
        p += n + (p[n] == ' ');
    }
    return res;
}
