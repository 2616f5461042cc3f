# PID 1 of the guest on the host's root: bind the devices, run the command, leave its exit code.
# Everything that changes from run to run stands in the output folder: settings.sh, devices, command.sh.

base=/run/vfio-user
control=$base/output/guest
busybox=$base/bin/busybox
PATH=$base/bin:$PATH
. "$control/settings.sh"

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
$busybox ln -sf /proc/self/fd /dev/fd
$busybox ip link set lo up 2>/dev/null
echo $base/bin/modprobe >/proc/sys/kernel/modprobe 2>/dev/null
if [ -n "$MODULES" ]; then
    mkdir -p "/lib/modules/$($busybox uname -r)"
    mount --bind "$MODULES" "/lib/modules/$($busybox uname -r)"
fi

# $1 is a root port, $2 device and function behind it; the bus number is what the kernel made of it.
address_of() {
    [ "$1" = - ] && echo "$2" && return
    for device in "/sys/bus/pci/devices/$1"/0000:*:"$2"; do
        [ -e "$device" ] && echo "${device##*/}" && return
    done
}

bind() {
    echo vfio-pci >"/sys/bus/pci/devices/$1/driver_override"
    [ -e "/sys/bus/pci/devices/$1/driver" ] && echo "$1" >"/sys/bus/pci/devices/$1/driver/unbind"
    echo "$1" >/sys/bus/pci/drivers_probe
}

separator=
echo '[' >$base/devices.json
while read -r name kind port function; do
    address=$(address_of "$port" "$function")
    if [ -z "$address" ]; then
        echo "vfio-user guest: device $name is not on the bus" >/dev/console
        continue
    fi
    [ "$BIND" = 1 ] && bind "$address"
    printf '%s{"name": "%s", "kind": "%s", "address": "%s"}\n' \
        "$separator" "$name" "$kind" "$address" >>$base/devices.json
    separator=,
done <"$control/devices"
echo ']' >>$base/devices.json

# The runner asks for this before it stops a guest that is late: who is there, and what does each wait for?
# Little is started here: a guest that is late is often slow, too.
report() {
    for thread in /proc/[0-9]*/task/*; do
        read -r words <"$thread/cmdline" || [ -n "$words" ] || continue # the kernel's own have no command line
        read -r place <"$thread/wchan" || [ -n "$place" ] || continue
        read -r state <"$thread/stat"
        state=${state##*) }
        echo "thread ${thread##*/} of $words: state ${state%% *} in $place"
    done 2>/dev/null
    echo w >/proc/sysrq-trigger
}
while $busybox sleep 1; do
    [ -e "$control/late" ] || continue
    dmesg -n 8
    report >/dev/console
    rm "$control/late"
done &

echo >"$control/started"
/bin/sh "$control/command.sh" >"$control/stdout" 2>"$control/stderr" </dev/null
echo $? >"$control/rc.part"
dmesg >"$control/dmesg"
mv "$control/rc.part" "$control/rc"
poweroff -f
