#!/bin/sh
# PID 1 of the guest's initramfs: modules, the host's root (read-only, by 9p) under a layer in memory, then over to it.

fail() {
    echo "vfio-user guest: $1"
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules); do
    modprobe "$module" || fail "module $module does not load"
done

mkdir /host /layer /new
# The host's files do not change while a guest runs, so the guest may cache whatever it has seen of them.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose host /host ||
    fail "can't mount the host's root"
mount -t tmpfs -o mode=755 tmpfs /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /new ||
    fail "can't mount the overlay"

for folder in proc sys dev; do
    mkdir -p /new/$folder
    mount --move /$folder /new/$folder
done
mkdir -p /new/run/vfio-user
mount -t tmpfs -o mode=755 tmpfs /new/run/vfio-user
mkdir /new/run/vfio-user/bin /new/run/vfio-user/output
# No cache here: the host shows each line as it is written.
mount -t 9p -o rw,trans=virtio,version=9p2000.L,msize=512000,access=any,cache=none output /new/run/vfio-user/output ||
    fail "can't mount the output folder"
cp /bin/busybox /main.sh /new/run/vfio-user/bin/
for applet in depmod insmod lsmod modprobe poweroff rmmod; do
    ln -s busybox /new/run/vfio-user/bin/$applet
done
exec switch_root /new /run/vfio-user/bin/busybox sh /run/vfio-user/bin/main.sh
