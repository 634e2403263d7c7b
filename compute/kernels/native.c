/* The decoder's small kernels for one element type, chosen at compile time: norms, gates, rotation, the write
 * into the KV pool, and decode attention over the pool in place (nothing is gathered).
 *
 * Plain C with OpenMP; the compiler vectorises it. Arithmetic is float32. Each row's result depends on that row
 * alone, to the last bit. NaN and infinity pass through: no -ffinite-math-only. Bounds were checked by native_cpu.py and __init__.py.
 *
 *   T tokens, N of them real, H query heads, K kv heads, G = H / K, D head_dim
 *   pool  [blocks][L][2][K][slots][D]
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef BFLOAT16
typedef uint16_t real;
static inline float get(real x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
static inline real put(float x) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (real)(x != x ? 0x7fc0 : rounded);
}
#else
typedef float real;
static inline float get(real x) { return x; }
static inline real put(float x) { return x; }
#endif

enum { PARALLEL_ELEMENTS = 32768 }; /* below it, waking a second thread costs more than it saves */
enum { SILU = 0, GELU_TANH = 1 };

/* e^x to about 1e-7: 2^n times a polynomial in the remaining fraction. */
static inline float exponential(float x) {
    float bounded = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float n = floorf(bounded * 1.44269504f + 0.5f);
    float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x != x ? x : p * power;
}

static inline float tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

/* out = x / rms(x) * weight, one row of n. */
static void norm_row(const real *x, const float *weight, real *out, int64_t n, float eps) {
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) sum += get(x[i]) * get(x[i]);
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = put(get(x[i]) * scale * weight[i]);
}

/* Functions ending in _part share their loop among the threads of the parallel region that calls them, and return
 * when all are done: `decode.c` runs a whole model in one region. */

/* residual += x unless x is null; out = norm(residual). All [rows, n]. */
static void add_norm_part(const real *x, real *residual, const float *weight, real *out, int64_t rows, int64_t n, float eps) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        real *sum = residual + row * n;
        if (x)
            for (int64_t i = 0; i < n; i++) sum[i] = put(get(sum[i]) + get(x[row * n + i]));
        norm_row(sum, weight, out + row * n, n, eps);
    }
}

void add_norm(const real *x, real *residual, const float *weight, real *out, int64_t rows, int64_t n, float eps) {
#pragma omp parallel if (rows * n > PARALLEL_ELEMENTS)
    add_norm_part(x, residual, weight, out, rows, n, eps);
}

/* x [rows, 2n] -> out [rows, n]: activation(left half) * right half. */
static void gate_part(const real *x, real *out, int64_t rows, int64_t n, int64_t kind) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const real *left = x + row * 2 * n, *right = left + n;
        real *to = out + row * n;
        if (kind == SILU)
            for (int64_t i = 0; i < n; i++) {
                float u = get(left[i]);
                to[i] = put(u / (1.0f + exponential(-u)) * get(right[i]));
            }
        else
            for (int64_t i = 0; i < n; i++) {
                float u = get(left[i]);
                float inner = 0.7978845608f * (u + 0.044715f * u * u * u);
                /* (1 + tanh z) / 2 is the logistic of 2 z, without the cancellation */
                to[i] = put(u / (1.0f + exponential(-2.0f * inner)) * get(right[i]));
            }
    }
}

void gate(const real *x, real *out, int64_t rows, int64_t n, int64_t kind) {
#pragma omp parallel if (rows * n > PARALLEL_ELEMENTS / 4)
    gate_part(x, out, rows, n, kind);
}

typedef struct {
    int64_t layer, heads, kv_heads, dim, window; /* window 0: all */
    float scale, softcap, eps, unused;           /* softcap 0: none */
    const float *q_norm, *k_norm;                /* [D] or null */
} Layer;

typedef struct {
    real *pool;
    int64_t layers, slots;
    int64_t tokens, padded;                        /* N, T */
    const int64_t *write_blocks, *write_slots;     /* [N] */
    int64_t decode, table_width;                   /* decode rows: the first tokens of the step */
    const int64_t *tables, *lengths;               /* [decode, table_width], [decode] */
} Step;

static inline real *slots_of(const Layer *l, const Step *s, int64_t block, int64_t kv, int64_t head) {
    return s->pool + (((block * s->layers + l->layer) * 2 + kv) * l->kv_heads + head) * s->slots * l->dim;
}

