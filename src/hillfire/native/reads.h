/* A batch of verified reads in one call: see reads.c. */
#ifndef HILLFIRE_READS_H
#define HILLFIRE_READS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *hillfire_read(PyObject *self, PyObject *args);

#endif
