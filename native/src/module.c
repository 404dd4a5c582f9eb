/* Python's view of crop.h, in the limited API: one build serves every Python from 3.11 on. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include "crop.h"
#include "triangle.h"

enum { LARGEST = 16384 };

static PyObject *failed(enum outcome outcome, const char *reason) {
    if (outcome == NO_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, reason);
    return NULL;
}

static int has_room(Py_ssize_t length, Py_ssize_t wanted) {
    if (length == wanted) return 1;
    PyErr_Format(PyExc_ValueError, "out has %zd bytes, the crop %zd", length, wanted);
    return 0;
}

static PyObject *py_decode_crop(PyObject *self, PyObject *args, PyObject *named) {
    static char *names[] = {"data", "box", "size", "flip", "channels", "out", "around", "portable", NULL};
    struct crop crop = {.channels = 3, .portable = !has_avx2()};
    Py_buffer data, out = {0};
    PyObject *given = Py_None, *result = NULL;
    int portable = 0;
    (void)self;
    if (!PyArg_ParseTupleAndKeywords(args, named, "y*(dddd)i|pi$Opp", names, &data, &crop.left, &crop.top, &crop.width,
                                     &crop.height, &crop.size, &crop.flip, &crop.channels, &given, &crop.around,
                                     &portable))
        return NULL;
    crop.portable |= portable;
    crop.data = data.buf;
    crop.length = (size_t)data.len;
    Py_ssize_t wanted = (Py_ssize_t)crop.size * crop.size * crop.channels;
    if (crop.size < 1 || crop.size > LARGEST || (crop.channels != 1 && crop.channels != 3)) {
        PyErr_SetString(PyExc_ValueError, "size must be 1 to 16384, channels 1 or 3");
    } else if (given == Py_None) {
        result = PyBytes_FromStringAndSize(NULL, wanted);
        if (result) crop.out = (uint8_t *)PyBytes_AsString(result);
    } else if (PyObject_GetBuffer(given, &out, PyBUF_WRITABLE) == 0 && has_room(out.len, wanted)) {
        Py_INCREF(given);
        result = given;
        crop.out = out.buf;
    }
    if (result) {
        enum outcome outcome;
        Py_BEGIN_ALLOW_THREADS
        outcome = decode_crop(&crop);
        Py_END_ALLOW_THREADS
        if (outcome != DONE) {
            Py_DECREF(result);
            result = failed(outcome, crop.reason);
        }
    }
    if (out.obj) PyBuffer_Release(&out);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *py_size(PyObject *self, PyObject *file) {
    Py_buffer data;
    (void)self;
    if (PyObject_GetBuffer(file, &data, PyBUF_SIMPLE)) return NULL;
    struct header header = {.data = data.buf, .length = (size_t)data.len};
    enum outcome outcome = read_header(&header);
    PyBuffer_Release(&data);
    return outcome == DONE ? Py_BuildValue("(ii)", header.width, header.height) : failed(outcome, header.reason);
}

static PyMethodDef methods[] = {
    {"decode_crop", (PyCFunction)(void (*)(void))py_decode_crop, METH_VARARGS | METH_KEYWORDS,
     "decode_crop(data, box, size, flip=False, channels=3, *, out=None, around=False, portable=False)\n--\n\n"
     "The box (left, top, width, height) of a JPEG, resized to size x size as Pillow's BILINEAR does, within a level.\n\n"
     "Returns bytes, uint8 (size, size, channels); or `out`, a writable buffer of that many bytes, filled. `flip`\n"
     "exchanges left and right. The box is cut out and then resized; with `around` it may have fractions, and pixels\n"
     "around it count at its edge. `portable` leaves out AVX2, for the same bytes. The picture is as stored: its EXIF\n"
     "orientation is not applied. Raises ValueError for what is left to another decoder: CMYK, arithmetic coding, 12\n"
     "bits, cut off, damaged where the crop is; `out` may then be half filled. Lets go of the GIL."},
    {"size", py_size, METH_O,
     "size(data)\n--\n\n(width, height) of a JPEG as stored. Raises ValueError where the header alone rules out decode_crop."},
    {NULL, NULL, 0, NULL},
};

static int add_version(PyObject *module) { return PyModule_AddStringConstant(module, "__version__", VERSION); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)add_version}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "resnetkit_native", "Crops of JPEG pictures, decoded and resized in one go.", 0, methods,
    slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_resnetkit_native(void) { return PyModuleDef_Init(&definition); }
