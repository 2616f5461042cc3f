#define PY_SSIZE_T_CLEAN
#include <Python.h>

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_mmio", NULL, 0, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC __attribute__((weak)) PyInit__mmio(void)
{
	return PyModuleDef_Init(&definition);
}
