/* What a store's writes do in C: many small pieces to their places in one call, the checksums of a
 * chunk one of whose pages changes, and the overwrite of one page, from the update to the entry of
 * the log. The last two are what place.py, sums.py and frames.py do in Python, which are their twins
 * and take over whatever is not plain.
 */
#include "writes.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crc32c.h"

#define MAX_PIECES 4096
#define PAGE_SHIFT 12
#define PAGE_BYTES 4096
#define GRAIN_SHIFT 16
#define GRAIN_PAGES 16

typedef struct {
    Py_buffer data;
    off_t at;
} Piece;

/* Write all of every piece. Returns 0, or the error number of the first that failed. */
static int write_pieces(int fd, const Piece *pieces, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *data = pieces[i].data.buf;
        Py_ssize_t left = pieces[i].data.len;
        off_t at = pieces[i].at;
        while (left > 0) {
            ssize_t done = pwrite(fd, data, (size_t)left, at);
            if (done < 0 && errno == EINTR)
                continue;
            if (done <= 0)
                return done < 0 ? errno : ENOSPC;
            data += done;
            at += done;
            left -= done;
        }
    }
    return 0;
}

PyObject *hillfire_scatter(PyObject *self, PyObject *args) {
    int fd;
    PyObject *given;
    if (!PyArg_ParseTuple(args, "iO!:scatter", &fd, &PyList_Type, &given))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(given), held = 0;
    if (count > MAX_PIECES) {
        PyErr_Format(PyExc_ValueError, "%zd pieces at once, %d are allowed", count, MAX_PIECES);
        return NULL;
    }
    Piece *pieces = PyMem_Malloc((size_t)(count ? count : 1) * sizeof *pieces);
    if (pieces == NULL)
        return PyErr_NoMemory();
    int failure = -1;
    /* The list's length is looked at each time: a buffer's owner may run code of its own. */
    for (; held < count && held < PyList_GET_SIZE(given); held++) {
        long long at;
        PyObject *data, *piece = PyList_GET_ITEM(given, held);
        if (!PyTuple_Check(piece) || !PyArg_ParseTuple(piece, "LO:scatter", &at, &data)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a piece is a place and a buffer");
            goto end;
        }
        if (at < 0) {
            PyErr_SetString(PyExc_ValueError, "a piece before the beginning of the file");
            goto end;
        }
        if (PyObject_GetBuffer(data, &pieces[held].data, PyBUF_SIMPLE) < 0)
            goto end;
        pieces[held].at = (off_t)at;
    }
    Py_BEGIN_ALLOW_THREADS
    failure = write_pieces(fd, pieces, held);
    Py_END_ALLOW_THREADS
    if (failure) {
        errno = failure;
        PyErr_SetFromErrno(PyExc_OSError);
    }
end:
    while (held > 0)
        PyBuffer_Release(&pieces[--held].data);
    PyMem_Free(pieces);
    if (failure)
        return NULL;
    Py_RETURN_NONE;
}

/* Put a page's checksum among its chunk's. False if there is no such page. */
static int replace_page(const Py_buffer *grains, const Py_buffer *pages, size_t page, uint32_t crc) {
    size_t n_pages = (size_t)pages->len / 4, n_grains = (size_t)grains->len / 4;
    size_t grain = page / GRAIN_PAGES, last = grain * GRAIN_PAGES + GRAIN_PAGES - 1;
    if (page >= n_pages || grain >= n_grains ||
        ((uintptr_t)grains->buf | (uintptr_t)pages->buf) % 4)
        return 0;
    if (last > n_pages - 1)
        last = n_pages - 1;
    uint32_t *sums = pages->buf, change = sums[page] ^ crc;
    for (size_t i = page; i < last; i++)
        change = crc32c_shift_page(change);
    ((uint32_t *)grains->buf)[grain] ^= change;
    sums[page] = crc;
    return 1;
}

