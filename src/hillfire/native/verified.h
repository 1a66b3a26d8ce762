/* Verified reads of what was planned: see verified.c. */
#ifndef HILLFIRE_VERIFIED_H
#define HILLFIRE_VERIFIED_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define GRAIN_SHIFT 16
#define SMALL_BYTES 32768 /* reading.py: requests up to this size are verified by pages */

/* One stretch of a block: `shift` says whether pages or grains are its units. */
typedef struct {
    ptrdiff_t item;       /* of the batch, for its owner */
    int fd, shift;
    uint64_t at;          /* in the file: where the first unit begins */
    uint8_t *into;
    size_t n;             /* bytes that are wanted */
    size_t before, after; /* bytes around them that the same units hold */
    size_t sums;          /* where the units' checksums begin */
    uint64_t version;
    uint32_t crc;
    int direct;           /* a descriptor that goes past the page cache; -1: not for this one */
    int done;
} Plan;

typedef struct {
    uint64_t disk, sums;
} Times; /* in ns */

/* Carry plans out; those that were are `done`. `sums` are the checksums that they point to, and
 * `edge_bytes` is the largest unit of any that has bytes around it. Without `wait` what is not in
 * the page cache is left. -1: no memory. Needs no Python. */
int hillfire_carry_out(Plan *plans, ptrdiff_t count, const uint32_t *sums, size_t edge_bytes,
                       int wait, Times *times);

#endif
