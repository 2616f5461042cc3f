/* linux/iommufd.h */