PyObject *hillfire_replace_page(PyObject *self, PyObject *args) {
    Py_buffer grains, pages;
    unsigned int page, crc;
    if (!PyArg_ParseTuple(args, "w*w*II:replace_page", &grains, &pages, &page, &crc))
        return NULL;
    int there = replace_page(&grains, &pages, page, crc);
    PyBuffer_Release(&grains);
    PyBuffer_Release(&pages);
    if (!there) {
        PyErr_SetString(PyExc_ValueError, "there is no such page");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ the overwrite of one page */

/* frames._PREPARE: how the entry begins. The numbers are little-endian, as they lie. */
typedef struct __attribute__((packed)) {
    uint8_t what, placement, kind, size_class;
    uint32_t number;
    uint8_t chunk[16];
    uint64_t version, client;
    uint32_t channel;
    uint64_t sequence;
    uint32_t epoch, offset, n_bytes, crc, length, checksum;
    uint8_t source[16];
    uint64_t source_version;
    uint32_t first, count, n_packed, image_offset, image_bytes, image_crc;
} Entry;

_Static_assert(sizeof(Entry) == 124, "frames._PREPARE");

enum { ENTRY_PREPARE = 1, PLACEMENT_PATCH = 3, KIND_WRITE = 1 };

/* Numbers of a tuple, by position; sets *bad at the first that is none or does not fit. */
static uint64_t number(PyObject *tuple, Py_ssize_t at, uint64_t limit, int *bad) {
    PyObject *item = PyTuple_GET_ITEM(tuple, at);
    if (!PyLong_Check(item)) {
        *bad = 1;
        return 0;
    }
    uint64_t value = PyLong_AsUnsignedLongLong(item);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        *bad = 1;
        return 0;
    }
    if (value > limit)
        *bad = 1;
    return value;
}

static int is_tuple(PyObject *object, Py_ssize_t size) {
    return PyTuple_Check(object) && PyTuple_GET_SIZE(object) >= size;
}

/* A NamedTuple of borrowed items. */
static PyObject *record_of(PyObject *type, Py_ssize_t count, PyObject *const *items) {
    PyObject *made = ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, count);
    if (made != NULL)
        for (Py_ssize_t i = 0; i < count; i++)
            PyTuple_SET_ITEM(made, i, Py_NewRef(items[i]));
    return made;
}

static PyObject *copy_of(PyObject *sequence) {
    return PySequence_GetSlice(sequence, 0, PY_SSIZE_T_MAX);
}

static PyObject *fine_name, *grains_name;

