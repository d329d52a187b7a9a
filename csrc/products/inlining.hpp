// What must be inlined for its numbers to stay in registers.
#pragma once

#define SLLM_INLINE __attribute__((always_inline)) inline
#define SLLM_INLINE_LAMBDA __attribute__((always_inline))