/* One head turned by cos and sin [D], normed first if asked; `to` may be `from`. */
static void turn(const Layer *l, const real *from, real *to, const float *weight, const float *cos, const float *sin) {
    int64_t half = l->dim / 2;
    real normed[l->dim];
    if (weight) {
        norm_row(from, weight, normed, l->dim, l->eps);
        from = normed;
    }
    for (int64_t i = 0; i < half; i++) {
        float a = get(from[i]), b = get(from[i + half]);
        to[i] = put(a * cos[i] + b * sin[i]);
        to[i + half] = put(b * cos[i + half] + a * sin[i + half]);
    }
}

/* Token t: rotates its queries in place, stores its rotated keys and its values in their slot. */
static void place(const Layer *l, const Step *s, real *qkv, const float *cos, const float *sin, int64_t t) {
    int64_t dim = l->dim, kv_heads = l->kv_heads;
    real *row = qkv + t * (l->heads + 2 * kv_heads) * dim;
    cos += t * dim;
    sin += t * dim;
    for (int64_t h = 0; h < l->heads; h++) turn(l, row + h * dim, row + h * dim, l->q_norm, cos, sin);
    row += l->heads * dim;
    for (int64_t h = 0; h < kv_heads; h++, row += dim) {
        int64_t at = s->write_slots[t] * dim;
        turn(l, row, slots_of(l, s, s->write_blocks[t], 0, h) + at, l->k_norm, cos, sin);
        memcpy(slots_of(l, s, s->write_blocks[t], 1, h) + at, row + kv_heads * dim, (size_t)dim * sizeof(real));
    }
}

/* Sixteen elements as floats. The compiler makes the widest registers of the machine of them. */
typedef float lanes __attribute__((vector_size(64)));
enum { LANES = 16, MOST_GROUP = 64, MANY_ROWS = 8 };

#ifdef BFLOAT16
static inline lanes lanes_of(const real *x) {
    typedef uint16_t narrow __attribute__((vector_size(32)));
    typedef uint32_t wide __attribute__((vector_size(64)));
    narrow bits;
    memcpy(&bits, x, sizeof bits);
    return (lanes)(__builtin_convertvector(bits, wide) << 16);
}
#else
static inline lanes lanes_of(const real *x) {
    lanes y;
    memcpy(&y, x, sizeof y);
    return y;
}
#endif

static inline lanes loaded(const float *x) {
    lanes y;
    memcpy(&y, x, sizeof y);
    return y;
}

