/* A batch of verified reads in one call. hillfire.storage.store.batch tells what it answers; what
 * it cannot answer at once is left to the thorough way in Python, which is its pure twin too.
 *
 * First, with the interpreter's lock, each item is planned: its record is looked up, and the
 * checksums that cover it are copied. Then, without the lock, the plans are carried out
 * (verified.c).
 */
#include "reads.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "verified.h"

#define CHUNK_BYTES 16
#define ITEM_BYTES 32   /* chunk, chain, chain version, offset, flags: READ_ITEMS */
#define RESULT_BYTES 20 /* code, pad, filled, checksum, version: READ_RESULTS */
#define SINGLE_BYTES 65536 /* files.py: reads up to this size do without read-ahead */
#define DIRECT_BYTES 262144 /* files.py: from this size on reads may go past the page cache */
#define DIRECT_UNIT 4096    /* and only if all of their bounds are multiples of this */
#define MAX_BYTES (64u << 20)
#define MAX_ITEMS 65536
#define PART_BYTES 20      /* region, offset, length: frame.PART */
#define MIN_CLASS 16
#define MAX_CLASS 26

enum { LEFT, PLANNED, ANSWERED };

typedef struct {
    uint8_t *at;
    size_t n;
} Place;

typedef struct {
    Py_ssize_t count; /* items */
    const uint8_t *items;
    Place *into;
    Py_buffer *views; /* held while `into` points into them */
    Py_ssize_t n_views;
    Plan *plans;
    Py_ssize_t n_plans;
    uint32_t *sums;
    size_t n_sums, sums_room;
    size_t edge_bytes; /* of scratch memory for what surrounds a request, on either side */
    uint8_t *results;
    uint32_t *filled;
    Times times;
} Batch;

typedef struct {
    uint32_t chain, chain_version;
    PyObject *found;                  /* what `look` said: a code, or a tuple of these */
    PyObject *records, *held, *files; /* borrowed from it */
} Target;

#define TARGETS 64 /* looked up for one batch and kept, by their chain's last bits */

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

enum { SINGLE_FILES, FILES, DIRECT_FILES };

/* Return a file's descriptor; -1 if there is none, or with an exception. */
static int descriptor(PyObject *files, Py_ssize_t kind, uint64_t size_class) {
    if (!is_tuple(files, kind + 1))
        return -1;
    PyObject *of_kind = PyTuple_GET_ITEM(files, kind);
    if (!is_tuple(of_kind, (Py_ssize_t)size_class + 1))
        return -1;
    long fd = PyLong_AsLong(PyTuple_GET_ITEM(of_kind, (Py_ssize_t)size_class));
    return fd >= 0 && fd <= INT32_MAX ? (int)fd : -1;
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
    size_t n = batch->into[item].n;
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
    int fd = descriptor(files, n <= SINGLE_BYTES ? SINGLE_FILES : FILES, size_class);
    if (fd < 0)
        return PyErr_Occurred() ? -1 : LEFT;

    Plan plan = {.item = item, .fd = fd, .direct = -1, .version = version, .n = n};
    plan.into = batch->into[item].at;
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
    if (n >= DIRECT_BYTES && !plan.before && !plan.after &&
        !((n | plan.at | (uintptr_t)plan.into) % DIRECT_UNIT))
        plan.direct = descriptor(files, DIRECT_FILES, size_class);
    if (PyErr_Occurred())
        return -1;
    if ((plan.before || plan.after) && batch->edge_bytes < 1u << plan.shift)
        batch->edge_bytes = 1u << plan.shift;
    batch->plans[batch->n_plans++] = plan;
    return PLANNED;
}

/* Return an item's target, asked for once; NULL and an exception if that failed. */
static Target *find_target(Target *targets, PyObject *look, uint32_t chain, uint32_t chain_version) {
    Target *target = &targets[chain % TARGETS];
    if (target->found != NULL && target->chain == chain && target->chain_version == chain_version)
        return target;
    PyObject *found = PyObject_CallFunction(look, "II", chain, chain_version);
    if (found == NULL)
        return NULL;
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
    return target;
}

