# image.sh DIR: a small root directory for a container: busybox with its applets, ping and iperf3 with libraries.
root=$1
mkdir -p "$root"/{bin,dev,etc,proc,sys,tmp,run,root}
chmod 1777 "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
    [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
for program in ping iperf3; do
    path=$(command -v $program)
    rm -f "$root/bin/$program"
    cp "$path" "$root/bin/$program"
    for library in $(ldd "$path" | grep -o '/[^ ]*'); do
        mkdir -p "$root${library%/*}"
        cp -L "$library" "$root$library"
    done
done
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\n' >"$root/etc/group"
