/* Antialiased bilinear resize in fixed point, one row of output at a time, of pixels of four bytes (R, G, B, unused).

   The filter is a triangle whose half width is one source pixel, or one output pixel where the picture gets smaller:
   that of Pillow's BILINEAR. Rows are blended first, to 7 fractional bits, columns then. All sums are exact in 32 bits,
   so the portable code and the AVX2 code give the same bytes. */
#ifndef TRIANGLE_H
#define TRIANGLE_H

#include <stddef.h>
#include <stdint.h>

enum { LANE = 4, WEIGHT_BITS = 14, MID_BITS = 7 };

/* For each output position: where its weights begin in the source, and `taps` weights that sum to 1 << WEIGHT_BITS. */
struct axis {
    int size;         /* output positions */
    int taps;         /* weights of each; a multiple of LANE, the last ones 0 where fewer count */
    int low, high;    /* source positions [low, high) that count somewhere */
    int *first;       /* (size, rounded up to 4) */
    int16_t *weights; /* (size, rounded up to 4; taps / LANE; 16), see `axis_weight` */
};

/* The axis that maps source positions [begin, end) to `size` pixels, from sources in [0, limit) alone; mirrored if
   asked. Returns 0, or -1 when there is no memory. `axis_free` in either case. */
int axis_make(struct axis *axis, double begin, double end, int limit, int size, int mirrored);
void axis_free(struct axis *axis);

/* Weight `tap` of output position `at`. Four weights stand as w0 w1 w0 w1 w0 w1 w0 w1 w2 w3 w2 w3 w2 w3 w2 w3: the order
   in which pixels of four channels meet them in AVX2's multiply-and-add of pairs. */
static inline int16_t axis_weight(const struct axis *axis, int at, int tap) {
    return axis->weights[(((size_t)at * axis->taps + tap) / LANE) * 16 + (tap & 2) * 4 + (tap & 1)];
}

/* `rows` (taps pointers) blended with the weights of output row `at`: mid (4 * pixels) int16. AVX2 reads each row, and
   writes mid, up to the next multiple of 8 pixels. */
void blend_rows(const struct axis *axis, int at, const uint8_t *const *rows, int pixels, int16_t *mid, int portable);

/* mid, whose first pixel is source position axis->low, to axis->size pixels of three bytes. Reads mid up to axis->taps
   pixels beyond axis->high - axis->low; writes up to 13 bytes more than 3 * axis->size. */
void blend_columns(const struct axis *axis, const int16_t *mid, uint8_t *line, int portable);

/* Whether this processor has AVX2. */
int has_avx2(void);

#endif
