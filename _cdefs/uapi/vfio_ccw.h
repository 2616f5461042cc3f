/* linux/vfio_ccw.h */
