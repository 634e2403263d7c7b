/* y = x·Wᵀ + b in bfloat16 by AMX tiles, for any number of rows. Accumulates in float32, over K in order, so a
 * row's result does not depend on the rows beside it.
 *
 * Weights are packed as tiles of 16 outputs x 32 inputs, [N / 16][K / 32][16 pairs of inputs][16 outputs][2]:
 * a decode step streams each weight once, in order. Here N is a multiple of 32 and K of 32 (native_linear.py).
 */
#include <stdint.h>
#include <string.h>

#if defined(__AMX_TILE__) && defined(__AMX_BF16__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TILE_BYTES = 1024, ROWS = 16, DEPTH = 32, PANEL = 32, ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Tiles 0..3: sums of (rows 0, 1) x (outputs 0, 1); 4, 5: inputs; 6, 7: weights. */
static void configure(int64_t upper, int64_t lower) {
    const uint8_t rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = rows[i] ? 64 : 0;
        config.rows[i] = rows[i];
    }
    _tile_loadconfig(&config);
}

static inline uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float widened(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

/* sums [rows, PANEL] of up to 32 rows of x and one panel of 32 outputs. */
static void multiply(const uint16_t *x, const char *weights, float *sums, int64_t rows, int64_t k) {
    int64_t stride = k * 2, other = k / DEPTH * TILE_BYTES;
    const uint16_t *below = x + ROWS * k;
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= ROWS) {
        for (int64_t i = 0; i < k; i += DEPTH, weights += TILE_BYTES) {
            _tile_loadd(4, x + i, stride);
            _tile_loadd(6, weights, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, weights + other, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t i = 0; i < k; i += DEPTH, weights += TILE_BYTES) {
            _tile_loadd(4, x + i, stride);
            _tile_loadd(6, weights, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, weights + other, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, below + i, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, sums + ROWS * PANEL, PANEL * 4);
        _tile_stored(3, sums + ROWS * PANEL + 16, PANEL * 4);
    }
    _tile_stored(0, sums, PANEL * 4);
    _tile_stored(1, sums + 16, PANEL * 4);
}

/* x [m, k], weights packed [n, k], bias [n] or null, y [m, n]. Shared among the threads of the calling region. */
static void linear_part(const uint16_t *x, const char *weights, const uint16_t *bias, uint16_t *y, int64_t m, int64_t n, int64_t k) {
    int64_t chunk = n / PANEL / 32 + 1; /* dynamic: a thread whose core is taken for a moment holds nobody up */
    float sums[2 * ROWS * PANEL] __attribute__((aligned(64)));
    int64_t configured = -1;
#pragma omp for schedule(dynamic, chunk)
    for (int64_t panel = 0; panel < n / PANEL; panel++)
        for (int64_t at = 0; at < m; at += 2 * ROWS) {
            int64_t rows = m - at < 2 * ROWS ? m - at : 2 * ROWS;
            if (rows != configured) configure(rows < ROWS ? rows : ROWS, rows < ROWS ? 0 : rows - ROWS);
            configured = rows;
            multiply(x + at * k, weights + panel * PANEL * k * 2, sums, rows, k);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < PANEL; i++)
                    y[(at + r) * n + panel * PANEL + i] =
                        rounded(sums[r * PANEL + i] + (bias ? widened(bias[panel * PANEL + i]) : 0.0f));
        }
    _tile_release();
}

void linear(const uint16_t *x, const char *weights, const uint16_t *bias, uint16_t *y, int64_t m, int64_t n, int64_t k) {
#pragma omp parallel
    linear_part(x, weights, bias, y, m, n, k);
}

/* Asks the kernel for the tile registers, for this process; 0 if it has them now. */
int linear_ready(void) { return (int)syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA); }

#else

int linear_ready(void) { return -1; }
void linear(const uint16_t *x, const char *weights, const uint16_t *bias, uint16_t *y, int64_t m, int64_t n, int64_t k) {
    (void)x, (void)weights, (void)bias, (void)y, (void)m, (void)n, (void)k;
}

#endif
