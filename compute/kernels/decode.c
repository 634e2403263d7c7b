/* All layers of a step that holds decode rows only, in one parallel region: between two kernels the threads wait for
 * each other for a microsecond instead of for Python. The arithmetic is native.c's and linear.c's, to the last bit.
 *
 *   T rows, padding included; E hidden; F inner; H, K, D heads
 */
#define BFLOAT16
#include "native.c"

#include "linear.c"

typedef struct {
    const char *weights;
    const uint16_t *bias; /* or null */
    int64_t outputs, inputs;
} Product;

typedef struct {
    Layer attention;
    const float *cos, *sin; /* set for each step: [T, D] */
    Product qkv, output, gate_up, down;
    const float *post_attention_norm, *mlp_norm, *post_mlp_norm, *next_norm; /* [E]; post norms or null */
} Block;

typedef struct {
    real *residual, *hidden, *qkv, *attended, *wide, *narrow, *added; /* [T, E], [T, E], …, [T, 2F], [T, F], [T, E] */
} Rooms;

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)

static void product(const Product *p, const real *x, real *y, int64_t rows) {
    linear_part(x, p->weights, p->bias, y, rows, p->outputs, p->inputs);
}

/* added -> residual and, normed, to hidden; through the family's own norm first, if it has one. */
static void add(const float *own, const float *next, const Rooms *r, int64_t rows, int64_t width, float eps) {
    if (own) add_norm_part(0, r->added, own, r->added, rows, width, eps);
    add_norm_part(r->added, r->residual, next, r->hidden, rows, width, eps);
}

/* hidden [T, E] holds the first norm; at the end it holds the last one. */
void decode(const Block *blocks, int64_t count, const Step *s, const Rooms *r, int64_t width, int64_t inner, int64_t kind, float eps) {
    int64_t rows = s->padded;
#pragma omp parallel
    for (const Block *b = blocks; b < blocks + count; b++) {
        product(&b->qkv, r->hidden, r->qkv, rows);
        attend_part(&b->attention, s, r->qkv, b->cos, b->sin, r->attended);
        product(&b->output, r->attended, r->added, rows);
        add(b->post_attention_norm, b->mlp_norm, r, rows, width, eps);
        product(&b->gate_up, r->hidden, r->wide, rows);
        gate_part(r->wide, r->narrow, rows, inner, kind);
        product(&b->down, r->narrow, r->added, rows);
        add(b->post_mlp_norm, b->next_norm, r, rows, width, eps);
    }
}

#else

void decode(const Block *blocks, int64_t count, const Step *s, const Rooms *r, int64_t width, int64_t inner, int64_t kind, float eps) {
    (void)blocks, (void)count, (void)s, (void)r, (void)width, (void)inner, (void)kind, (void)eps;
}

#endif
