/* What a store's writes do in C: many small pieces to their places in one call, and the checksums
 * of a chunk one of whose pages changes.
 */
#include "writes.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "crc32c.h"

#define MAX_PIECES 4096
#define PAGE_SHIFT 12
#define GRAIN_SHIFT 16

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

PyObject *hillfire_replace_page(PyObject *self, PyObject *args) {
    Py_buffer grains, pages;
    unsigned int page, crc;
    PyObject *outcome = NULL;
    if (!PyArg_ParseTuple(args, "w*w*II:replace_page", &grains, &pages, &page, &crc))
        return NULL;
    size_t n_pages = (size_t)pages.len / 4, n_grains = (size_t)grains.len / 4;
    size_t grain = page >> (GRAIN_SHIFT - PAGE_SHIFT);
    size_t last = ((grain + 1) << (GRAIN_SHIFT - PAGE_SHIFT)) - 1;
    if (page >= n_pages || grain >= n_grains || ((uintptr_t)grains.buf | (uintptr_t)pages.buf) % 4) {
        PyErr_SetString(PyExc_ValueError, "there is no such page");
        goto end;
    }
    if (last > n_pages - 1)
        last = n_pages - 1;
    uint32_t change = ((uint32_t *)pages.buf)[page] ^ crc;
    for (size_t i = page; i < last; i++)
        change = crc32c_shift_page(change);
    ((uint32_t *)grains.buf)[grain] ^= change;
    ((uint32_t *)pages.buf)[page] = crc;
    outcome = Py_NewRef(Py_None);
end:
    PyBuffer_Release(&grains);
    PyBuffer_Release(&pages);
    return outcome;
}
