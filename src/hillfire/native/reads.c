/* A batch of verified reads in one call. hillfire.storage.store.batch tells what it answers; what
 * it cannot answer at once is left to the thorough way in Python, which is its pure twin too.
 *
 * First, with the interpreter's lock, each item is planned: its record is looked up, and the
 * checksums that cover it are copied. Then, without the lock, the blocks are read straight to their
 * destinations in steps that stay in the processor's cache, and verified there.
 *
 * The destinations may be a client's own memory, which the client may change at any time: nothing
 * that is read back from there is trusted, it is summed only.
 */
#include "reads.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "crc32c.h"

#define CHUNK_BYTES 16
#define ITEM_BYTES 32   /* chunk, chain, chain version, offset, flags: READ_ITEMS */
#define RESULT_BYTES 20 /* code, pad, filled, checksum, version: READ_RESULTS */
#define PAGE_SHIFT 12
#define GRAIN_SHIFT 16
#define GRAIN_PAGES 16
#define SMALL_BYTES 32768  /* reading.py: requests up to this size are verified by pages */
#define SINGLE_BYTES 65536 /* files.py: reads up to this size do without read-ahead */
#define STEP_BYTES 131072  /* read and summed at a time; a multiple of a grain */
#define MAX_BYTES (64u << 20)
#define MAX_ITEMS 65536
#define MIN_CLASS 16
#define MAX_CLASS 26

enum { LEFT, PLANNED, ANSWERED };

typedef struct {
    Py_ssize_t item;
    int fd, shift;
    uint64_t at;          /* in the file: where the first unit begins */
    uint8_t *into;
    size_t n;             /* bytes that are wanted */
    size_t before, after; /* bytes around them that the same units hold */
    size_t sums;          /* where the units' checksums begin in `Batch.sums` */
    uint64_t version;
    uint32_t crc;
    int done;
} Plan;

typedef struct {
    Py_ssize_t count; /* items */
    const uint8_t *items;
    Py_buffer *into;
    Py_ssize_t n_into;
    Plan *plans;
    Py_ssize_t n_plans;
    uint32_t *sums;
    size_t n_sums, sums_room;
    size_t edge_bytes; /* of scratch memory for what surrounds a request, on either side */
    uint8_t *results;
    uint32_t *filled;
} Batch;

typedef struct {
    uint32_t chain, chain_version;
    PyObject *found;                  /* what `look` said: a code, or a tuple of these */
    PyObject *records, *held, *files; /* borrowed from it */
} Target;

static PyObject *grains_name, *fine_name;

static void answer(Batch *batch, Py_ssize_t item, uint16_t code, uint32_t filled, uint32_t crc,
                   uint64_t version) {
    uint8_t *at = batch->results + item * RESULT_BYTES;
    memcpy(at, &code, 2);
    memcpy(at + 4, &filled, 4);
    memcpy(at + 8, &crc, 4);
    memcpy(at + 12, &version, 8);
    batch->filled[item] = filled;
}

/* ------------------------------------------------------------------ planning, with the lock */

static int is_tuple(PyObject *object, Py_ssize_t length) {
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) >= length;
}

/* An unsigned field of a tuple that is long enough; 0 and an exception if it is none. */
static uint64_t field(PyObject *tuple, Py_ssize_t index) {
    return PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(tuple, index));
}

