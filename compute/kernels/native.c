/* The decoder's small kernels for one element type, chosen at compile time: norms, gates, rotation, the write
 * into the KV pool, and decode attention over the pool in place (nothing is gathered).
 *
 * Plain C with OpenMP; the compiler vectorises it. Arithmetic is float32. Each row's result depends on that row
 * alone, to the last bit. NaN and infinity pass through: no -ffinite-math-only. Bounds were checked by native.py.
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

/* residual += x unless x is null; out = norm(residual). All [rows, n]. */
void add_norm(const real *x, real *residual, const float *weight, real *out, int64_t rows, int64_t n, float eps) {
#pragma omp parallel for if (rows * n > PARALLEL_ELEMENTS)
    for (int64_t row = 0; row < rows; row++) {
        real *sum = residual + row * n;
        if (x)
            for (int64_t i = 0; i < n; i++) sum[i] = put(get(sum[i]) + get(x[row * n + i]));
        norm_row(sum, weight, out + row * n, n, eps);
    }
}

/* x [rows, 2n] -> out [rows, n]: activation(left half) * right half. */
void gate(const real *x, real *out, int64_t rows, int64_t n, int64_t kind) {
#pragma omp parallel for if (rows * n > PARALLEL_ELEMENTS / 4)
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

/* The running softmax of one query head: sum of weights, greatest score, weighted values in acc [D].
 * Inlined once for each common D: a constant lets the compiler keep q and acc in registers. */
static inline __attribute__((always_inline)) void absorb(const Layer *l, int64_t dim, const float *restrict q,
                                                         const real *restrict keys, const real *restrict values,
                                                         int64_t n, float *restrict score, float *restrict most,
                                                         float *restrict total, float *restrict acc) {
    float top = *most;
    for (int64_t j = 0; j < n; j++) {
        float dot = 0.0f;
        for (int64_t i = 0; i < dim; i++) dot += q[i] * get(keys[j * dim + i]);
        dot *= l->scale;
        if (l->softcap != 0.0f) dot = l->softcap * tangent(dot / l->softcap);
        score[j] = dot;
        top = dot > top ? dot : top;
    }
    float shrink = exponential(*most - top), sum = 0.0f;
    for (int64_t j = 0; j < n; j++) {
        score[j] = exponential(score[j] - top);
        sum += score[j];
    }
    *total = *total * shrink + sum;
    *most = top;
    if (shrink != 1.0f)
        for (int64_t i = 0; i < dim; i++) acc[i] *= shrink;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < dim; i++) acc[i] += score[j] * get(values[j * dim + i]);
}

/* Decode row b, kv head k: its G queries over the row's blocks; slots at or beyond its length are not read. */
static void attend_row(const Layer *l, const Step *s, const real *qkv, real *out, int64_t b, int64_t k) {
    int64_t dim = l->dim, group = l->heads / l->kv_heads, length = s->lengths[b];
    float q[group * dim], acc[group * dim], most[group], total[group], score[s->slots];
    const real *from = qkv + (b * (l->heads + 2 * l->kv_heads) + k * group) * dim;
    for (int64_t i = 0; i < group * dim; i++) {
        q[i] = get(from[i]);
        acc[i] = 0.0f;
    }
    for (int64_t g = 0; g < group; g++) {
        most[g] = -3.0e38f;
        total[g] = 0.0f;
    }
    int64_t first = l->window && length > l->window ? length - l->window : 0;
    for (int64_t at = first; at < length;) {
        int64_t slot = at % s->slots, n = s->slots - slot;
        n = n < length - at ? n : length - at;
        int64_t block = s->tables[b * s->table_width + at / s->slots];
        const real *keys = slots_of(l, s, block, 0, k) + slot * dim;
        const real *values = slots_of(l, s, block, 1, k) + slot * dim;
        for (int64_t g = 0; g < group; g++) {
            float *mine = q + g * dim, *sum = acc + g * dim;
            if (dim == 64) absorb(l, 64, mine, keys, values, n, score, most + g, total + g, sum);
            else if (dim == 128) absorb(l, 128, mine, keys, values, n, score, most + g, total + g, sum);
            else absorb(l, dim, mine, keys, values, n, score, most + g, total + g, sum);
        }
        at += n;
    }
    real *to = out + (b * l->heads + k * group) * dim;
    for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < dim; i++) to[g * dim + i] = put(acc[g * dim + i] / total[g]);
}

/* One layer: every token is placed, then the decode rows attend. Rows of out beyond them are left alone. */
void attend(const Layer *l, const Step *s, real *qkv, const float *cos, const float *sin, real *out) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < s->tokens; t++) place(l, s, qkv, cos, sin, t);
#pragma omp for schedule(static)
        for (int64_t task = 0; task < s->decode * l->kv_heads; task++)
            attend_row(l, s, qkv, out, task / l->kv_heads, task % l->kv_heads);
    }
}
