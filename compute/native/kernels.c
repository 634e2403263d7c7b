/* In-place CPU kernels for decode steps: small batches where one pass over memory beats a chain of tensor operations.

   Every row is computed by itself in a fixed order, so its values do not depend on who shares the batch. Arithmetic is
   float32 whatever the storage type. Built at run time by build.py with the machine's own instruction set; compiled
   once per storage type: T is the element, LOAD and STORE convert.

   Pool: a block is one extent [layer][K,V][kv head][slot][dim]. `layer` points at this layer's K of block 0. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_DIM 256
#define MAX_GROUP 64
#define TILE 64 /* slots attended at once; scores of a tile stay in registers and L1 */

typedef uint16_t bf16;

static inline float from_bf16(bf16 x) {
  union { uint32_t u; float f; } v = {(uint32_t)x << 16};
  return v.f;
}

static inline bf16 to_bf16(float x) { /* round to nearest even; NaN stays NaN */
  union { float f; uint32_t u; } v = {x};
  uint32_t rounded = (v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16;
  return (bf16)(x != x ? 0x7fc0 : rounded);
}

static inline float from_f32(float x) { return x; }
static inline float to_f32(float x) { return x; }

/* e^x for x <= 0, relative error below 2e-7: 2^n times a degree-6 polynomial; branch-free, so loops vectorise. */
static inline float exp_neg(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = __builtin_rintf(x * 1.44269504f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665796e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0e-1f;
  p = p * r * r + r + 1.0f;
  union { int32_t i; float f; } power = {((int32_t)n + 127) << 23};
  return p * power.f;
}

typedef struct {
  int32_t rows, q_heads, kv_heads, dim, block_size, table_stride, window; /* window 0: none */
  float scale, softcap;                                                   /* softcap 0: none */
  int64_t block_stride;                                                   /* elements between blocks of the pool */
} Shape;

#define INLINE static inline __attribute__((always_inline))
#define LANES 16
#define LOWEST -3.0e38f /* finite: minus infinity less itself is NaN */
typedef float lanes __attribute__((vector_size(4 * LANES)));

INLINE lanes lanes_f32(const float *x) {
  lanes v;
  __builtin_memcpy(&v, x, sizeof v);
  return v;
}

INLINE lanes lanes_bf16(const bf16 *x) {
  typedef uint16_t narrow __attribute__((vector_size(2 * LANES)));
  typedef uint32_t wide __attribute__((vector_size(4 * LANES)));
  narrow v;
  __builtin_memcpy(&v, x, sizeof v);
  return (lanes)(__builtin_convertvector(v, wide) << 16);
}

INLINE float total(lanes x) {
  typedef float half __attribute__((vector_size(32)));
  typedef float quarter __attribute__((vector_size(16)));
  half h[2];
  quarter q[2];
  __builtin_memcpy(h, &x, sizeof x);
  h[0] += h[1];
  __builtin_memcpy(q, h, sizeof q);
  q[0] += q[1];
  return (q[0][0] + q[0][1]) + (q[0][2] + q[0][3]);
}

/* Turns scores into weights relative to the running maximum; what the earlier sums must be multiplied with. */
INLINE float fold(float *p, int count, float *top, float *sum) {
  float best = *top, added = 0;
  for (int t = 0; t < count; t++) best = p[t] > best ? p[t] : best;
#pragma omp simd reduction(+ : added)
  for (int t = 0; t < count; t++) {
    p[t] = exp_neg(p[t] - best);
    added += p[t];
  }
  float shrink = exp_neg(*top - best);
  *sum = *sum * shrink + added;
  *top = best;
  return shrink;
}

#define T bf16
#define LOAD from_bf16
#define STORE to_bf16
#define NAME(x) x##_bf16
#include "templates.c"
#undef T
#undef LOAD
#undef STORE
#undef NAME

#define T float
#define LOAD from_f32
#define STORE to_f32
#define NAME(x) x##_f32
#include "templates.c"