/* overwrite(update, record, types): see Placer.overwrite. None where it is not plain. */
PyObject *hillfire_overwrite(PyObject *self, PyObject *args) {
    PyObject *update, *record, *types;
    if (!PyArg_ParseTuple(args, "OOO!:overwrite", &update, &record, &PyTuple_Type, &types))
        return NULL;
    if (PyTuple_GET_SIZE(types) != 4 || !is_tuple(update, 13) || !is_tuple(record, 3)) {
        PyErr_SetString(PyExc_TypeError, "an update, a record and four types");
        return NULL;
    }
    for (int i = 0; i < 3; i++) {
        PyObject *type = PyTuple_GET_ITEM(types, i);
        if (!PyType_Check(type) || !PyType_IsSubtype((PyTypeObject *)type, &PyTuple_Type)) {
            PyErr_SetString(PyExc_TypeError, "the records are tuples");
            return NULL;
        }
    }
    if (fine_name == NULL && (fine_name = PyUnicode_InternFromString("fine")) == NULL)
        return NULL;
    if (grains_name == NULL && (grains_name = PyUnicode_InternFromString("grains")) == NULL)
        return NULL;
    PyObject *chunk = PyTuple_GET_ITEM(update, 0), *tag = PyTuple_GET_ITEM(update, 7);
    PyObject *meta = PyTuple_GET_ITEM(record, 0), *block = PyTuple_GET_ITEM(record, 1);
    PyObject *sums = PyTuple_GET_ITEM(record, 2);
    if (!PyBytes_Check(chunk) || PyBytes_GET_SIZE(chunk) != 16 || !is_tuple(tag, 3) ||
        !is_tuple(meta, 2) || !is_tuple(block, 2))
        Py_RETURN_NONE;
    int bad = 0;
    Entry entry = {.what = ENTRY_PREPARE, .placement = PLACEMENT_PATCH, .kind = KIND_WRITE};
    memcpy(entry.chunk, PyBytes_AS_STRING(chunk), 16);
    uint64_t kind = number(update, 2, UINT32_MAX, &bad);
    uint64_t n_bytes = number(update, 4, UINT32_MAX, &bad);
    uint64_t chunk_bytes = number(update, 10, UINT32_MAX, &bad);
    entry.version = number(update, 1, UINT64_MAX, &bad);
    entry.offset = (uint32_t)number(update, 3, UINT32_MAX, &bad);
    entry.crc = entry.image_crc = (uint32_t)number(update, 6, UINT32_MAX, &bad);
    entry.epoch = (uint32_t)number(update, 8, UINT32_MAX, &bad);
    entry.client = number(tag, 0, UINT64_MAX, &bad);
    entry.channel = (uint32_t)number(tag, 1, UINT32_MAX, &bad);
    entry.sequence = number(tag, 2, UINT64_MAX, &bad);
    entry.length = (uint32_t)number(meta, 1, UINT32_MAX, &bad);
    entry.size_class = (uint8_t)number(block, 0, UINT8_MAX, &bad);
    entry.number = (uint32_t)number(block, 1, UINT32_MAX, &bad);
    entry.n_bytes = entry.image_bytes = PAGE_BYTES;
    entry.image_offset = entry.offset;
    /* One whole page inside a longer chunk of whole pages. */
    uint64_t end = (uint64_t)entry.offset + PAGE_BYTES;
    if (bad || kind != KIND_WRITE || n_bytes != PAGE_BYTES || entry.offset % PAGE_BYTES ||
        entry.length % PAGE_BYTES || entry.length == PAGE_BYTES || end > entry.length ||
        end > chunk_bytes)
        Py_RETURN_NONE;
    size_t page = entry.offset >> PAGE_SHIFT, grain = entry.offset >> GRAIN_SHIFT;
    size_t n_pages = entry.length >> PAGE_SHIFT;
    size_t n_grains = (n_pages + GRAIN_PAGES - 1) / GRAIN_PAGES;
    entry.first = (uint32_t)grain;
    entry.count = 1;

    PyObject *outcome = NULL, *image = NULL, *fine = NULL, *grains = NULL, *pages = NULL;
    PyObject *known = NULL, *packed = NULL, *digest = NULL, *pair = NULL, *after = NULL;
    PyObject *pending = NULL, *waiting = NULL, *answer = NULL, *first = NULL, *one = NULL;
    PyObject *zero = NULL;
    Py_buffer payload = {0}, grain_sums = {0}, page_sums = {0};
    int plain = 0;
    fine = PyObject_GetAttr(sums, fine_name);
    if (fine == NULL)
        goto end;
    plain = 1;
    if (!is_tuple(fine, 2) || !PyByteArray_Check(PyTuple_GET_ITEM(fine, 1)))
        goto end;
    known = copy_of(PyTuple_GET_ITEM(fine, 1));
    pages = copy_of(PyTuple_GET_ITEM(fine, 0));
    PyObject *old = PyObject_GetAttr(sums, grains_name);
    grains = old == NULL ? NULL : copy_of(old);
    Py_XDECREF(old);
    if (known == NULL || pages == NULL || grains == NULL)
        goto end;
    if ((size_t)PyByteArray_GET_SIZE(known) != n_grains || PyByteArray_AS_STRING(known)[grain] != 1)
        goto end;
    if (PyObject_GetBuffer(PyTuple_GET_ITEM(update, 5), &payload, PyBUF_SIMPLE) < 0)
        goto end;
    if (payload.len < PAGE_BYTES)
        goto end;
    /* The checksum is verified on the copy that is kept. */
    image = PyBytes_FromStringAndSize(payload.buf, PAGE_BYTES);
    if (image == NULL || crc32c(0, (uint8_t *)PyBytes_AS_STRING(image), PAGE_BYTES) != entry.crc)
        goto end;
    if (PyObject_GetBuffer(grains, &grain_sums, PyBUF_WRITABLE) < 0 ||
        PyObject_GetBuffer(pages, &page_sums, PyBUF_WRITABLE) < 0)
        goto end;
    if ((size_t)grain_sums.len != 4 * n_grains || (size_t)page_sums.len != 4 * n_pages ||
        !replace_page(&grain_sums, &page_sums, page, entry.crc))
        goto end;
    entry.checksum = crc32c(0, grain_sums.buf, (size_t)grain_sums.len);
    size_t start = grain * GRAIN_PAGES;
    size_t count = n_pages - start < GRAIN_PAGES ? n_pages - start : GRAIN_PAGES;
    entry.n_packed = (uint32_t)(5 + 4 * count);
    packed = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof entry + entry.n_packed));
    if (packed == NULL)
        goto end;
    char *out = PyBytes_AS_STRING(packed);
    memcpy(out, &entry, sizeof entry);
    memcpy(out + sizeof entry, (uint32_t *)grain_sums.buf + grain, 4);
    out[sizeof entry + 4] = 1;
    memcpy(out + sizeof entry + 5, (uint32_t *)page_sums.buf + start, 4 * count);

    digest = PyLong_FromUnsignedLong(entry.checksum);
    first = PyLong_FromSize_t(grain);
    one = PyLong_FromLong(1);
    zero = PyLong_FromLong(0);
    pair = PyTuple_Pack(2, pages, known);
    if (digest == NULL || first == NULL || one == NULL || zero == NULL || pair == NULL)
        goto end;
    after = PyObject_CallFunctionObjArgs((PyObject *)Py_TYPE(sums), grains, pair, NULL);
    PyObject *length = PyTuple_GET_ITEM(meta, 1), *offset = PyTuple_GET_ITEM(update, 3);
    PyObject *pendings[] = {PyTuple_GET_ITEM(update, 1), length, digest, tag,
                            PyTuple_GET_ITEM(update, 8), PyTuple_GET_ITEM(update, 2), offset,
                            PyTuple_GET_ITEM(update, 4), PyTuple_GET_ITEM(update, 6), Py_None, zero};
    pending = record_of(PyTuple_GET_ITEM(types, 0), 11, pendings);
    if (after == NULL || pending == NULL)
        goto end;
    PyObject *fields[] = {pending, PyTuple_GET_ITEM(types, 3), block, after, first, one, offset,
                          image};
    waiting = record_of(PyTuple_GET_ITEM(types, 1), 8, fields);
    PyObject *answers[] = {length, digest};
    answer = record_of(PyTuple_GET_ITEM(types, 2), 2, answers);
    if (waiting != NULL && answer != NULL)
        outcome = PyTuple_Pack(4, answer, waiting, packed, image);
end:
    if (payload.obj != NULL)
        PyBuffer_Release(&payload);
    if (grain_sums.obj != NULL)
        PyBuffer_Release(&grain_sums);
    if (page_sums.obj != NULL)
        PyBuffer_Release(&page_sums);
    PyObject *used[] = {image, fine, grains, pages, known, packed, digest, pair, after, pending,
                        waiting, answer, first, one, zero};
    for (size_t i = 0; i < sizeof used / sizeof *used; i++)
        Py_XDECREF(used[i]);
    if (outcome == NULL && plain && !PyErr_Occurred())
        Py_RETURN_NONE; /* the twin says what it is */
    return outcome;
}
