/* A crop of a JPEG, resized: what Python calls, without Python. */
#ifndef CROP_H
#define CROP_H

#include <stddef.h>
#include <stdint.h>

enum { REASON = 256 };

enum outcome { DONE, REFUSED, NO_MEMORY };

struct crop {
    const uint8_t *data; /* the file */
    size_t length;
    double left, top, width, height; /* the box, in pixels of the picture as stored */
    int around;                      /* pixels around the box count at its edge; 0: the box is cut out, then resized */
    int size;                        /* of the square result */
    int channels;                    /* 1 or 3 */
    int flip;                        /* left and right exchanged */
    int portable;                    /* without AVX2 */
    uint8_t *out;                    /* (size, size, channels) */
    char reason[REASON];             /* why it was refused, in words */
};

/* Decode the box. `out` may be half written when it is refused. Whatever makes libjpeg as much as warn is refused. */
enum outcome decode_crop(struct crop *crop);

struct header {
    const uint8_t *data;
    size_t length;
    int width, height; /* of the picture as stored */
    char reason[REASON];
};

/* Fill in width and height. Refuses what `decode_crop` would for the header's sake. */
enum outcome read_header(struct header *header);

#endif
