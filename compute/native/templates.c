/* The kernels, included by kernels.c once per storage type. */

/* Half-rotated RoPE (the Hugging Face convention) of one head: pairs are (i, i + half). cos, sin: [half]. */
static void NAME(rotate)(const T *in, const float *cos, const float *sin, int dim, float scale, float *out) {
  int half = dim / 2;
#pragma omp simd
  for (int i = 0; i < half; i++) {
    float a = LOAD(in[i]), b = LOAD(in[i + half]);
    out[i] = (a * cos[i] - b * sin[i]) * scale;
    out[i + half] = (b * cos[i] + a * sin[i]) * scale;
  }
}

/* Scores of `count` slots of one block for every query head of the group. scores: [group][TILE]. */
INLINE void NAME(score)(const Shape *s, int group, const float *q, const T *k, int count, float *scores) {
  for (int t = 0; t < count; t++) {
    lanes sum[MAX_GROUP] = {0};
    for (int d = 0; d < s->dim; d += LANES) {
      lanes key = NAME(lanes)(k + (size_t)t * s->dim + d);
      for (int g = 0; g < group; g++) sum[g] += key * lanes_f32(q + g * s->dim + d);
    }
    for (int g = 0; g < group; g++) {
      float x = total(sum[g]);
      scores[g * TILE + t] = s->softcap > 0 ? s->softcap * tanhf(x / s->softcap) : x;
    }
  }
}

/* out += scores times values. out: [group][dim]. */
INLINE void NAME(mix)(int dim, int group, const T *v, int count, const float *scores, float *out) {
  for (int d = 0; d < dim; d += LANES) {
    lanes sum[MAX_GROUP];
    for (int g = 0; g < group; g++) sum[g] = lanes_f32(out + g * dim + d);
    for (int t = 0; t < count; t++) {
      lanes value = NAME(lanes)(v + (size_t)t * dim + d);
      for (int g = 0; g < group; g++) sum[g] += value * scores[g * TILE + t];
    }
    for (int g = 0; g < group; g++) __builtin_memcpy(out + g * dim + d, &sum[g], sizeof(lanes));
  }
}

INLINE void NAME(prefetch)(const T *k, size_t v_offset, size_t plane) {
  for (size_t i = 0; i < plane; i += 64 / sizeof(T)) {
    __builtin_prefetch(k + i, 0, 2);
    __builtin_prefetch(k + v_offset + i, 0, 2);
  }
}

/* One query token's group of heads over the slots first..last (inclusive) of its row. q: [group][dim], scaled.
   The online softmax of Milakov & Gimelshein (arXiv 1805.02867), a block at a time. */
INLINE void NAME(attend_group)(const Shape *s, int group, const T *layer, const int32_t *table, int head, int first,
                               int last, const float *q, T *result) {
  size_t plane = (size_t)s->block_size * s->dim, v_offset = (size_t)s->kv_heads * plane;
  float out[MAX_GROUP * MAX_DIM], top[MAX_GROUP], sum[MAX_GROUP], scores[MAX_GROUP * TILE];
  for (int i = 0; i < group * s->dim; i++) out[i] = 0;
  for (int g = 0; g < group; g++) top[g] = LOWEST, sum[g] = 0;
  for (int at = first; at <= last;) {
    int slot = at % s->block_size, left = s->block_size - slot, count = last - at + 1;
    count = count < left ? count : left;
    count = count < TILE ? count : TILE;
    const T *k = layer + (int64_t)table[at / s->block_size] * s->block_stride + head * plane + (size_t)slot * s->dim;
    if (at + left <= last) /* short extents defeat the hardware's prefetcher: name the next block's now */
      NAME(prefetch)(layer + (int64_t)table[(at + left) / s->block_size] * s->block_stride + head * plane, v_offset, plane);
    NAME(score)(s, group, q, k, count, scores);
    for (int g = 0; g < group; g++) {
      float shrink = fold(scores + g * TILE, count, &top[g], &sum[g]);
      if (shrink != 1.0f)
        for (int d = 0; d < s->dim; d++) out[g * s->dim + d] *= shrink;
    }
    NAME(mix)(s->dim, group, k + v_offset, count, scores, out);
    at += count;
  }
  for (int g = 0; g < group; g++)
    for (int d = 0; d < s->dim; d++) result[g * s->dim + d] = STORE(out[g * s->dim + d] / sum[g]);
}

