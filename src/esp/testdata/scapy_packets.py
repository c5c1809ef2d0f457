"""Makes scapy_packets.json: ESP packets built, and read back, by scapy, an implementation that shares nothing with this one.

Needs scapy 2.8 and cryptography (PyPI): python3 scapy_packets.py >scapy_packets.json. The output is the same each time. What a case
expects is what a receiver that carries only IPv4, IPv6 and nothing, and checks the padding, has to make of it.
"""

import hashlib
import json

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.ipsec import CRYPT_ALGOS, ESP, SecurityAssociation, _ESPPlain
from scapy.packet import Raw

SPI = 0x1001
OUTER = IP(src="10.77.0.1", dst="10.77.0.2")
TRANSFORMS = {"gcm": "AES-GCM", "gmac": "AES-NULL-GMAC"}
LARGEST_LOW = 0xFFFF_FFFF


def octets(label, length):
    """Octets that look random and are the same each time."""
    return hashlib.shake_128(label.encode()).digest(length)


def association(transform, material, extended, sequence):
    return SecurityAssociation(
        ESP,
        spi=SPI,
        # What encrypt() takes when it is told 0.
        seq_num=sequence & LARGEST_LOW,
        crypt_algo=TRANSFORMS[transform],
        crypt_key=material,
        tunnel_header=OUTER,
        nat_t_header=UDP(sport=4500, dport=4500),
        esn_en=extended,
        esn=sequence >> 32,
    )


def inner(version, length):
    """A packet of an IP version with so many octets of payload after its headers."""
    if version == 4:
        return IP(src="10.99.0.1", dst="10.99.0.2") / ICMP(id=7, seq=length) / Raw(octets("body", length))
    return IPv6(src="fd00::1", dst="fd00::2") / ICMPv6EchoRequest(id=7, seq=length, data=octets("body", length))


def esp_of(outer):
    """The UDP payload of an encapsulated packet."""
    return bytes(IP(bytes(outer))[UDP].payload)


def case(transform, material, extended, sequence, iv, datagram, expect, packet=b"", next_header=0):
    return {
        "transform": transform,
        "material": material.hex(),
        "extended": extended,
        "spi": SPI,
        "sequence": sequence,
        "iv": iv.hex(),
        "datagram": datagram.hex(),
        "expect": expect,
        "inner": packet.hex(),
        "next_header": next_header,
    }


def good(transform, material, extended, sequence, own_iv, version, length):
    """Built by scapy's tunnel mode, and read back by it."""
    iv = sequence.to_bytes(8, "big") if own_iv else octets(f"iv {sequence} {length}", 8)
    packet = bytes(inner(version, length))
    sa = association(transform, material, extended, sequence)
    # Parsed again, so that scapy has computed the lengths and checksums that it is compared by.
    outer = sa.encrypt(
        (IP if version == 4 else IPv6)(packet),
        seq_num=sequence & LARGEST_LOW,
        iv=iv,
        esn_en=extended,
        esn=sequence >> 32,
    )
    read = association(transform, material, extended, sequence).decrypt(IP(bytes(outer)))
    assert bytes(read)[8:] == packet[8:] or bytes(read) == packet, (transform, version, length)
    return case(
        transform, material, extended, sequence, iv, esp_of(outer), "opens", packet, 4 if version == 4 else 41
    )


def odd(transform, material, extended, sequence, padding, next_header, expect, payload):
    """Sealed by scapy with padding or a next header that its tunnel mode does not make."""
    iv = octets(f"odd {sequence} {padding.hex()} {next_header}", 8)
    plain = _ESPPlain(
        spi=SPI,
        seq=sequence & LARGEST_LOW,
        iv=iv,
        data=payload,
        padding=padding,
        padlen=len(padding),
        nh=next_header,
    )
    sa = association(transform, material, extended, sequence)
    algorithm = CRYPT_ALGOS[TRANSFORMS[transform]]
    sealed = algorithm.encrypt(sa, plain, sa.crypt_key, esn_en=extended, esn=sequence >> 32)
    return case(transform, material, extended, sequence, iv, bytes(sealed), expect, payload, next_header)


def counting(length):
    return bytes(range(1, length + 1))


def cases():
    numbers = {
        False: [1, 2, 4242, LARGEST_LOW],
        True: [1, LARGEST_LOW, 1 << 32, (1 << 32) + 1, (7 << 32) + 5, (1 << 40) - 1],
    }
    for transform in TRANSFORMS:
        for key_len in (16, 32):
            material = octets(f"key {transform} {key_len}", key_len + 4)
            for extended in (False, True):
                same = (transform, material, extended)
                for place, sequence in enumerate(numbers[extended]):
                    for own_iv in (True, False):
                        for version in (4, 6):
                            # All four lengths of padding at the first number, one at each of the others.
                            for length in range(4) if place == 0 else (place % 4,):
                                yield good(*same, sequence, own_iv, version, length)
                yield good(*same, 77, True, 4, 1300)
                yield good(*same, 78, False, 6, 500)
                packet = bytes(inner(4, 8))
                # Longer padding than needed is legal (RFC 4303, section 2.4), and so is a dummy packet.
                aligned = (-len(packet) - 2) % 4
                for extra in (4, 100, 252):
                    yield odd(*same, 80 + extra, counting(aligned + extra), 4, "opens", packet)
                yield odd(*same, 90, counting(2), 59, "opens", b"")
                yield odd(*same, 91, bytes(aligned + 4), 4, "bad_padding", packet)
                yield odd(*same, 92, counting(aligned + 1), 4, "bad_padding", packet)
                yield odd(*same, 93, counting(aligned + 3)[::-1] + b"\0", 41, "bad_padding", packet)
                for next_header in (0, 1, 6, 17, 50, 255):
                    yield odd(*same, 100 + next_header, counting(aligned), next_header, "bad_next_header", packet)


print("[" + ",\n".join(json.dumps(one) for one in cases()) + "]")
