/* hillfire.native._fast: what Python is too slow for. Each function has its pure twin.
 *
 * The import fails, and the twins are used, where HILLFIRE_PURE is set or the processor lacks what
 * crc32c.c needs.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>

#include "crc32c.h"
#include "reads.h"
#include "writes.h"

#define RELEASE_BYTES 65536 /* shorter sums are done before another thread had the lock */

static PyObject *py_crc32c(PyObject *self, PyObject *args) {
    Py_buffer data;
    unsigned int value = 0;
    if (!PyArg_ParseTuple(args, "y*|I:crc32c", &data, &value))
        return NULL;
    if (data.len > RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        value = crc32c(value, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS
    } else {
        value = crc32c(value, data.buf, (size_t)data.len);
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(value);
}

/* For tests: the way of processors without wide registers. */
static PyObject *py_crc32c_in_streams(PyObject *self, PyObject *args) {
    Py_buffer data;
    unsigned int value = 0;
    if (!PyArg_ParseTuple(args, "y*|I:crc32c_in_streams", &data, &value))
        return NULL;
    value = crc32c_in_streams(value, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(value);
}

static PyObject *py_sums(PyObject *self, PyObject *args) {
    Py_buffer data;
    Py_ssize_t unit;
    if (!PyArg_ParseTuple(args, "y*n:sums", &data, &unit))
        return NULL;
    if (unit <= 0) {
        PyBuffer_Release(&data);
        PyErr_SetString(PyExc_ValueError, "a unit has at least one byte");
        return NULL;
    }
    Py_ssize_t count = data.len / unit + (data.len % unit != 0);
    PyObject *packed = PyBytes_FromStringAndSize(NULL, 4 * count);
    if (packed != NULL) {
        uint32_t *out = (uint32_t *)PyBytes_AS_STRING(packed);
        PyThreadState *state = data.len > RELEASE_BYTES ? PyEval_SaveThread() : NULL;
        for (Py_ssize_t i = 0, at = 0; i < count; i++, at += unit) {
            Py_ssize_t n = data.len - at < unit ? data.len - at : unit;
            out[i] = crc32c(0, (const uint8_t *)data.buf + at, (size_t)n);
        }
        if (state != NULL)
            PyEval_RestoreThread(state);
    }
    PyBuffer_Release(&data);
    return packed;
}

#define PAGE_BYTES 4096
#define GRAIN_BYTES 65536

static PyObject *py_chunk_sums(PyObject *self, PyObject *argument) {
    Py_buffer data;
    if (PyObject_GetBuffer(argument, &data, PyBUF_SIMPLE) < 0)
        return NULL;
    Py_ssize_t n_pages = data.len / PAGE_BYTES + (data.len % PAGE_BYTES != 0);
    Py_ssize_t n_grains = data.len / GRAIN_BYTES + (data.len % GRAIN_BYTES != 0);
    PyObject *pages = PyBytes_FromStringAndSize(NULL, 4 * n_pages);
    PyObject *grains = PyBytes_FromStringAndSize(NULL, 4 * n_grains), *outcome = NULL;
    if (pages != NULL && grains != NULL) {
        uint32_t *page = (uint32_t *)PyBytes_AS_STRING(pages);
        uint32_t *grain = (uint32_t *)PyBytes_AS_STRING(grains), all = 0;
        const uint8_t *bytes = data.buf;
        PyThreadState *state = data.len > RELEASE_BYTES ? PyEval_SaveThread() : NULL;
        for (Py_ssize_t i = 0; i < n_grains; i++) {
            Py_ssize_t at = i * GRAIN_BYTES, stop = at + GRAIN_BYTES;
            uint32_t sum = 0;
            for (; at < stop && at + PAGE_BYTES <= data.len; at += PAGE_BYTES) {
                *page = crc32c(0, bytes + at, PAGE_BYTES);
                sum = crc32c_shift_page(sum) ^ *page++;
            }
            if (at == stop) {
                all = crc32c_shift_grain(all) ^ sum;
            } else { /* the last grain is short */
                size_t rest = (size_t)(data.len - at);
                if (rest)
                    *page = crc32c(0, bytes + at, rest);
                sum = crc32c(sum, bytes + at, rest);
                all = crc32c(all, bytes + i * GRAIN_BYTES, (size_t)(data.len - i * GRAIN_BYTES));
            }
            grain[i] = sum;
        }
        if (state != NULL)
            PyEval_RestoreThread(state);
        outcome = Py_BuildValue("(OOk)", grains, pages, (unsigned long)all);
    }
    Py_XDECREF(pages);
    Py_XDECREF(grains);
    PyBuffer_Release(&data);
    return outcome;
}

static PyMethodDef methods[] = {
    {"chunk_sums", py_chunk_sums, METH_O,
     "chunk_sums(data)\n\nSee hillfire.native.pure.chunk_sums."},
    {"crc32c", py_crc32c, METH_VARARGS,
     "crc32c(data, value=0)\n\nSee hillfire.native.pure.crc32c."},
    {"crc32c_in_streams", py_crc32c_in_streams, METH_VARARGS,
     "crc32c_in_streams(data, value=0)\n\ncrc32c, as slower processors do it."},
    {"sums", py_sums, METH_VARARGS, "sums(data, unit)\n\nSee hillfire.native.pure.sums."},
    {"read", hillfire_read, METH_VARARGS,
     "read(items, into, look, wait, table=None)\n\nSee hillfire.storage.store.batch."},
    {"scatter", hillfire_scatter, METH_VARARGS,
     "scatter(fd, pieces)\n\nSee hillfire.storage.store.system.System.scatter."},
    {"replace_page", hillfire_replace_page, METH_VARARGS,
     "replace_page(grains, pages, page, crc)\n\nSee hillfire.storage.store.sums."},
    {"overwrite", hillfire_overwrite, METH_VARARGS,
     "overwrite(update, record, types)\n\nSee hillfire.storage.store.overwrite."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "hillfire.native._fast", "See hillfire.native.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__fast(void) {
    const char *pure = getenv("HILLFIRE_PURE");
    if (pure != NULL && *pure != '\0' && *pure != '0') {
        PyErr_SetString(PyExc_ImportError, "HILLFIRE_PURE is set");
        return NULL;
    }
    if (!crc32c_setup()) {
        PyErr_SetString(PyExc_ImportError, "this processor has no CRC32C instruction we know");
        return NULL;
    }
    return PyModule_Create(&definition);
}
