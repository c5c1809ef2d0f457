#!/usr/bin/env python3
"""Writes golden.json: the key schedule and ESP packets, made without any code of Formic.

HKDF is written out by hand over HMAC; AES-GCM, GMAC and X25519 are python's `cryptography`. Run it only when a format
gets a new label: `python3 golden.py > golden.json`. `golden.py --check` compares.
"""
import hashlib
import hmac
import json
import os
import struct
import sys

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def hkdf(salt, ikm, info, length):
    prk = hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()
    okm, block, number = b"", b"", 1
    while len(okm) < length:
        block = hmac.new(prk, block + info + bytes([number]), hashlib.sha256).digest()
        okm, number = okm + block, number + 1
    return okm[:length]


def u32(value):
    return struct.pack(">I", value)


def u64(value):
    return struct.pack(">Q", value)


def identifier(seed):
    """17 octets below 36^25."""
    return (int.from_bytes(hashlib.sha256(seed).digest()[:17], "big") % 36**25).to_bytes(17, "big")


def packet(transform, key, salt, spi, sequence, inner, next_header):
    padding = bytes(range(1, 1 + -(len(inner) + 2) % 4))
    body = inner + padding + bytes([len(padding), next_header])
    iv = u64(sequence)
    aad = u32(spi) + u64(sequence)
    header = u32(spi) + u32(sequence & 0xFFFFFFFF) + iv
    if transform == 1:
        return header + AESGCM(key).encrypt(salt + iv, body, aad)
    return header + body + AESGCM(key).encrypt(salt + iv, b"", aad + iv + body)


def association(transform, epoch, queue, boots):
    cluster, network, src, dst = (identifier(name) for name in (b"cluster", b"network", b"src", b"dst"))
    fork, master = 1_790_000_000, hashlib.sha256(b"master").digest()
    src_secret, dst_secret = hashlib.sha256(b"src secret").digest(), hashlib.sha256(b"dst secret").digest()
    pair = X25519PrivateKey.from_private_bytes(src_secret), X25519PrivateKey.from_private_bytes(dst_secret)
    src_public, dst_public = (secret.public_key().public_bytes_raw() for secret in pair)
    shared = pair[0].exchange(X25519PublicKey.from_public_bytes(dst_public))
    network_key = hkdf(b"", master, b"formic network v1" + cluster + u64(fork) + u32(epoch) + network, 32)
    gossip_key = hkdf(b"", master, b"formic gossip v1" + cluster + u64(fork) + u32(epoch), 32)
    src_boot, dst_boot = boots
    ends = src + dst + src_boot + dst_boot
    info = bytes([transform]) + cluster + u64(fork) + network + ends + src_public + dst_public + u32(epoch)
    okm = hkdf(b"formic esp v1", network_key + shared, info + bytes([queue]), 36)
    key, salt = okm[:32], okm[32:]
    digest = hashlib.sha256(b"formic spi v1" + cluster + u64(fork) + network + ends + u32(epoch)).digest()
    spi = max(int.from_bytes(digest[:3], "big"), 1) << 8 | epoch % 16 << 4 | queue
    inners = [(b"", 59), (b"\1", 59), (bytes(range(20)), 4), (bytes(range(48)), 41), (bytes(range(255)), 4)]
    packets = [
        {
            "sequence": sequence,
            "inner": inner.hex(),
            "next_header": next_header,
            "datagram": packet(transform, key, salt, spi, sequence, inner, next_header).hex(),
        }
        for sequence in (1, 2**32 - 1, 2**32, 2**36, 2**40)
        for inner, next_header in inners
    ]
    octets = {
        "cluster": cluster, "network": network, "src": src, "dst": dst, "src_boot": src_boot, "dst_boot": dst_boot,
        "master": master, "src_secret": src_secret, "dst_secret": dst_secret, "src_public": src_public,
        "dst_public": dst_public, "network_key": network_key, "gossip_key": gossip_key, "key": key, "salt": salt,
    }  # fmt: skip
    numbers = {"transform": transform, "fork": fork, "epoch": epoch, "queue": queue, "spi": spi}
    return numbers | {name: value.hex() for name, value in octets.items()} | {"packets": packets}


def main():
    made = [
        association(1, 7, 0, (b"srcboot1", b"dstboot1")),
        association(2, 7, 0, (b"srcboot1", b"dstboot1")),
        association(1, 65543, 15, (b"srcboot2", b"dstboot1")),
    ]
    text = json.dumps(made, indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json")) as file:
            sys.exit(file.read() != text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
