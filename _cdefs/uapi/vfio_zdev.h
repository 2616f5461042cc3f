/* linux/vfio_zdev.h */
