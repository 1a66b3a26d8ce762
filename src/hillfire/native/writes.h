/* Writes without the interpreter's lock: see writes.c. */
#ifndef HILLFIRE_WRITES_H
#define HILLFIRE_WRITES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *hillfire_scatter(PyObject *self, PyObject *args);
PyObject *hillfire_replace_page(PyObject *self, PyObject *args);
PyObject *hillfire_overwrite(PyObject *self, PyObject *args);

#endif
