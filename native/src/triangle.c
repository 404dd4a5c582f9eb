#include "triangle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif

enum {
    ROW_SHIFT = WEIGHT_BITS - MID_BITS,
    ROW_HALF = 1 << (ROW_SHIFT - 1),
    COLUMN_SHIFT = WEIGHT_BITS + MID_BITS,
    COLUMN_HALF = 1 << (COLUMN_SHIFT - 1),
    CHUNK = 256, /* values summed at once in portable code: few enough for the first cache */
};

/* The sources that count for output position `at`: [*from, *to), at least one. Returns the centre. */
static double reach(double begin, double scale, double support, int limit, int at, int *from, int *to) {
    double centre = begin + (at + 0.5) * scale;
    double low = floor(centre - support + 0.5), high = ceil(centre + support - 0.5);
    *from = low < 0 ? 0 : low > limit - 1 ? limit - 1 : (int)low;
    *to = high > limit ? limit : high < *from + 1 ? *from + 1 : (int)high;
    return centre;
}

int axis_make(struct axis *axis, double begin, double end, int limit, int size, int mirrored) {
    double scale = (end - begin) / size, support = scale < 1 ? 1 : scale;
    int from, to, most = 1;
    axis->size = size;
    axis->low = limit;
    axis->high = 0;
    for (int at = 0; at < size; at++) {
        reach(begin, scale, support, limit, at, &from, &to);
        if (to - from > most) most = to - from;
        if (from < axis->low) axis->low = from;
        if (to > axis->high) axis->high = to;
    }
    axis->taps = (most + LANE - 1) / LANE * LANE;
    size_t room = ((size_t)size + 3) / 4 * 4; /* AVX2 takes four at a time */
    axis->first = malloc(room * sizeof *axis->first);
    axis->weights = calloc(room * axis->taps * 4, sizeof *axis->weights);
    double *share = malloc((size_t)most * sizeof *share);
    if (!axis->first || !axis->weights || !share) {
        free(share);
        return -1;
    }
    for (int at = 0; at < size; at++) {
        int place = mirrored ? size - 1 - at : at;
        double centre = reach(begin, scale, support, limit, at, &from, &to), sum = 0, run = 0;
        for (int i = from; i < to; i++) {
            double away = fabs(i + 0.5 - centre) / support;
            sum += share[i - from] = away < 1 ? 1 - away : 0;
        }
        if (sum <= 0) sum = share[0] = 1;
        axis->first[place] = from;
        int before = 0; /* the running sum is what is rounded, so the weights sum to 1 exactly */
        for (int tap = 0; tap < to - from; tap++) {
            run += share[tap] / sum;
            int upto = tap == to - from - 1 ? 1 << WEIGHT_BITS : (int)floor(run * (1 << WEIGHT_BITS) + 0.5);
            int16_t *four = axis->weights + (((size_t)place * axis->taps + tap) / LANE) * 16 + (tap & 2) * 4 + (tap & 1);
            for (int channel = 0; channel < 4; channel++) four[2 * channel] = (int16_t)(upto - before);
            before = upto;
        }
    }
    for (size_t place = (size_t)size; place < room; place++) axis->first[place] = axis->low;
    free(share);
    return 0;
}

void axis_free(struct axis *axis) {
    free(axis->first);
    free(axis->weights);
    axis->first = NULL;
    axis->weights = NULL;
}

static void blend_rows_portable(const struct axis *axis, int at, const uint8_t *const *rows, int pixels, int16_t *mid) {
    int32_t sum[CHUNK];
    for (int begin = 0; begin < 4 * pixels; begin += CHUNK) {
        int count = 4 * pixels - begin < CHUNK ? 4 * pixels - begin : CHUNK;
        for (int i = 0; i < count; i++) sum[i] = ROW_HALF;
        for (int tap = 0; tap < axis->taps; tap++) {
            int32_t weight = axis_weight(axis, at, tap);
            if (weight)
                for (int i = 0; i < count; i++) sum[i] += rows[tap][begin + i] * weight;
        }
        for (int i = 0; i < count; i++) mid[begin + i] = (int16_t)(sum[i] >> ROW_SHIFT);
    }
}

static void blend_columns_portable(const struct axis *axis, const int16_t *mid, uint8_t *line) {
    for (int at = 0; at < axis->size; at++) {
        const int16_t *from = mid + 4 * (size_t)(axis->first[at] - axis->low);
        int32_t sum[4] = {COLUMN_HALF, COLUMN_HALF, COLUMN_HALF, COLUMN_HALF};
        for (int tap = 0; tap < axis->taps; tap++)
            for (int channel = 0; channel < 4; channel++)
                sum[channel] += from[4 * tap + channel] * axis_weight(axis, at, tap);
        for (int channel = 0; channel < 3; channel++) line[3 * at + channel] = (uint8_t)(sum[channel] >> COLUMN_SHIFT);
    }
}

#ifdef AVX2

/* Eight pixels of two rows, times their weights: a pair of 16 bits in each element of `pair`; added to the four sums. */
AVX2 static inline void add_two_rows(__m256i sums[4], const uint8_t *row, const uint8_t *next, __m256i pair) {
    const __m256i zero = _mm256_setzero_si256();
    __m256i one = _mm256_loadu_si256((const __m256i *)row), two = _mm256_loadu_si256((const __m256i *)next);
    __m256i low = _mm256_unpacklo_epi8(one, two), high = _mm256_unpackhi_epi8(one, two);
    sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(_mm256_unpacklo_epi8(low, zero), pair));
    sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(_mm256_unpackhi_epi8(low, zero), pair));
    sums[2] = _mm256_add_epi32(sums[2], _mm256_madd_epi16(_mm256_unpacklo_epi8(high, zero), pair));
    sums[3] = _mm256_add_epi32(sums[3], _mm256_madd_epi16(_mm256_unpackhi_epi8(high, zero), pair));
}

