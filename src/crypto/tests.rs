//! Published vectors of the primitives.

use super::*;

fn hex<const N: usize>(text: &str) -> [u8; N] {
    let bytes: Vec<u8> = (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// RFC 5869, appendix A.1 and A.3.
#[test]
fn hkdf_matches_rfc_5869() {
    let okm = hkdf_sha256::<42>(
        &hex::<13>("000102030405060708090a0b0c"),
        &[&[0x0b; 22]],
        &[&hex::<10>("f0f1f2f3f4f5f6f7f8f9")],
    );
    assert_eq!(*okm, hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"));
    let okm = hkdf_sha256::<42>(&[], &[&[0x0b; 22]], &[]);
    assert_eq!(*okm, hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"));
}

/// RFC 4231's hash under HKDF's Extract is HMAC-SHA256; the digest itself: FIPS 180-4, "abc".
#[test]
fn sha256_matches_fips_180() {
    assert_eq!(sha256(&[b"a", b"bc"]), hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
}

/// RFC 4231, test cases 1 and 2: HKDF-Extract (RFC 5869, section 2.2) is HMAC-SHA256(salt, ikm).
#[test]
fn hmac_matches_rfc_4231() {
    let (prk, _) = hkdf::Hkdf::<sha2::Sha256>::extract(Some(&[0x0b; 20]), b"Hi There");
    assert_eq!(<[u8; 32]>::from(prk), hex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"));
    let (prk, _) = hkdf::Hkdf::<sha2::Sha256>::extract(Some(b"Jefe"), b"what do ya want for nothing?");
    assert_eq!(<[u8; 32]>::from(prk), hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
}

/// RFC 7748, section 6.1.
#[test]
fn x25519_matches_rfc_7748() {
    let alice = X25519Secret::new(&Key32::new(hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")));
    let bob = X25519Secret::new(&Key32::new(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")));
    assert_eq!(alice.public(), PublicKey(hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")));
    assert_eq!(bob.public(), PublicKey(hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")));
    let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(*alice.agree(&bob.public()).unwrap().expose(), shared);
    assert_eq!(*bob.agree(&alice.public()).unwrap().expose(), shared);
}

/// RFC 8032, section 7.1, test 1.
#[test]
fn ed25519_matches_rfc_8032() {
    let key = SigningKey::new(&Key32::new(hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")));
    assert_eq!(key.public(), PublicKey(hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")));
    let signature = key.sign(b"");
    assert_eq!(
        signature,
        hex(concat!(
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b",
            "d25bf5f0595bbe24655141438e7a100b"
        ))
    );
    assert_eq!(verify(&key.public(), b"", &signature), Ok(()));
    assert_eq!(verify(&key.public(), b"x", &signature), Err(Unauthentic));
}

#[test]
fn a_point_of_small_order_gives_no_secret() {
    let secret = X25519Secret::new(&Key32::new([7; 32]));
    for point in [[0; 32], hex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")] {
        assert!(secret.agree(&PublicKey(point)).is_err());
    }
}

#[test]
fn a_changed_bit_does_not_open() {
    let key = Key32::new([1; 32]);
    let mut sealed = seal(&key, &[2; 12], b"header", b"secret");
    assert_eq!(open(&key, &[2; 12], b"header", &sealed).unwrap().as_slice(), b"secret");
    assert!(open(&key, &[2; 12], b"other", &sealed).is_err());
    sealed[0] ^= 1;
    assert!(open(&key, &[2; 12], b"header", &sealed).is_err());
}
