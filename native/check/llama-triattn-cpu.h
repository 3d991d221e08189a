#pragma once

// Whether this processor has the instructions that the libraries beside this one were compiled to use. Asked before any of them
// is loaded, so that a library that was built elsewhere ends in a sentence and not in an illegal instruction.

#ifdef __cplusplus
extern "C" {
#endif

// names of instruction sets, separated by spaces: what ggml's CPU backend was compiled with
extern const char llama_triattn_cpu_needs[];

// those of them that this processor or its operating system lacks, "" if none; not thread-safe
__attribute__((visibility("default"))) const char * llama_triattn_cpu_lacks(void);

#ifdef __cplusplus
}
#endif
