/* Reads that are verified in place: bytes straight to their destination, in steps that stay in a
 * processor's cache until they are summed. Knows no Python and needs no lock.
 *
 * What is not in the page cache is asked for by a pass that does not wait: the kernel begins to
 * read it, so that the disk works on the whole batch at once. A second pass waits, if it may.
 *
 * A checksum covers a whole unit, so what surrounds a request within its first and last unit is
 * read too, to scratch memory. The destinations may be a client's own memory, which the client may
 * change at any time: nothing that is read back from there is trusted, it is summed only.
 */
#define _GNU_SOURCE /* preadv2 */
#include "verified.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>

#include "crc32c.h"

#define STEP_BYTES 1048576 /* read and summed at a time; a multiple of a grain */
#define ASK_BYTES 131072   /* what is cold and larger is asked for explicitly, as a whole */
#define TIMED_ONE_IN 16    /* of small reads, so that taking the time costs next to nothing */
#define COLD_ENOUGH 16     /* misses after which an event loop leaves the rest to a thread: a disk
                              that hangs must not fill its queue and then hold it up */

typedef struct {
    const uint32_t *sums;
    uint8_t *edges; /* scratch memory for what lies before a request, then for what lies behind */
    size_t edge_bytes;
} Memory;

/* The part of a plan's bytes from `pos` up to `end` that lies in its head, body or tail. */
static int pieces(const Plan *plan, const Memory *memory, size_t pos, size_t end,
                  struct iovec *out) {
    size_t bounds[4] = {0, plan->before, plan->before + plan->n,
                        plan->before + plan->n + plan->after};
    uint8_t *bases[3] = {memory->edges, plan->into, memory->edges + memory->edge_bytes};
    int count = 0;
    for (int i = 0; i < 3; i++) {
        size_t from = pos > bounds[i] ? pos : bounds[i];
        size_t to = end < bounds[i + 1] ? end : bounds[i + 1];
        if (from < to) {
            out[count].iov_base = bases[i] + (from - bounds[i]);
            out[count++].iov_len = to - from;
        }
    }
    return count;
}

/* Verify the units from `pos` up to `end` that were just read, and bring the body's sum on. */
static int verify(Plan *plan, const uint32_t **want, const Memory *memory, size_t pos, size_t end) {
    size_t unit = (size_t)1 << plan->shift, stop;
    for (; pos < end; pos = stop) {
        stop = pos + unit < end ? pos + unit : end;
        struct iovec parts[3];
        int count = pieces(plan, memory, pos, stop, parts);
        uint32_t whole = 0, body = 0;
        size_t n_body = 0;
        const uint8_t *bytes = NULL;
        for (int i = 0; i < count; i++) {
            uint8_t *base = parts[i].iov_base;
            int mine = base >= plan->into && base < plan->into + plan->n;
            if (mine) {
                bytes = base;
                n_body = parts[i].iov_len;
            }
            if (mine && i > 0) /* something came before: two sums */
                body = crc32c(0, bytes, n_body);
            whole = crc32c(whole, base, parts[i].iov_len);
            if (mine && i == 0)
                body = whole;
        }
        if (whole != *(*want)++)
            return 0;
        if (n_body == unit)
            plan->crc = (plan->shift == PAGE_SHIFT ? crc32c_shift_page(plan->crc)
                                                   : crc32c_shift_grain(plan->crc)) ^ body;
        else if (bytes == plan->into)
            plan->crc = body;
        else
            plan->crc = crc32c(plan->crc, bytes, n_body);
    }
    return 1;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* `weight`: what the time that it takes counts for; 0: it is not taken, which costs less. */
static int carry_out(Plan *plan, const Memory *memory, int flags, unsigned weight, Times *times) {
    const uint32_t *want = memory->sums + plan->sums;
    size_t total = plan->before + plan->n + plan->after, end;
    size_t step = plan->direct < 0 ? STEP_BYTES : total;
    int fd = plan->direct < 0 ? plan->fd : plan->direct;
    plan->crc = 0;
    for (size_t pos = 0; pos < total; pos = end) {
        end = pos + step < total ? pos + step : total;
        struct iovec parts[3];
        int count = pieces(plan, memory, pos, end, parts);
        ssize_t got;
        uint64_t began = weight ? now_ns() : 0;
        do
            got = preadv2(fd, parts, count, (off_t)(plan->at + pos), flags);
        while (got < 0 && errno == EINTR);
        uint64_t there = weight ? now_ns() : 0;
        if (got != (ssize_t)(end - pos) || !verify(plan, &want, memory, pos, end))
            return 0; /* not in the page cache, torn, damaged: the thorough way will say */
        if (weight) {
            times->disk += (there - began) * weight;
            times->sums += (now_ns() - there) * weight;
        }
    }
    return 1;
}

/* One pass over what is not done yet; one that does not wait ends after `max_cold` misses. */
static void pass(Plan *plans, ptrdiff_t count, const Memory *memory, int flags, ptrdiff_t max_cold,
                 Times *times) {
    for (ptrdiff_t i = 0; i < count && max_cold > 0; i++) {
        Plan *plan = &plans[i];
        if (plan->done || (flags && plan->direct >= 0))
            continue;
        unsigned sample = count - i < TIMED_ONE_IN ? (unsigned)(count - i) : TIMED_ONE_IN;
        unsigned weight = plan->n > SMALL_BYTES ? 1 : i % TIMED_ONE_IN ? 0 : sample;
        plan->done = carry_out(plan, memory, flags, weight, times);
        if (flags && !plan->done) {
            max_cold--;
            if (plan->n > ASK_BYTES)
                posix_fadvise(plan->fd, (off_t)plan->at, (off_t)plan->n, POSIX_FADV_WILLNEED);
        }
    }
}

int hillfire_carry_out(Plan *plans, ptrdiff_t count, const uint32_t *sums, size_t edge_bytes,
                       int wait, Times *times) {
    Memory memory = {.sums = sums, .edge_bytes = edge_bytes};
    if (edge_bytes && (memory.edges = malloc(2 * edge_bytes)) == NULL)
        return -1;
    pass(plans, count, &memory, RWF_NOWAIT, wait ? PTRDIFF_MAX : COLD_ENOUGH, times);
    if (wait)
        pass(plans, count, &memory, 0, PTRDIFF_MAX, times);
    free(memory.edges);
    return 0;
}
