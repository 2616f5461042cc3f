# PID 1 of the guest on the host's root: bind the devices, run the command, leave its exit code.
# Everything that changes from run to run stands in the output folder: settings.sh, devices, command.sh.

base=/run/vfio-user
control=$base/output/guest
busybox=$base/bin/busybox
PATH=$base/bin:$PATH
. "$control/settings.sh"

# A root file system of another architecture has no shell of its own, and neither the package nor the caller's folder.
[ -e /bin/sh ] || $busybox --install -s /bin
number=0
while read -r tag target; do
    number=$((number + 1))
    share=$base/share/$number
    mkdir -p $share/lower $share/upper $share/work "$target"
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,access=any,cache=loose "$tag" $share/lower
    mount -t overlay -o "lowerdir=$share/lower,upperdir=$share/upper,workdir=$share/work" overlay "$target"
done <"$control/shares"
if [ -n "$EXTENSION" ]; then
    for module in "$EXTENSION"/*.so; do
        [ -e "$PACKAGE/${module##*/}" ] || : >"$PACKAGE/${module##*/}"
        mount -o bind "$module" "$PACKAGE/${module##*/}"
    done
    [ ! -d "$ORIGIN" ] || mount -o rbind "$PACKAGE" "$ORIGIN"
fi

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

# $1 is the bus, $2 a root port, $3 device and function behind it; the bus number is what the kernel made of it.
address_of() {
    if [ "$1" = ccw ]; then
        subchannel=$(readlink -f "/sys/bus/ccw/devices/$3/..") && echo "${subchannel##*/}"
        return
    fi
    if [ "$2" = - ]; then
        [ -e "/sys/bus/$1/devices/$3" ] && echo "$3"
        return
    fi
    for device in "/sys/bus/$1/devices/$2"/0000:*:"$3"; do
        [ -e "$device" ] && echo "${device##*/}" && return
    done
}

driver_of() {
    case $1 in
    css) echo vfio_ccw ;;
    *) echo "vfio-$1" ;;
    esac
}

bind() {
    device=/sys/bus/$1/devices/$2
    driver_of "$1" >"$device/driver_override"
    [ -e "$device/driver" ] && echo "$2" >"$device/driver/unbind"
    echo "$2" >"/sys/bus/$1/drivers_probe"
}

separator=
echo '[' >$base/devices.json
while read -r name kind bus port function; do
    address=$(address_of "$bus" "$port" "$function")
    if [ -z "$address" ]; then
        echo "vfio-user guest: device $name is not on the bus" >/dev/console
        continue
    fi
    [ "$bus" = ccw ] && bus=css # what a driver is bound to is the subchannel
    [ "$BIND" = 1 ] && bind "$bus" "$address"
    printf '%s{"name": "%s", "kind": "%s", "bus": "%s", "address": "%s"}\n' \
        "$separator" "$name" "$kind" "$bus" "$address" >>$base/devices.json
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
