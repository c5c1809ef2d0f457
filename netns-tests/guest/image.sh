# image.sh SOURCE KERNEL OUT: a file system in memory for a guest that speaks IPsec: busybox, ip, modules of the kernel
# package unpacked below KERNEL, and what lies in SOURCE.
source=$1 kernel=$2 out=$3
root=$out.root
release=$(ls "$kernel/lib/modules")
mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,modules}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh mount insmod cat echo sleep nc seq wc grep ping poweroff; do
    ln -s busybox "$root/bin/$applet"
done
# That of busybox knows nothing of xfrm.
program=$(readlink -f "$(command -v ip)")
cp "$program" "$root/sbin/ip"
for library in $(ldd "$program" | grep -o '/[^ )]*\.so[^ )]*'); do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done
for module in virtio_pci virtio_net crypto_null aesni-intel ghash-clmulni-intel ghash-generic ctr gcm hmac \
    sha256_generic sha512_generic drbg seqiv echainiv xfrm_user esp4; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$root/modules/"
    echo "/modules/${module##*/}"
done >"$root/modules/order"
cc -O -static -o "$root/bin/encap" "$source/encap.c"
install -m 755 "$source/init" "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc) >"$out"
rm -rf "$root"
