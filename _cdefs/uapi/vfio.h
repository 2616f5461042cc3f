/* linux/vfio.h */