/* Copy `count` checksums from `first` on out of an array; LEFT if it does not have them. */
static int copy_sums(Batch *batch, PyObject *array, size_t first, size_t count) {
    Py_buffer view;
    if (batch->n_sums + count > batch->sums_room) {
        size_t room = 2 * (batch->n_sums + count);
        uint32_t *larger = realloc(batch->sums, room * sizeof *larger);
        if (larger == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        batch->sums = larger;
        batch->sums_room = room;
    }
    if (PyObject_GetBuffer(array, &view, PyBUF_SIMPLE) < 0)
        return -1;
    int there = view.itemsize == 4 && (first + count) * 4 <= (size_t)view.len;
    if (there) {
        memcpy(batch->sums + batch->n_sums, (const uint8_t *)view.buf + 4 * first, 4 * count);
        batch->n_sums += count;
    }
    PyBuffer_Release(&view);
    return there ? PLANNED : LEFT;
}

/* Tell whether the pages of all grains of a byte range are known. */
static int known(PyObject *fine, size_t offset, size_t n) {
    if (!is_tuple(fine, 2))
        return 0;
    PyObject *flags = PyTuple_GET_ITEM(fine, 1);
    if (!PyByteArray_Check(flags))
        return 0;
    size_t last = (offset + n - 1) >> GRAIN_SHIFT;
    if (last >= (size_t)PyByteArray_GET_SIZE(flags))
        return 0;
    for (size_t grain = offset >> GRAIN_SHIFT; grain <= last; grain++)
        if (PyByteArray_AS_STRING(flags)[grain] != 1)
            return 0;
    return 1;
}

/* Tell whether pages of a byte range lie in the log: 1, 0, or -1 with an exception. */
static int overlaid(PyObject *overlay, size_t offset, size_t n) {
    if (overlay == Py_None)
        return 0;
    if (!PyDict_Check(overlay) || n > SMALL_BYTES)
        return 1;
    for (size_t page = offset >> PAGE_SHIFT; page <= (offset + n - 1) >> PAGE_SHIFT; page++) {
        PyObject *key = PyLong_FromSize_t(page);
        int there = key == NULL ? -1 : PyDict_Contains(overlay, key);
        Py_XDECREF(key);
        if (there)
            return there;
    }
    return 0;
}

/* Plan one item whose record is known: PLANNED, ANSWERED, LEFT, or -1 with an exception. */
static int plan_record(Batch *batch, Py_ssize_t item, PyObject *record, PyObject *files,
                       size_t offset) {
    if (!is_tuple(record, 7) || !is_tuple(PyTuple_GET_ITEM(record, 0), 2))
        return LEFT;
    PyObject *meta = PyTuple_GET_ITEM(record, 0), *block = PyTuple_GET_ITEM(record, 1);
    uint64_t version = field(meta, 0), length = field(meta, 1);
    if (PyErr_Occurred())
        return -1;
    size_t n = (size_t)batch->into[item].len;
    if (offset >= length || n == 0) {
        answer(batch, item, 0, 0, 0, version);
        return ANSWERED;
    }
    if (length > MAX_BYTES || !is_tuple(block, 2))
        return LEFT;
    if (n > length - offset)
        n = length - offset;
    uint64_t size_class = field(block, 0), number = field(block, 1);
    if (PyErr_Occurred())
        return -1;
    if (size_class < MIN_CLASS || size_class > MAX_CLASS || length > 1ull << size_class ||
        number >> (62 - size_class))
        return LEFT;
    for (int i = 5; i <= 6; i++) {
        int found = overlaid(PyTuple_GET_ITEM(record, i), offset, n);
        if (found)
            return found < 0 ? -1 : LEFT;
    }
    PyObject *fds = is_tuple(files, 2) ? PyTuple_GET_ITEM(files, n <= SINGLE_BYTES ? 0 : 1) : files;
    if (!is_tuple(fds, (Py_ssize_t)size_class + 1))
        return LEFT;
    long fd = PyLong_AsLong(PyTuple_GET_ITEM(fds, (Py_ssize_t)size_class));
    if (fd < 0 || fd > INT32_MAX)
        return PyErr_Occurred() ? -1 : LEFT;

    Plan plan = {.item = item, .fd = (int)fd, .version = version, .n = n};
    plan.into = batch->into[item].buf;
    plan.shift = n <= SMALL_BYTES ? PAGE_SHIFT : GRAIN_SHIFT;
    plan.sums = batch->n_sums;
    PyObject *sums = PyTuple_GET_ITEM(record, 2), *array = NULL;
    PyObject *owner = PyObject_GetAttr(sums, plan.shift == PAGE_SHIFT ? fine_name : grains_name);
    if (owner == NULL)
        return -1;
    if (plan.shift == GRAIN_SHIFT)
        array = owner;
    else if (known(owner, offset, n))
        array = PyTuple_GET_ITEM(owner, 0);
    size_t first = offset >> plan.shift, last = (offset + n - 1) >> plan.shift;
    int outcome = array == NULL ? LEFT : copy_sums(batch, array, first, last - first + 1);
    Py_DECREF(owner);
    if (outcome != PLANNED)
        return outcome;
    size_t start = first << plan.shift, end = (last + 1) << plan.shift;
    if (end > length)
        end = length;
    plan.before = offset - start;
    plan.after = end - offset - n;
    plan.at = (number << size_class) + start;
    if ((plan.before || plan.after) && batch->edge_bytes < 1u << plan.shift)
        batch->edge_bytes = 1u << plan.shift;
    batch->plans[batch->n_plans++] = plan;
    return PLANNED;
}

/* Find out about an item's target, once for all items of it in a row. */
static int turn_to(Target *target, PyObject *look, uint32_t chain, uint32_t chain_version) {
    if (target->found != NULL && target->chain == chain && target->chain_version == chain_version)
        return 0;
    PyObject *found = PyObject_CallFunction(look, "II", chain, chain_version);
    if (found == NULL)
        return -1;
    Py_XSETREF(target->found, found);
    target->chain = chain;
    target->chain_version = chain_version;
    target->records = target->held = target->files = NULL;
    if (is_tuple(found, 3) && PyDict_Check(PyTuple_GET_ITEM(found, 0)) &&
        PyDict_Check(PyTuple_GET_ITEM(found, 1))) {
        target->records = PyTuple_GET_ITEM(found, 0);
        target->held = PyTuple_GET_ITEM(found, 1);
        target->files = PyTuple_GET_ITEM(found, 2);
    }
    return 0;
}

static int plan_item(Batch *batch, Py_ssize_t item, Target *target, PyObject *look) {
    const uint8_t *at = batch->items + item * ITEM_BYTES;
    uint32_t numbers[4]; /* chain, chain version, offset, flags */
    memcpy(numbers, at + CHUNK_BYTES, sizeof numbers);
    if (turn_to(target, look, numbers[0], numbers[1]) < 0)
        return -1;
    if (PyLong_Check(target->found)) {
        long code = PyLong_AsLong(target->found);
        if (code == -1 && PyErr_Occurred())
            return -1;
        answer(batch, item, (uint16_t)code, 0, 0, 0);
        return ANSWERED;
    }
    if (target->records == NULL)
        return LEFT;
    PyObject *chunk = PyBytes_FromStringAndSize((const char *)at, CHUNK_BYTES);
    if (chunk == NULL)
        return -1;
    int outcome = PyDict_GET_SIZE(target->held) ? PyDict_Contains(target->held, chunk) : 0;
    if (outcome == 0) {
        PyObject *record = PyDict_GetItemWithError(target->records, chunk);
        if (record != NULL) {
            Py_INCREF(record); /* its owner may replace it while Python code runs here */
            outcome = plan_record(batch, item, record, target->files, numbers[2]);
            Py_DECREF(record);
        } else {
            outcome = PyErr_Occurred() ? -1 : LEFT;
        }
    } else if (outcome > 0) {
        outcome = LEFT;
    }
    Py_DECREF(chunk);
    return outcome;
}

/* ------------------------------------------------------------------ reading, without the lock */


/* The part of a plan's bytes from `pos` up to `end` that lies in its head, body or tail. */
static int pieces(const Plan *plan, uint8_t *edges, size_t edge_bytes, size_t pos, size_t end,
                  struct iovec *out) {
    size_t bounds[4] = {0, plan->before, plan->before + plan->n,
                        plan->before + plan->n + plan->after};
    uint8_t *bases[3] = {edges, plan->into, edges + edge_bytes};
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
static int verify(Plan *plan, const uint32_t **want, uint8_t *edges, size_t edge_bytes, size_t pos,
                  size_t end) {
    size_t unit = (size_t)1 << plan->shift, stop;
    for (; pos < end; pos = stop) {
        stop = pos + unit < end ? pos + unit : end;
        struct iovec parts[3];
        int count = pieces(plan, edges, edge_bytes, pos, stop, parts);
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

static int carry_out(Plan *plan, const uint32_t *sums, uint8_t *edges, size_t edge_bytes, int flags) {
    const uint32_t *want = sums + plan->sums;
    size_t total = plan->before + plan->n + plan->after, end;
    for (size_t pos = 0; pos < total; pos = end) {
        end = pos + STEP_BYTES < total ? pos + STEP_BYTES : total;
        struct iovec parts[3];
        int count = pieces(plan, edges, edge_bytes, pos, end, parts);
        ssize_t got;
        do
            got = preadv2(plan->fd, parts, count, (off_t)(plan->at + pos), flags);
        while (got < 0 && errno == EINTR);
        if (got != (ssize_t)(end - pos) || !verify(plan, &want, edges, edge_bytes, pos, end))
            return 0; /* not in the page cache, torn, damaged: the thorough way will say */
    }
    return 1;
}

static int carry_out_all(Batch *batch, int flags) {
    uint8_t *edges = NULL;
    if (batch->edge_bytes && (edges = malloc(2 * batch->edge_bytes)) == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < batch->n_plans; i++)
        batch->plans[i].done =
            carry_out(&batch->plans[i], batch->sums, edges, batch->edge_bytes, flags);
    free(edges);
    return 0;
}

/* ------------------------------------------------------------------ the call */

static int take_into(Batch *batch, PyObject *sequence) {
    for (; batch->n_into < batch->count; batch->n_into++) {
        PyObject *view = PySequence_Fast_GET_ITEM(sequence, batch->n_into);
        if (PyObject_GetBuffer(view, &batch->into[batch->n_into], PyBUF_WRITABLE) < 0)
            return -1;
    }
    return 0;
}

static PyObject *run(Batch *batch, PyObject *into, PyObject *look, int flags) {
    Target target = {.found = NULL};
    PyObject *outcome = NULL, *left = PyList_New(0);
    PyObject *results = PyByteArray_FromStringAndSize(NULL, batch->count * RESULT_BYTES);
    PyObject *filled = PyByteArray_FromStringAndSize(NULL, batch->count * 4);
    batch->plans = calloc((size_t)batch->count + 1, sizeof *batch->plans);
    batch->into = calloc((size_t)batch->count + 1, sizeof *batch->into);
    if (left == NULL || results == NULL || filled == NULL)
        goto end;
    if (batch->plans == NULL || batch->into == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    batch->results = (uint8_t *)PyByteArray_AS_STRING(results);
    batch->filled = (uint32_t *)PyByteArray_AS_STRING(filled);
    memset(batch->results, 0, (size_t)batch->count * RESULT_BYTES);
    memset(batch->filled, 0, (size_t)batch->count * 4);
    if (take_into(batch, into) < 0)
        goto end;
    for (Py_ssize_t item = 0; item < batch->count; item++) {
        int planned = plan_item(batch, item, &target, look);
        if (planned < 0)
            goto end;
        if (planned == LEFT) {
            PyObject *number = PyLong_FromSsize_t(item);
            int appended = number == NULL ? -1 : PyList_Append(left, number);
            Py_XDECREF(number);
            if (appended < 0)
                goto end;
        }
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = carry_out_all(batch, flags);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_NoMemory();
        goto end;
    }
    for (Py_ssize_t i = 0; i < batch->n_plans; i++) {
        const Plan *plan = &batch->plans[i];
        if (plan->done) {
            answer(batch, plan->item, 0, (uint32_t)plan->n, plan->crc, plan->version);
            continue;
        }
        PyObject *number = PyLong_FromSsize_t(plan->item);
        int appended = number == NULL ? -1 : PyList_Append(left, number);
        Py_XDECREF(number);
        if (appended < 0)
            goto end;
    }
    outcome = PyTuple_Pack(3, results, filled, left);
end:
    while (batch->n_into)
        PyBuffer_Release(&batch->into[--batch->n_into]);
    free(batch->into);
    free(batch->plans);
    free(batch->sums);
    Py_XDECREF(target.found);
    Py_XDECREF(left);
    Py_XDECREF(results);
    Py_XDECREF(filled);
    return outcome;
}

PyObject *hillfire_read(PyObject *self, PyObject *args) {
    Py_buffer items;
    PyObject *into, *look, *outcome = NULL;
    int flags;
    if (grains_name == NULL && (grains_name = PyUnicode_InternFromString("grains")) == NULL)
        return NULL;
    if (fine_name == NULL && (fine_name = PyUnicode_InternFromString("fine")) == NULL)
        return NULL;
    if (!PyArg_ParseTuple(args, "y*OOi:read", &items, &into, &look, &flags))
        return NULL;
    PyObject *sequence = PySequence_Fast(into, "destinations are a sequence of buffers");
    if (sequence != NULL) {
        Batch batch = {.count = items.len / ITEM_BYTES, .items = items.buf};
        if (items.len % ITEM_BYTES || batch.count > MAX_ITEMS ||
            PySequence_Fast_GET_SIZE(sequence) != batch.count)
            PyErr_SetString(PyExc_ValueError, "one destination for each whole item");
        else
            outcome = run(&batch, sequence, look, flags);
        Py_DECREF(sequence);
    }
    PyBuffer_Release(&items);
    return outcome;
}
