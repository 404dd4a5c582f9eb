#include "crop.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "triangle.h"

#ifndef JCS_EXTENSIONS
#error "libjpeg-turbo is needed; this libjpeg has no RGBX"
#endif

enum {
    SCANS = 500, /* of a progressive picture; more than a few dozen are an attack on the reader's time */
    MARGIN = 2,  /* columns beside the crop that smooth upsampling of chroma looks at */
    PAD = 64,    /* bytes that AVX2 may read and write beyond a row */
};

/* All that has to be given back, in one place, because an error of libjpeg leaves by longjmp. */
struct work {
    struct jpeg_error_mgr errors; /* first: libjpeg hands back its address */
    jmp_buf leave;
    char *reason;
    struct jpeg_decompress_struct jpeg;
    struct jpeg_progress_mgr progress;
    struct axis across, down;
    uint8_t *ring;        /* the last rows that were decoded */
    const uint8_t **rows; /* (down.taps) those that a row of output is blended of */
    int16_t *mid;         /* one row of output before its columns are blended */
    uint8_t *line;        /* one row of output, three bytes a pixel */
};

static _Noreturn void fail(j_common_ptr jpeg) {
    struct work *work = (struct work *)jpeg->err;
    char message[JMSG_LENGTH_MAX];
    jpeg->err->format_message(jpeg, message);
    snprintf(work->reason, REASON, "%s", message);
    longjmp(work->leave, REFUSED);
}

static _Noreturn void refuse(struct work *work, const char *reason) {
    snprintf(work->reason, REASON, "%s", reason);
    longjmp(work->leave, REFUSED);
}

static void on_message(j_common_ptr jpeg, int level) {
    if (level < 0) fail(jpeg); /* a warning: the data are damaged */
}

static void print_nothing(j_common_ptr jpeg) { (void)jpeg; }

static void count_scans(j_common_ptr jpeg) {
    if (((j_decompress_ptr)jpeg)->input_scan_number > SCANS) refuse((struct work *)jpeg->err, "too many scans");
}

static void *memory(struct work *work, size_t count, size_t size) {
    void *found = calloc(count, size);
    if (!found) longjmp(work->leave, NO_MEMORY);
    return found;
}

/* Read the header, and refuse what is left to other decoders. */
static void open_jpeg(struct work *work, const uint8_t *data, size_t length) {
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    jpeg_create_decompress(jpeg);
    work->progress.progress_monitor = count_scans;
    jpeg->progress = &work->progress;
    jpeg_mem_src(jpeg, data, length);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->data_precision != 8) refuse(work, "not 8 bits per sample");
    if (jpeg->arith_code) refuse(work, "arithmetic coding");
    J_COLOR_SPACE space = jpeg->jpeg_color_space;
    if (space != JCS_YCbCr && space != JCS_RGB && space != JCS_GRAYSCALE) refuse(work, "neither grey nor RGB");
}

/* Rows below the crop are never decoded, so a file that is cut off there would go unnoticed: look for its last marker,
   which cannot stand within the coded pixels. */
static void require_ending(struct work *work, const uint8_t *data, size_t length) {
    const uint8_t *pixels = work->jpeg.src->next_input_byte;
    for (const uint8_t *at = data + length - 2; at >= pixels; at--)
        if (at[0] == 0xFF && at[1] == JPEG_EOI) return;
    refuse(work, "cut off: no end marker");
}

/* How box and output lie to each other, along both axes. Gives the place of the axes' position 0 in the picture. */
static void lay_out(struct work *work, const struct crop *crop, int *left, int *top) {
    int width = (int)work->jpeg.image_width, height = (int)work->jpeg.image_height;
    if (!(crop->left >= 0 && crop->top >= 0 && crop->width > 0 && crop->height > 0 &&
          crop->left + crop->width <= width + 1e-6 && crop->top + crop->height <= height + 1e-6))
        refuse(work, "the box does not lie within the picture");
    *left = crop->around ? 0 : (int)crop->left;
    *top = crop->around ? 0 : (int)crop->top;
    if (!crop->around) {
        width = (int)crop->width;
        height = (int)crop->height;
        if (*left != crop->left || *top != crop->top || width != crop->width || height != crop->height)
            refuse(work, "the sides of a box that is cut out must be whole pixels");
    }
    double x = crop->left - *left, y = crop->top - *top;
    if (axis_make(&work->across, x, x + crop->width, width, crop->size, crop->flip) ||
        axis_make(&work->down, y, y + crop->height, height, crop->size, 0))
        longjmp(work->leave, NO_MEMORY);
}