AVX2 static inline void put_mid(const __m256i sums[4], int16_t *mid) {
    __m256i low = _mm256_packs_epi32(_mm256_srai_epi32(sums[0], ROW_SHIFT), _mm256_srai_epi32(sums[1], ROW_SHIFT));
    __m256i high = _mm256_packs_epi32(_mm256_srai_epi32(sums[2], ROW_SHIFT), _mm256_srai_epi32(sums[3], ROW_SHIFT));
    _mm256_storeu_si256((__m256i *)mid, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(mid + 16), _mm256_permute2x128_si256(low, high, 0x31));
}

AVX2 static inline __m256i pair_of(const int16_t *weights, int tap) {
    int32_t both;
    memcpy(&both, weights + tap / LANE * 16 + (tap & 2) * 4, sizeof both);
    return _mm256_set1_epi32(both);
}

AVX2 static void blend_rows_avx2(const struct axis *axis, int at, const uint8_t *const *rows, int pixels, int16_t *mid) {
    const __m256i half = _mm256_set1_epi32(ROW_HALF);
    const int16_t *weights = axis->weights + (size_t)at * axis->taps / LANE * 16;
    const int taps = axis->taps;
    if (taps == LANE) { /* no more than half the size: nearly all crops; pointers and weights stay in registers */
        const uint8_t *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
        const __m256i first = pair_of(weights, 0), second = pair_of(weights, 2);
        for (int i = 0; i < 4 * pixels; i += 32) {
            __m256i sums[4] = {half, half, half, half};
            add_two_rows(sums, a + i, b + i, first);
            add_two_rows(sums, c + i, d + i, second);
            put_mid(sums, mid + i);
        }
        return;
    }
    for (int i = 0; i < 4 * pixels; i += 32) {
        __m256i sums[4] = {half, half, half, half};
        for (int tap = 0; tap < taps; tap += 2) add_two_rows(sums, rows[tap] + i, rows[tap + 1] + i, pair_of(weights, tap));
        put_mid(sums, mid + i);
    }
}

/* The four channels of two output pixels, one in each half. */
AVX2 static inline __m256i two_columns(const int16_t *one, const int16_t *two, const int16_t *weights, int taps) {
    const __m256i pairs = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15,
                                           0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    __m256i a = _mm256_setzero_si256(), b = a;
    for (int tap = 0; tap < taps; tap += LANE) {
        __m256i from = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(one + 4 * tap)), pairs);
        a = _mm256_add_epi32(a, _mm256_madd_epi16(from, _mm256_loadu_si256((const __m256i *)(weights + 4 * tap))));
        from = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(two + 4 * tap)), pairs);
        b = _mm256_add_epi32(b, _mm256_madd_epi16(from, _mm256_loadu_si256((const __m256i *)(weights + 4 * (taps + tap)))));
    }
    __m256i sum = _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
    return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(COLUMN_HALF)), COLUMN_SHIFT);
}

/* Four output pixels at a time; the arrays of the axis go on so far. */
AVX2 static inline void blend_columns_of(const struct axis *axis, const int16_t *mid, uint8_t *restrict line, int taps) {
    const __m256i colours = _mm256_setr_epi8(0, 1, 2, -1, -1, -1, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1,
                                             -1, -1, -1, 0, 1, 2, -1, -1, -1, 4, 5, 6, -1, -1, -1, -1);
    const int16_t *weights = axis->weights, *origin = mid - 4 * (ptrdiff_t)axis->low;
    const int *first = axis->first;
    for (int at = 0, size = axis->size; at < size; at += 4, first += 4, weights += 16 * (ptrdiff_t)taps, line += 12) {
        const int16_t *a = origin + 4 * (ptrdiff_t)first[0], *b = origin + 4 * (ptrdiff_t)first[1];
        const int16_t *c = origin + 4 * (ptrdiff_t)first[2], *d = origin + 4 * (ptrdiff_t)first[3];
        __m256i low = two_columns(a, b, weights, taps), high = two_columns(c, d, weights + 8 * (ptrdiff_t)taps, taps);
        __m256i four = _mm256_packs_epi32(low, high);
        four = _mm256_shuffle_epi8(_mm256_packus_epi16(four, four), colours);
        four = _mm256_or_si256(four, _mm256_permute2x128_si256(four, four, 1));
        _mm_storeu_si128((__m128i *)line, _mm256_castsi256_si128(four));
    }
}

AVX2 static void blend_columns_avx2(const struct axis *axis, const int16_t *mid, uint8_t *line) {
    if (axis->taps == LANE)
        blend_columns_of(axis, mid, line, LANE); /* a loop less, where the compiler knows the number */
    else
        blend_columns_of(axis, mid, line, axis->taps);
}

int has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }

#else

int has_avx2(void) { return 0; }

#endif

void blend_rows(const struct axis *axis, int at, const uint8_t *const *rows, int pixels, int16_t *mid, int portable) {
#ifdef AVX2
    if (!portable) {
        blend_rows_avx2(axis, at, rows, pixels, mid);
        return;
    }
#endif
    (void)portable;
    blend_rows_portable(axis, at, rows, pixels, mid);
}

void blend_columns(const struct axis *axis, const int16_t *mid, uint8_t *line, int portable) {
#ifdef AVX2
    if (!portable) {
        blend_columns_avx2(axis, mid, line);
        return;
    }
#endif
    (void)portable;
    blend_columns_portable(axis, mid, line);
}
