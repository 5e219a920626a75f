/* amx.h - the matrix unit of Intel's server processors since 2023 (AMX), for the products in bf16.c; private
 * to it. If the compiler or the machine has none, amx_begin says so, and no other function here is called.
 *
 * The unit has eight registers, the tiles, of 16 rows × 64 bytes. One instruction multiplies two of them:
 *
 *     c[16][16] += a[16 rows][16 pairs] · b[16 pairs][16 columns]          pairs of bf16, sums of float32
 *
 * This is the work of 256 dot products of AVX512-BF16. Four tiles hold 32 × 32 sums; two tiles hold a step of
 * each operand. So each tile is loaded once and used twice:
 *
 *           b0  b1
 *       a0  c0  c1
 *       a1  c2  c3
 *
 * Right operands are panels [pairs][NR], already in bf16.c's order; left ones are rows of pairs. The number
 * of pairs must be a multiple of AMX_STEP; the padding is zero in *both* operands. */
#ifndef SAMLAD_AMX_H
#define SAMLAD_AMX_H

#include <stdatomic.h>

#include "fast/tile.h"

enum { AMX_ROWS = 32, AMX_STEP = 16 };

/* A thread's use of the unit. */
typedef struct Amx {
    int usable;
    int rows; /* rows for which the tiles are configured; 0: none yet. */
} Amx;

#if defined(__linux__) && defined(__x86_64__) && defined(__AVX512F__) &&                                     \
    ((defined(__AMX_TILE__) && defined(__AMX_BF16__)) || (defined(__AMXTILE__) && defined(__AMXBF16__)))

#include <sys/syscall.h>
#include <unistd.h>

/* Linux lends the tiles' 8 KiB of state to processes that ask (once, for all threads). It may refuse: an old
 * kernel, or a guest without tiles. */
static int amx_present(void)
{
    enum { UNKNOWN, ABSENT, PRESENT, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    static atomic_int state; /* every caller gets the same answer. */
    int known = atomic_load_explicit(&state, memory_order_relaxed);
    if (known == UNKNOWN) {
        known = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? PRESENT : ABSENT;
        atomic_store_explicit(&state, known, memory_order_relaxed);
    }
    return known == PRESENT;
}

/* Configure the tiles for groups of `rows` rows, 1 to AMX_ROWS. */
static void amx_rows(Amx *amx, int rows)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } tiles = {.palette = 1};
    if (amx->rows == rows)
        return;
    const int upper = min_int(rows, 16), lower = rows > 16 ? rows - 16 : 16; /* 16: tiles not in use. */
    const uint8_t of_tile[8] = {(uint8_t)upper,
                                (uint8_t)upper,
                                (uint8_t)lower,
                                (uint8_t)lower,
                                (uint8_t)upper,
                                (uint8_t)lower,
                                16,
                                16};
    for (int i = 0; i < 8; i++)
        tiles.row_bytes[i] = 64, tiles.rows[i] = of_tile[i];
    __asm__ volatile("" ::"m"(tiles)); /* gcc's _tile_loadconfig declares that it reads only eight bytes of
                                          them. */
    _tile_loadconfig(&tiles);
    amx->rows = rows;
}

/* Give the tiles back, because interrupting a thread that holds them costs more. */
static void amx_end(Amx *amx)
{
    if (amx->rows)
        _tile_release();
    amx->rows = 0;
}

INLINE void zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* c[rows][across·16] = start + a·b over `pairs` pairs. a's rows are lda apart, b [pairs][across·16]; down is
 * 2 for more than 16 rows. `down` and `across` are constants at each call. */
INLINE void amx_tiles(int down, int across, float *c, ptrdiff_t ldc, Start start, const uint32_t *a,
                      ptrdiff_t lda, const uint32_t *b, int pairs)
{
    const int c_stride = (int)(ldc * 4), s_stride = (int)(start.ld * 4), a_stride = (int)(lda * 4);
    const float *s = start.data, *s_down = s ? s + 16 * start.ld : NULL;
    __asm__ volatile("" ::: "memory"); /* gcc's _tile_loadd does not declare that it reads memory. */
    zero_sums();
    if (s) {
        _tile_loadd(0, s, s_stride);
        if (across > 1)
            _tile_loadd(1, s + 16, s_stride);
        if (down > 1)
            _tile_loadd(2, s_down, s_stride);
        if (down > 1 && across > 1)
            _tile_loadd(3, s_down + 16, s_stride);
    }
    for (int p = 0; p < pairs; p += AMX_STEP, a += AMX_STEP, b += AMX_STEP * 16 * across) {
        _tile_loadd(6, b, across * 64);
        _tile_loadd(4, a, a_stride);
        _tile_dpbf16ps(0, 4, 6);
        if (across > 1) {
            _tile_loadd(7, b + 16, across * 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (down > 1) {
            _tile_loadd(5, a + 16 * lda, a_stride);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (down > 1 && across > 1)
            _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride);
    if (across > 1)
        _tile_stored(1, c + 16, c_stride);
    if (down > 1)
        _tile_stored(2, c + 16 * ldc, c_stride);
    if (down > 1 && across > 1)
        _tile_stored(3, c + 16 * ldc + 16, c_stride);
}

/* c[rows][width] = start + a·b as above, for 1 <= rows <= AMX_ROWS and a width of 16 or 32. */
static void amx_product(Amx *amx, int rows, int width, float *c, ptrdiff_t ldc, Start start,
                        const uint32_t *a, ptrdiff_t lda, const uint32_t *b, int pairs)
{
    amx_rows(amx, rows);
    if (rows > 16 && width > 16)
        amx_tiles(2, 2, c, ldc, start, a, lda, b, pairs);
    else if (rows > 16)
        amx_tiles(2, 1, c, ldc, start, a, lda, b, pairs);
    else if (width > 16)
        amx_tiles(1, 2, c, ldc, start, a, lda, b, pairs);
    else
        amx_tiles(1, 1, c, ldc, start, a, lda, b, pairs);
}

/* Run `rounds` steps without a memory access, the unit's limit. Returns the multiply-adds. */
static double amx_burst(int rounds)
{
    enum { PRODUCTS = 4 };
    Amx amx = {1, 0};
    amx_rows(&amx, AMX_ROWS); /* also sets the tiles to zero. */
    for (int r = 0; r < rounds; r++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    amx_end(&amx);
    return (double)rounds * PRODUCTS * 16 * 16 * 2 * AMX_STEP;
}

#else

static int amx_present(void)
{
    return 0;
}

static void amx_end(Amx *amx)
{
    (void)amx;
}

static void amx_product(Amx *amx, int rows, int width, float *c, ptrdiff_t ldc, Start start,
                        const uint32_t *a, ptrdiff_t lda, const uint32_t *b, int pairs)
{
    (void)amx, (void)rows, (void)width, (void)c, (void)ldc, (void)start, (void)a, (void)lda, (void)b,
        (void)pairs;
}

static double amx_burst(int rounds)
{
    (void)rounds;
    return 0;
}

#endif

static atomic_int amx_unwanted; /* see bf16_without_matrix_unit */

static int amx_usable(void)
{
    return !atomic_load_explicit(&amx_unwanted, memory_order_relaxed) && amx_present();
}

static Amx amx_begin(void)
{
    return (Amx){amx_usable(), 0};
}

#endif