/* Begin to decode the columns [left, right), from row `top` on. Returns where column `left` stands in a row. */
static int begin_rows(struct work *work, int left, int right, int top) {
    struct jpeg_decompress_struct *jpeg = &work->jpeg;
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(jpeg);
    int margin = jpeg->max_h_samp_factor > 1 ? MARGIN : 0, whole = (int)jpeg->output_width;
    JDIMENSION from = left > margin ? left - margin : 0;
    JDIMENSION columns = (right + margin < whole ? right + margin : whole) - from;
    if ((int)columns < whole) jpeg_crop_scanline(jpeg, &from, &columns);
    if ((int)from > left || (int)(from + jpeg->output_width) < right) refuse(work, "columns cannot be cropped");
    if (top && jpeg_skip_scanlines(jpeg, top) != (JDIMENSION)top) refuse(work, "rows cannot be skipped");
    return left - (int)from;
}

/* Red becomes ITU-R 601 luma, rounded as Pillow's "L". */
static void to_luma(uint8_t *pixels, int count) {
    for (uint8_t *p = pixels; p < pixels + 4 * (size_t)count; p += 4)
        p[0] = (uint8_t)((19595 * p[0] + 38470 * p[1] + 7471 * p[2] + (1 << 15)) >> 16);
}

static void put_line(const uint8_t *line, uint8_t *out, int size, int channels) {
    if (channels == 3)
        memcpy(out, line, 3 * (size_t)size);
    else
        for (int at = 0; at < size; at++) out[at] = line[3 * at];
}

/* Decode row by row; as soon as the rows of an output row are there, make it. */
static void resize_rows(struct work *work, const struct crop *crop, int left, int top) {
    const struct axis *across = &work->across, *down = &work->down;
    int columns = across->high - across->low, read = down->low, kept = down->taps;
    int at = begin_rows(work, left + across->low, left + across->high, top + down->low);
    size_t stride = 4 * (size_t)work->jpeg.output_width + PAD;
    int luma = crop->channels == 1 && work->jpeg.jpeg_color_space != JCS_GRAYSCALE;
    work->ring = memory(work, kept, stride);
    work->rows = memory(work, kept, sizeof *work->rows);
    work->mid = memory(work, 4 * ((size_t)columns + across->taps) + PAD, sizeof *work->mid);
    work->line = memory(work, 3 * (size_t)crop->size + PAD, 1);
    for (int y = 0; y < crop->size; y++) {
        int first = down->first[y], limit = first + down->taps < down->high ? first + down->taps : down->high;
        for (; read < limit; read++) {
            JSAMPROW row = work->ring + (size_t)(read % kept) * stride;
            if (jpeg_read_scanlines(&work->jpeg, &row, 1) != 1) refuse(work, "rows are missing");
            if (luma) to_luma(row + 4 * (size_t)at, columns);
        }
        for (int tap = 0; tap < kept; tap++) {
            int wanted = first + tap < limit ? first + tap : limit - 1; /* beyond the last one weights are 0 */
            work->rows[tap] = work->ring + (size_t)(wanted % kept) * stride + 4 * (size_t)at;
        }
        blend_rows(down, y, work->rows, columns, work->mid, crop->portable);
        blend_columns(across, work->mid, work->line, crop->portable);
        put_line(work->line, crop->out + (size_t)y * crop->size * crop->channels, crop->size, crop->channels);
    }
}

/* The steps below in a function of its own: what longjmp comes back to may not have changed local variables. */
static enum outcome guarded(struct work *work, void (*steps)(struct work *, void *), void *given) {
    switch (setjmp(work->leave)) {
    case DONE:
        steps(work, given);
        return DONE;
    case NO_MEMORY:
        return NO_MEMORY;
    default:
        return REFUSED;
    }
}

static enum outcome with_libjpeg(void (*steps)(struct work *, void *), void *given, char *reason) {
    struct work work;
    memset(&work, 0, sizeof work);
    work.reason = reason;
    work.jpeg.err = jpeg_std_error(&work.errors);
    work.errors.error_exit = fail;
    work.errors.emit_message = on_message;
    work.errors.output_message = print_nothing;
    enum outcome outcome = guarded(&work, steps, given);
    jpeg_destroy_decompress(&work.jpeg);
    axis_free(&work.across);
    axis_free(&work.down);
    free(work.ring);
    free(work.rows);
    free(work.mid);
    free(work.line);
    return outcome;
}

static void crop_steps(struct work *work, void *given) {
    const struct crop *crop = given;
    int left, top;
    open_jpeg(work, crop->data, crop->length);
    require_ending(work, crop->data, crop->length);
    lay_out(work, crop, &left, &top);
    resize_rows(work, crop, left, top);
}

enum outcome decode_crop(struct crop *crop) { return with_libjpeg(crop_steps, crop, crop->reason); }

static void size_steps(struct work *work, void *given) {
    struct header *header = given;
    open_jpeg(work, header->data, header->length);
    header->width = (int)work->jpeg.image_width;
    header->height = (int)work->jpeg.image_height;
}

enum outcome read_header(struct header *header) { return with_libjpeg(size_steps, header, header->reason); }