/* The common group sizes get sums that stay in registers. */
static void NAME(attend)(const Shape *s, const T *layer, const int32_t *table, int head, int first, int last,
                         const float *q, T *result) {
  int group = s->q_heads / s->kv_heads;
  switch (group) {
#define GROUP(n) \
  case n: NAME(attend_group)(s, n, layer, table, head, first, last, q, result); break;
    GROUP(1) GROUP(2) GROUP(3) GROUP(4) GROUP(5) GROUP(6) GROUP(7) GROUP(8)
#undef GROUP
  default: NAME(attend_group)(s, group, layer, table, head, first, last, q, result);
  }
}

/* RoPE, KV write and attention of one decode token a row. qkv: [rows][(q_heads + 2 kv_heads) * dim], contiguous.
   cos, sin: [rows][dim / 2]. tables: [rows][table_stride] block ids. positions: [rows]. out: [rows][q_heads * dim]. */
void NAME(decode)(const Shape *s, const T *qkv, const float *cos, const float *sin, T *layer, const int32_t *tables,
                  const int32_t *positions, T *out) {
  int group = s->q_heads / s->kv_heads, half = s->dim / 2;
  size_t plane = (size_t)s->block_size * s->dim, v_offset = (size_t)s->kv_heads * plane;
#pragma omp parallel for collapse(2) schedule(static)
  for (int row = 0; row < s->rows; row++)
    for (int head = 0; head < s->kv_heads; head++) {
      const T *token = qkv + (size_t)row * (s->q_heads + 2 * s->kv_heads) * s->dim;
      const T *k = token + (size_t)(s->q_heads + head) * s->dim, *v = k + (size_t)s->kv_heads * s->dim;
      const float *c = cos + (size_t)row * half, *z = sin + (size_t)row * half;
      const int32_t *table = tables + (size_t)row * s->table_stride;
      int position = positions[row], slot = position % s->block_size;
      T *cell = layer + (int64_t)table[position / s->block_size] * s->block_stride + head * plane + (size_t)slot * s->dim;
      float turned[MAX_DIM], q[MAX_GROUP * MAX_DIM];
      NAME(rotate)(k, c, z, s->dim, 1.0f, turned);
      for (int d = 0; d < s->dim; d++) cell[d] = STORE(turned[d]);
      for (int d = 0; d < s->dim; d++) cell[v_offset + d] = v[d];
      for (int g = 0; g < group; g++)
        NAME(rotate)(token + (size_t)(head * group + g) * s->dim, c, z, s->dim, s->scale, q + g * s->dim);
      int first = s->window > 0 && position >= s->window ? position - s->window + 1 : 0;
      NAME(attend)(s, layer, table, head, first, position, q, out + ((size_t)row * s->q_heads + head * group) * s->dim);
    }
}

/* residual += x (if x is given), out = rms_norm(residual) * (weight + offset). All [rows][width]. */
void NAME(add_rms_norm)(int rows, int width, const T *x, T *residual, const T *weight, float offset, float eps, T *out) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int row = 0; row < rows; row++) {
    T *r = residual + (size_t)row * width, *o = out + (size_t)row * width;
    float sum = 0;
    if (x)
      for (int i = 0; i < width; i++) r[i] = STORE(LOAD(r[i]) + LOAD(x[(size_t)row * width + i]));
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < width; i++) sum += LOAD(r[i]) * LOAD(r[i]);
    float scale = 1.0f / sqrtf(sum / width + eps);
    for (int i = 0; i < width; i++) o[i] = STORE(LOAD(r[i]) * scale * (LOAD(weight[i]) + offset));
  }
}

/* out = silu(gate) * up. gate_up: [rows][2 * width], gate first. out: [rows][width]. */
void NAME(silu_mul)(int rows, int width, const T *gate_up, T *out) {
#pragma omp parallel for schedule(static) if (rows > 4)
  for (int row = 0; row < rows; row++) {
    const T *gate = gate_up + (size_t)row * 2 * width, *up = gate + width;
    T *o = out + (size_t)row * width;
#pragma omp simd
    for (int i = 0; i < width; i++) {
      float g = LOAD(gate[i]), e = exp_neg(g < 0 ? g : -g);
      o[i] = STORE((g < 0 ? g * e : g) / (1.0f + e) * LOAD(up[i]));
    }
  }
}