static inline float total_of(lanes x) {
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* What one row has summed so far, of each query head of the kv heads [from, to): the running softmax of Milakov and
 * Gimelshein (arXiv 1805.02867). Keys and values are read once for a whole group. */
typedef struct {
    int64_t row, from, to;
    float *q, *acc, *most, *total; /* [heads · D], [heads · D], [heads], [heads] */
} Sums;

/* score [G][slots] of n slots. `group` and `dim` are constants where it pays: sums stay in registers. */
static inline __attribute__((always_inline)) void
scores_of(const Layer *l, int64_t group, int64_t dim, const float *q, const real *keys, int64_t n, int64_t slots, float *score) {
    for (int64_t j = 0; j < n; j++) {
        lanes sum[MOST_GROUP] = {0};
        for (int64_t i = 0; i < dim; i += LANES) {
            lanes key = lanes_of(keys + j * dim + i);
            for (int64_t g = 0; g < group; g++) sum[g] += key * loaded(q + g * dim + i);
        }
        for (int64_t g = 0; g < group; g++) {
            float dot = total_of(sum[g]) * l->scale;
            score[g * slots + j] = l->softcap != 0.0f ? l->softcap * tangent(dot / l->softcap) : dot;
        }
    }
}

/* Scores become weights; `acc` and `total` shrink when the greatest score grows. */
static inline void weigh(float *score, int64_t n, int64_t dim, float *most, float *total, float *acc) {
    float top = *most, sum = 0.0f;
    for (int64_t j = 0; j < n; j++) top = score[j] > top ? score[j] : top;
    float shrink = exponential(*most - top);
    for (int64_t j = 0; j < n; j++) {
        score[j] = exponential(score[j] - top);
        sum += score[j];
    }
    *total = *total * shrink + sum;
    *most = top;
    if (shrink != 1.0f)
        for (int64_t i = 0; i < dim; i++) acc[i] *= shrink;
}

static inline __attribute__((always_inline)) void
mix(int64_t group, int64_t dim, const float *score, const real *values, int64_t n, int64_t slots, float *acc) {
    for (int64_t i = 0; i < dim; i += LANES) {
        lanes sum[MOST_GROUP];
        for (int64_t g = 0; g < group; g++) sum[g] = loaded(acc + g * dim + i);
        for (int64_t j = 0; j < n; j++) {
            lanes value = lanes_of(values + j * dim + i);
            for (int64_t g = 0; g < group; g++) sum[g] += value * score[g * slots + j];
        }
        for (int64_t g = 0; g < group; g++) memcpy(acc + g * dim + i, &sum[g], sizeof sum[g]);
    }
}

/* Names a block's keys and values to the cache: extents this short end before the hardware's prefetcher starts. */
static inline void fetch(const Layer *l, const Step *s, int64_t block, int64_t from, int64_t to) {
    const char *keys = (const char *)slots_of(l, s, block, 0, from), *values = (const char *)slots_of(l, s, block, 1, from);
    for (int64_t i = 0; i < (to - from) * s->slots * l->dim * (int64_t)sizeof(real); i += 64) {
        __builtin_prefetch(keys + i, 0, 2);
        __builtin_prefetch(values + i, 0, 2);
    }
}

/* The row's slots block by block, and of each block all kv heads, so that its pages are visited once. */
static inline __attribute__((always_inline)) void
absorb(const Layer *l, const Step *s, int64_t group, int64_t dim, const Sums *sums) {
    int64_t slots = s->slots, length = s->lengths[sums->row];
    const int64_t *table = s->tables + sums->row * s->table_width;
    float score[group * slots];
    for (int64_t at = l->window && length > l->window ? length - l->window : 0; at < length;) {
        int64_t slot = at % slots, n = slots - slot, block = table[at / slots];
        n = n < length - at ? n : length - at;
        if (at + n < length) fetch(l, s, table[at / slots + 1], sums->from, sums->to);
        for (int64_t k = sums->from; k < sums->to; k++) {
            int64_t head = (k - sums->from) * group;
            scores_of(l, group, dim, sums->q + head * dim, slots_of(l, s, block, 0, k) + slot * dim, n, slots, score);
            for (int64_t g = 0; g < group; g++)
                weigh(score + g * slots, n, dim, sums->most + head + g, sums->total + head + g, sums->acc + (head + g) * dim);
            mix(group, dim, score, slots_of(l, s, block, 1, k) + slot * dim, n, slots, sums->acc + head * dim);
        }
        at += n;
    }
}

static void absorb_row(const Layer *l, const Step *s, const Sums *sums) {
    int64_t group = l->heads / l->kv_heads;
#define CASE(G, D) if (group == G && l->dim == D) { absorb(l, s, G, D, sums); return; }
    CASE(1, 64) CASE(2, 64) CASE(3, 64) CASE(4, 64) CASE(8, 64)
    CASE(1, 128) CASE(2, 128) CASE(4, 128) CASE(5, 128) CASE(8, 128)
#undef CASE
    absorb(l, s, group, l->dim, sums);
}

/* Decode row `row`, kv heads [from, to): their queries over the row's blocks; slots beyond its length are not read. */
static void attend_row(const Layer *l, const Step *s, const real *qkv, real *out, int64_t row, int64_t from, int64_t to) {
    int64_t dim = l->dim, group = l->heads / l->kv_heads, heads = (to - from) * group;
    float q[heads * dim], acc[heads * dim], most[heads], total[heads];
    const real *asked = qkv + (row * (l->heads + 2 * l->kv_heads) + from * group) * dim;
    for (int64_t i = 0; i < heads * dim; i++) {
        q[i] = get(asked[i]);
        acc[i] = 0.0f;
    }
    for (int64_t h = 0; h < heads; h++) {
        most[h] = -3.0e38f; /* finite: minus infinity less itself is NaN */
        total[h] = 0.0f;
    }
    absorb_row(l, s, &(Sums){row, from, to, q, acc, most, total});
    real *answer = out + (row * l->heads + from * group) * dim;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < dim; i++) answer[h * dim + i] = put(acc[h * dim + i] / total[h]);
}

/* One layer: every token is placed, then the decode rows attend. Rows of out beyond them are left alone. */
static void attend_part(const Layer *l, const Step *s, real *qkv, const float *cos, const float *sin, real *out) {
    int64_t parts = s->decode < MANY_ROWS ? l->kv_heads : 1, share = l->kv_heads / parts; /* tasks a row */
#pragma omp for schedule(static)
    for (int64_t t = 0; t < s->tokens; t++) place(l, s, qkv, cos, sin, t);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < s->decode * parts; task++)
        attend_row(l, s, qkv, out, task / parts, task % parts * share, (task % parts + 1) * share);
}

void attend(const Layer *l, const Step *s, real *qkv, const float *cos, const float *sin, real *out) {
#pragma omp parallel
    attend_part(l, s, qkv, cos, sin, out);
}