static int plan_item(Batch *batch, Py_ssize_t item, Target *targets, PyObject *look) {
    const uint8_t *at = batch->items + item * ITEM_BYTES;
    uint32_t numbers[4]; /* chain, chain version, offset, flags */
    memcpy(numbers, at + CHUNK_BYTES, sizeof numbers);
    Target *target = find_target(targets, look, numbers[0], numbers[1]);
    if (target == NULL)
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

/* ------------------------------------------------------------------ the call */

/* Destinations that are buffers of their own. */
static int take_buffers(Batch *batch, PyObject *into) {
    PyObject *sequence = PySequence_Fast(into, "destinations are a sequence of buffers");
    if (sequence == NULL)
        return -1;
    int outcome = -1;
    if (PySequence_Fast_GET_SIZE(sequence) != batch->count) {
        PyErr_SetString(PyExc_ValueError, "one destination for each item");
        goto end;
    }
    for (; batch->n_views < batch->count; batch->n_views++) {
        Py_buffer *view = &batch->views[batch->n_views];
        PyObject *buffer = PySequence_Fast_GET_ITEM(sequence, batch->n_views);
        if (PyObject_GetBuffer(buffer, view, PyBUF_WRITABLE) < 0)
            goto end;
        batch->into[batch->n_views] = (Place){view->buf, (size_t)view->len};
    }
    outcome = 0;
end:
    Py_DECREF(sequence);
    return outcome;
}

/* Destinations that are parts of one buffer, as a table tells. */
static int take_parts(Batch *batch, PyObject *base, const Py_buffer *table) {
    if (table->len / PART_BYTES != batch->count || table->len % PART_BYTES) {
        PyErr_SetString(PyExc_ValueError, "one part for each item");
        return -1;
    }
    if (PyObject_GetBuffer(base, &batch->views[0], PyBUF_WRITABLE) < 0)
        return -1;
    batch->n_views = 1;
    uint64_t size = (uint64_t)batch->views[0].len;
    for (Py_ssize_t i = 0; i < batch->count; i++) {
        uint64_t offset;
        uint32_t length;
        const uint8_t *record = (const uint8_t *)table->buf + i * PART_BYTES;
        memcpy(&offset, record + 8, 8);
        memcpy(&length, record + 16, 4);
        if (offset > size || length > size - offset) {
            PyErr_SetString(PyExc_ValueError, "a part lies outside its region");
            return -1;
        }
        batch->into[i] = (Place){(uint8_t *)batch->views[0].buf + offset, length};
    }
    return 0;
}

static int append(PyObject *list, Py_ssize_t item) {
    PyObject *number = PyLong_FromSsize_t(item);
    int outcome = number == NULL ? -1 : PyList_Append(list, number);
    Py_XDECREF(number);
    return outcome;
}

static PyObject *run(Batch *batch, PyObject *into, const Py_buffer *table, PyObject *look,
                     int wait) {
    Target targets[TARGETS] = {{.found = NULL}};
    PyObject *outcome = NULL, *left = PyList_New(0), *cold = PyList_New(0);
    PyObject *results = PyByteArray_FromStringAndSize(NULL, batch->count * RESULT_BYTES);
    PyObject *filled = PyByteArray_FromStringAndSize(NULL, batch->count * 4);
    batch->plans = calloc((size_t)batch->count + 1, sizeof *batch->plans);
    batch->into = calloc((size_t)batch->count + 1, sizeof *batch->into);
    batch->views = calloc(table ? 1 : (size_t)batch->count + 1, sizeof *batch->views);
    if (left == NULL || cold == NULL || results == NULL || filled == NULL)
        goto end;
    if (batch->plans == NULL || batch->into == NULL || batch->views == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    batch->results = (uint8_t *)PyByteArray_AS_STRING(results);
    batch->filled = (uint32_t *)PyByteArray_AS_STRING(filled);
    memset(batch->results, 0, (size_t)batch->count * RESULT_BYTES);
    memset(batch->filled, 0, (size_t)batch->count * 4);
    if ((table ? take_parts(batch, into, table) : take_buffers(batch, into)) < 0)
        goto end;
    for (Py_ssize_t item = 0; item < batch->count; item++) {
        int planned = plan_item(batch, item, targets, look);
        if (planned < 0)
            goto end;
        if (planned == LEFT && append(left, item) < 0)
            goto end;
    }
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = hillfire_carry_out(batch->plans, batch->n_plans, batch->sums, batch->edge_bytes, wait,
                                &batch->times);
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
        if (append(cold, plan->item) < 0)
            goto end;
    }
    outcome = Py_BuildValue("(OOOOKK)", results, filled, left, cold, (unsigned long long)batch->times.disk,
                            (unsigned long long)batch->times.sums);
end:
    while (batch->n_views)
        PyBuffer_Release(&batch->views[--batch->n_views]);
    free(batch->views);
    free(batch->into);
    free(batch->plans);
    free(batch->sums);
    for (int i = 0; i < TARGETS; i++)
        Py_XDECREF(targets[i].found);
    Py_XDECREF(left);
    Py_XDECREF(cold);
    Py_XDECREF(results);
    Py_XDECREF(filled);
    return outcome;
}

PyObject *hillfire_read(PyObject *self, PyObject *args) {
    Py_buffer items;
    PyObject *into, *look, *outcome = NULL;
    int wait;
    if (grains_name == NULL && (grains_name = PyUnicode_InternFromString("grains")) == NULL)
        return NULL;
    if (fine_name == NULL && (fine_name = PyUnicode_InternFromString("fine")) == NULL)
        return NULL;
    Py_buffer table = {.buf = NULL, .obj = NULL};
    if (!PyArg_ParseTuple(args, "y*OOp|y*:read", &items, &into, &look, &wait, &table))
        return NULL;
    Batch batch = {.count = items.len / ITEM_BYTES, .items = items.buf};
    if (items.len % ITEM_BYTES || batch.count > MAX_ITEMS)
        PyErr_SetString(PyExc_ValueError, "not a whole number of items, or too many");
    else
        outcome = run(&batch, into, table.obj == NULL ? NULL : &table, look, wait);
    if (table.obj != NULL)
        PyBuffer_Release(&table);
    PyBuffer_Release(&items);
    return outcome;
}
