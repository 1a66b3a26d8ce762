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

static PyMethodDef methods[] = {
    {"crc32c", py_crc32c, METH_VARARGS,
     "crc32c(data, value=0)\n\nSee hillfire.native.pure.crc32c."},
    {"crc32c_in_streams", py_crc32c_in_streams, METH_VARARGS,
     "crc32c_in_streams(data, value=0)\n\ncrc32c, as slower processors do it."},
    {"sums", py_sums, METH_VARARGS, "sums(data, unit)\n\nSee hillfire.native.pure.sums."},
    {"read", hillfire_read, METH_VARARGS,
     "read(items, into, look, nowait)\n\nSee hillfire.storage.store.batch."},
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
